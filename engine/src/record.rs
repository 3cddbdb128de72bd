//! What came to pass lately, for whoever wants to be told of it now and then: what came back, for who chooses what goes out; what became of ranges that were out, for who keeps an
//! account of them.

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

/// A record, in order. Kept from the first time somebody asks for it on.
pub(crate) struct Record<T> {
    wanted: AtomicBool,
    seen: Mutex<Seen<T>>,
}

struct Seen<T> {
    entries: Vec<T>,
    overflown: bool,
}

impl<T> Default for Record<T> {
    fn default() -> Self {
        let seen = Seen { entries: Vec::new(), overflown: false };
        Self { wanted: AtomicBool::new(false), seen: Mutex::new(seen) }
    }
}

/// More than come between two looks; who looks more rarely has to look at the memory itself.
const MOST: usize = 1 << 14;

impl<T> Record<T> {
    /// Notes what came to pass, if anybody wants to know. Takes no memory.
    pub(crate) fn note(&self, entry: T) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.entries.len() < MOST {
            seen.entries.push(entry);
        } else {
            seen.overflown = true;
        }
    }

    /// Exchanges what was noted for an empty `entries`. `false`: there was more, which is forgotten, or nobody has asked before.
    pub(crate) fn take(&self, entries: &mut Vec<T>) -> bool {
        entries.clear();
        // Here, so that whoever notes needn't.
        entries.reserve(MOST);
        let first = !self.wanted.swap(true, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        std::mem::swap(&mut seen.entries, entries);
        !std::mem::take(&mut seen.overflown) && !first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_once_and_that_there_was_more() {
        let (arrivals, mut ranges) = (Record::default(), vec![(9, 9)]);
        arrivals.note((1, 2));
        assert!(!arrivals.take(&mut ranges) && ranges.is_empty());
        arrivals.note((1, 2));
        assert!(arrivals.take(&mut ranges));
        assert_eq!(ranges, [(1, 2)]);
        (0..=MOST as u64).for_each(|at| arrivals.note((at, at + 1)));
        assert!(!arrivals.take(&mut ranges));
        assert_eq!(ranges.len(), MOST);
        assert!(arrivals.take(&mut ranges) && ranges.is_empty());
    }
    #[test]
    fn changes_are_told_once_in_order_and_too_many_not_at_all() {
        let (changes, mut seen) = (Record::default(), Vec::new());
        changes.note(Change::Came(1, 2));
        assert!(!changes.take(&mut seen));
        changes.note(Change::Came(1, 2));
        changes.note(Change::Gone(1, 3));
        assert!(changes.take(&mut seen));
        assert_eq!(seen, [Change::Came(1, 2), Change::Gone(1, 3)]);
        (0..=MOST as u64).for_each(|at| changes.note(Change::Came(at, at + 1)));
        assert!(!changes.take(&mut seen));
        assert!(changes.take(&mut seen) && seen.is_empty());
    }
}
