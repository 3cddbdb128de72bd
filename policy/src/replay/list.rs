//! A queue that anything can be taken out of, and pushed into at the front.

use std::collections::HashMap;

/// Pages in order, by links. The front is where they join.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    links: HashMap<u64, Link>,
    front: Option<u64>,
    back: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    /// Towards the front.
    before: Option<u64>,
    after: Option<u64>,
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        self.links.contains_key(&page)
    }

    pub(super) fn back(&self) -> Option<u64> {
        self.back
    }

    /// The next one towards the front.
    pub(super) fn before(&self, page: u64) -> Option<u64> {
        self.links.get(&page).and_then(|link| link.before)
    }

    pub(super) fn push_front(&mut self, page: u64) {
        self.remove(page);
        self.links.insert(page, Link { before: None, after: self.front });
        match self.front.and_then(|front| self.links.get_mut(&front)) {
            Some(front) => front.before = Some(page),
            None => self.back = Some(page),
        }
        self.front = Some(page);
    }

    pub(super) fn pop_back(&mut self) -> Option<u64> {
        let back = self.back?;
        self.remove(back);
        Some(back)
    }

    pub(super) fn remove(&mut self, page: u64) -> bool {
        let Some(link) = self.links.remove(&page) else { return false };
        match link.before.and_then(|before| self.links.get_mut(&before)) {
            Some(before) => before.after = link.after,
            None => self.front = link.after,
        }
        match link.after.and_then(|after| self.links.get_mut(&after)) {
            Some(after) => after.before = link.before,
            None => self.back = link.before,
        }
        true
    }
}
