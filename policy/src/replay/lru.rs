//! Least recently used.

use super::Memory;
use super::list::List;

pub(super) struct Lru {
    room: usize,
    pages: List,
}

impl Lru {
    pub(super) fn new(room: usize) -> Self {
        Self { room, pages: List::default() }
    }
}

impl Memory for Lru {
    fn touch(&mut self, page: u64, _first: bool) -> bool {
        let there = self.pages.contains(page);
        if !there && self.pages.len() >= self.room {
            self.pages.pop_back();
        }
        self.pages.push_front(page);
        there
    }
}
