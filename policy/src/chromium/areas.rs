//! Which regions of a client go in a round, and which of them never again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A range of memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Area {
    /// Its first byte.
    pub start: u64,
    /// How many.
    pub bytes: u64,
}

/// Cuts what a client offers into regions of one size. What is left over at the end of an offer is left alone.
pub fn regions(offers: &[Area], region_bytes: u64) -> impl Iterator<Item = Area> {
    offers.iter().flat_map(move |offer| {
        let count = offer.bytes.checked_div(region_bytes).unwrap_or(0);
        let start = offer.start;
        (0..count).map(move |at| Area { start: start + at * region_bytes, bytes: region_bytes })
    })
}

/// Puts a round's candidates in an order in which each is as likely as any other. `random` is asked for numbers below its argument.
pub fn shuffle<T>(candidates: &mut [T], mut random: impl FnMut(usize) -> usize) {
    for last in (1..candidates.len()).rev() {
        candidates.swap(last, random(last + 1).min(last));
    }
}

/// What is out of one client, and what may never be out again.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    out: BTreeMap<u64, Out>,
    blocked: BTreeSet<u64>,
    /// Bytes out.
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    at: Duration,
    bytes: u64,
}

impl Book {
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn may_go(&self, start: u64) -> bool {
        !self.blocked.contains(&start) && !self.out.contains_key(&start)
    }

    /// A region went out. How many bytes are out now that weren't.
    pub(super) fn went(&mut self, area: Area, at: Duration) -> u64 {
        let before = self.out.insert(area.start, Out { at, bytes: area.bytes }).map_or(0, |out| out.bytes);
        let more = area.bytes.saturating_sub(before);
        self.used = self.used.saturating_add(more);
        more
    }

    /// Something of a region came back, so that it is as if all of it had. How many bytes are out no more.
    pub(super) fn came_back(&mut self, start: u64, at: Duration, blocked_refault: Duration) -> u64 {
        let Some(out) = self.out.remove(&start) else { return 0 };
        if at.saturating_sub(out.at) < blocked_refault {
            self.blocked.insert(start);
        }
        self.used = self.used.saturating_sub(out.bytes);
        out.bytes
    }

    /// Where the regions start that are out and that a range is in. Regions don't overlap.
    pub(super) fn out_within(&self, area: Area) -> Vec<u64> {
        let end = area.start.saturating_add(area.bytes);
        let below = self.out.range(..end).rev();
        below
            .take_while(|(start, out)| start.saturating_add(out.bytes) > area.start)
            .map(|(start, _)| *start)
            .collect()
    }

    /// A range is mapped no more, or was emptied: what is there next is something else. How many bytes are out no more.
    pub(super) fn gone(&mut self, area: Area) -> u64 {
        let end = area.start.saturating_add(area.bytes);
        let before = self.used;
        for start in self.out_within(area) {
            self.used = self.used.saturating_sub(self.out.remove(&start).map_or(0, |out| out.bytes));
        }
        let unblocked: Vec<u64> = self.blocked.range(area.start..end).copied().collect();
        for start in unblocked {
            self.blocked.remove(&start);
        }
        before - self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::ZERO;

    #[test]
    fn offers_are_cut_and_what_is_left_over_is_left_alone() {
        let offers = [Area { start: 0x1000, bytes: 0x5000 }, Area { start: 0x10_000, bytes: 0x1000 }];
        let starts: Vec<u64> = regions(&offers, 0x2000).map(|area| area.start).collect();
        assert_eq!(starts, [0x1000, 0x3000]);
        assert_eq!(regions(&offers, 0).count(), 0);
    }

    #[test]
    fn shuffling_keeps_everything_and_moves_it() {
        let mut numbers: Vec<u32> = (0..100).collect();
        let mut state = 7u64;
        shuffle(&mut numbers, |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % below
        });
        assert_ne!(numbers, (0..100).collect::<Vec<u32>>());
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<u32>>());
    }

    /// None before and after, where touching counts as none; full; the end remains, the start remains; within.
    #[test]
    fn what_is_unmapped_is_forgotten_where_it_overlaps() {
        for (start, bytes, forgotten) in [
            (0x1000, 0x3000, false),
            (0x8000, 0x3000, false),
            (0x4000, 0x4000, true),
            (0x3000, 0x2000, true),
            (0x7000, 0x2000, true),
            (0x5000, 0x1000, true),
        ] {
            let mut book = Book::default();
            assert_eq!(book.went(Area { start: 0x4000, bytes: 0x4000 }, AT), 0x4000);
            let gone = book.gone(Area { start, bytes });
            assert_eq!((gone, book.used()), if forgotten { (0x4000, 0) } else { (0, 0x4000) }, "{start:#x}");
        }
    }

    #[test]
    fn a_region_is_counted_once_and_blocked_only_if_it_was_back_soon() {
        let mut book = Book::default();
        let (block, area) = (Duration::from_secs(45), Area { start: 0x4000, bytes: 0x4000 });
        assert_eq!((book.went(area, AT), book.went(area, AT)), (0x4000, 0));
        assert_eq!(book.came_back(area.start, block, block), 0x4000);
        assert_eq!(book.came_back(area.start, block, block), 0);
        assert!(book.may_go(area.start));
        book.went(area, block);
        assert!(!book.may_go(area.start));
        book.came_back(area.start, block * 2 - Duration::from_nanos(1), block);
        assert!(!book.may_go(area.start) && book.used() == 0);
        // Another mapping at the same place is another region.
        book.gone(area);
        assert!(book.may_go(area.start));
    }
}
