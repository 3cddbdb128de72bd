//! The second chance.

use super::Memory;
use super::list::List;
use std::collections::HashSet;

pub(super) struct Clock {
    room: usize,
    pages: List,
    touched: HashSet<u64>,
}

impl Clock {
    pub(super) fn new(room: usize) -> Self {
        Self { room, pages: List::default(), touched: HashSet::new() }
    }
}

impl Memory for Clock {
    fn touch(&mut self, page: u64, _first: bool) -> bool {
        if self.pages.contains(page) {
            self.touched.insert(page);
            return true;
        }
        while self.pages.len() >= self.room {
            let Some(oldest) = self.pages.pop_back() else { break };
            if self.touched.remove(&oldest) {
                self.pages.push_front(oldest);
            }
        }
        self.pages.push_front(page);
        false
    }
}
