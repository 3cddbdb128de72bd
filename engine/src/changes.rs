//! What became of ranges that were out, for whoever keeps an account of them.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What became of a range, from its first address to the one behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Pages of it are in memory again.
    Came(u64, u64),
    /// Unmapped, emptied, or moved elsewhere: what was there is there no more.
    Gone(u64, u64),
}

/// A record of changes, in order. Kept from the first time somebody asks for it on.
#[derive(Default)]
pub(crate) struct Changes {
    wanted: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    changes: Vec<Change>,
    overflown: bool,
}

/// More than come between two looks.
const MOST: usize = 1 << 14;

impl Changes {
    /// Notes one, if anybody wants to know.
    pub(crate) fn note(&self, change: Change) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.changes.len() < MOST {
            seen.changes.push(change);
        } else {
            seen.overflown = true;
        }
    }

    /// What was noted since the last time; `None` if that was more than is remembered, or nothing was noted so far.
    pub(crate) fn take(&self) -> Option<Vec<Change>> {
        let first = !self.wanted.swap(true, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        let changes = std::mem::take(&mut seen.changes);
        let overflown = std::mem::take(&mut seen.overflown);
        (!first && !overflown).then_some(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_once_in_order_and_too_many_not_at_all() {
        let changes = Changes::default();
        changes.note(Change::Came(1, 2));
        assert_eq!(changes.take(), None);
        changes.note(Change::Came(1, 2));
        changes.note(Change::Gone(1, 3));
        assert_eq!(changes.take(), Some(vec![Change::Came(1, 2), Change::Gone(1, 3)]));
        (0..=MOST as u64).for_each(|at| changes.note(Change::Came(at, at + 1)));
        assert_eq!((changes.take(), changes.take()), (None, Some(vec![])));
    }
}
