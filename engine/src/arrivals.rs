//! What came back into memory lately, for whoever chooses what goes out.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A record of ranges that pages were put in place in. Kept from the first time somebody asks for it on.
#[derive(Default)]
pub(crate) struct Arrivals {
    wanted: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    ranges: Vec<(u64, u64)>,
    overflown: bool,
}

/// More than come between two looks; who looks more rarely has to look at the memory itself.
const MOST: usize = 1 << 14;

impl Arrivals {
    /// Pages from the first address to the second are in place.
    pub(crate) fn note(&self, from: u64, to: u64) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.ranges.len() < MOST {
            seen.ranges.push((from, to));
        } else {
            seen.overflown = true;
        }
    }

    /// Exchanges what came for an empty `ranges`. `false`: there was more, which is forgotten.
    pub(crate) fn take(&self, ranges: &mut Vec<(u64, u64)>) -> bool {
        ranges.clear();
        // Here, so that whoever notes needn't.
        ranges.reserve(MOST);
        let first = !self.wanted.swap(true, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        std::mem::swap(&mut seen.ranges, ranges);
        !std::mem::take(&mut seen.overflown) && !first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_told_once_and_that_there_was_more() {
        let (arrivals, mut ranges) = (Arrivals::default(), vec![(9, 9)]);
        arrivals.note(1, 2);
        assert!(!arrivals.take(&mut ranges) && ranges.is_empty());
        arrivals.note(1, 2);
        assert!(arrivals.take(&mut ranges));
        assert_eq!(ranges, [(1, 2)]);
        (0..=MOST as u64).for_each(|at| arrivals.note(at, at + 1));
        assert!(!arrivals.take(&mut ranges));
        assert_eq!(ranges.len(), MOST);
        assert!(arrivals.take(&mut ranges) && ranges.is_empty());
    }
}
