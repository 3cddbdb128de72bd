//! S3-FIFO: what comes in passes a short queue, and only what is touched meanwhile, or wanted again soon after, joins the long one.

use super::Memory;
use super::list::List;
use std::collections::HashMap;

pub(super) struct S3Fifo {
    room: usize,
    short: List,
    long: List,
    /// What left the short queue for good lately.
    ghosts: List,
    /// Touches since a page joined, [`MOST`] at most.
    touches: HashMap<u64, u8>,
}

/// The short queue's share of the room is one in so many.
const SHORT: usize = 10;

const MOST: u8 = 3;

impl S3Fifo {
    pub(super) fn new(room: usize) -> Self {
        let (short, long, ghosts) = (List::default(), List::default(), List::default());
        Self { room, short, long, ghosts, touches: HashMap::new() }
    }

    fn evict(&mut self) {
        while self.short.len() + self.long.len() >= self.room {
            if self.short.len() > self.room / SHORT || self.long.len() == 0 {
                let Some(page) = self.short.pop_back() else { return };
                if self.touches.get(&page).is_some_and(|touches| *touches > 1) {
                    self.touches.insert(page, 0);
                    self.long.push_front(page);
                } else {
                    self.touches.remove(&page);
                    self.ghosts.push_front(page);
                    if self.ghosts.len() > self.room - self.room / SHORT {
                        self.ghosts.pop_back();
                    }
                }
            } else {
                let Some(page) = self.long.pop_back() else { return };
                match self.touches.get_mut(&page).filter(|touches| **touches > 0) {
                    Some(touches) => {
                        *touches -= 1;
                        self.long.push_front(page);
                    }
                    None => {
                        self.touches.remove(&page);
                    }
                }
            }
        }
    }
}

impl Memory for S3Fifo {
    fn touch(&mut self, page: u64, _first: bool) -> bool {
        if let Some(touches) = self.touches.get_mut(&page) {
            *touches = (*touches + 1).min(MOST);
            return true;
        }
        self.evict();
        if self.ghosts.remove(page) {
            self.long.push_front(page)
        } else {
            self.short.push_front(page)
        }
        self.touches.insert(page, 0);
        false
    }
}
