//! SIEVE: as CLOCK, but what is passed over stays where it is, and the hand goes on from there.

use super::Memory;
use super::list::List;
use std::collections::HashSet;

pub(super) struct Sieve {
    room: usize,
    pages: List,
    touched: HashSet<u64>,
    hand: Option<u64>,
}

impl Sieve {
    pub(super) fn new(room: usize) -> Self {
        Self { room, pages: List::default(), touched: HashSet::new(), hand: None }
    }

    fn evict(&mut self) {
        let mut hand = self.hand.or(self.pages.back());
        while let Some(page) = hand {
            if !self.touched.remove(&page) {
                self.hand = self.pages.before(page);
                self.pages.remove(page);
                return;
            }
            hand = self.pages.before(page).or(self.pages.back());
        }
    }
}

impl Memory for Sieve {
    fn touch(&mut self, page: u64, _first: bool) -> bool {
        if self.pages.contains(page) {
            self.touched.insert(page);
            return true;
        }
        if self.pages.len() >= self.room {
            self.evict();
        }
        self.pages.push_front(page);
        false
    }
}
