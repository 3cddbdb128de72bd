//! The least misses there can be, from knowing the future.

use super::Memory;
use std::collections::{BTreeSet, HashMap};

pub(super) struct Belady {
    room: usize,
    /// Of each touch, when its page is touched next; `usize::MAX` for never.
    next: Vec<usize>,
    now: usize,
    /// What is there, by when it is touched next.
    there: BTreeSet<(usize, u64)>,
    due: HashMap<u64, usize>,
}

impl Belady {
    pub(super) fn new(room: usize, pages: &[u64]) -> Self {
        let mut later = HashMap::new();
        let mut next = vec![usize::MAX; pages.len()];
        for (at, page) in pages.iter().enumerate().rev() {
            if let Some(touch) = later.insert(*page, at) {
                next[at] = touch;
            }
        }
        Self { room, next, now: 0, there: BTreeSet::new(), due: HashMap::new() }
    }
}

impl Memory for Belady {
    fn touch(&mut self, page: u64, _first: bool) -> bool {
        let next = self.next.get(self.now).copied().unwrap_or(usize::MAX);
        self.now += 1;
        let was = self.due.remove(&page);
        if let Some(due) = was {
            self.there.remove(&(due, page));
        } else if self.there.len() >= self.room
            && let Some((_, latest)) = self.there.pop_last()
        {
            self.due.remove(&latest);
        }
        self.there.insert((next, page));
        self.due.insert(page, next);
        was.is_some()
    }
}
