//! Going through a trace with a policy, and counting how often a page was missing when it was touched.
//!
//! What is counted is what a policy can be blamed for: touches of pages that it had thrown out. That a page is touched for the first
//! time is nobody's fault. Nothing comes along with a page that is missing, for any policy.

mod belady;
mod blind;
mod clock;
mod list;
mod lru;
mod s3fifo;
mod sieve;

use crate::trace::Trace;
use std::collections::HashSet;

/// What a trace is gone through with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// [`Victims`](crate::Victims), shown what the engine would show it: that a page came back, never that one in memory was touched.
    Default,
    /// Throws out what is touched latest from now on, which nobody can know: the least there can be.
    Belady,
    /// Throws out what was touched longest ago.
    Lru,
    /// First in, first out, but what was touched since its last turn is passed over once.
    Clock,
    /// Two queues, first in, first out, and a memory of what went out.
    S3Fifo,
    /// One queue and a hand that passes over what was touched.
    Sieve,
}

impl Policy {
    /// All there are: the default, the least, and those that see every touch.
    pub const ALL: [Self; 6] =
        [Self::Default, Self::Belady, Self::Lru, Self::Clock, Self::S3Fifo, Self::Sieve];

    /// Those that see every touch and nothing of the future.
    pub const SEEING: [Self; 4] = [Self::Lru, Self::Clock, Self::S3Fifo, Self::Sieve];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Belady => "belady",
            Self::Lru => "lru",
            Self::Clock => "clock",
            Self::S3Fifo => "s3-fifo",
            Self::Sieve => "sieve",
        }
    }
}

/// What came of it, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Score {
    /// Pages touched, once a window each.
    pub touches: u64,
    /// Of these, those that were never touched before.
    pub first: u64,
    /// Of these, those that had been there and were missing.
    pub misses: u64,
}

/// Goes through a trace with room for so many pages, at least one.
pub fn replay(trace: &Trace, policy: Policy, room: usize) -> Score {
    let (pages, room) = (trace.pages(), room.max(1));
    let mut memory: Box<dyn Memory> = match policy {
        Policy::Default => Box::new(blind::Blind::new(room)),
        Policy::Belady => Box::new(belady::Belady::new(room, pages)),
        Policy::Lru => Box::new(lru::Lru::new(room)),
        Policy::Clock => Box::new(clock::Clock::new(room)),
        Policy::S3Fifo => Box::new(s3fifo::S3Fifo::new(room)),
        Policy::Sieve => Box::new(sieve::Sieve::new(room)),
    };
    let mut score = Score::default();
    let mut seen = HashSet::new();
    for page in pages {
        let first = seen.insert(*page);
        let there = memory.touch(*page, first);
        score.touches += 1;
        score.first += u64::from(first);
        score.misses += u64::from(!first && !there);
    }
    score
}

/// A memory with room for so many pages.
trait Memory {
    /// A page is touched, `first` if it never was before. Whether it was there.
    fn touch(&mut self, page: u64, first: bool) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn trace(pages: &[u64]) -> Trace {
        let mut trace = Trace::new(String::new(), 4096, Duration::ZERO);
        trace.add(pages, &[], Duration::ZERO);
        trace
    }

    fn misses(pages: &[u64], policy: Policy, room: usize) -> u64 {
        let score = replay(&trace(pages), policy, room);
        assert_eq!(score.touches, pages.len() as u64);
        score.misses
    }

    /// Touches with favourites, the same each time.
    fn skewed(count: usize, of: u64) -> Vec<u64> {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % of
        };
        (0..count).map(|_| random().min(random()).min(random())).collect()
    }

    #[test]
    fn small_cases_come_out_as_by_hand() {
        // The textbook's example.
        let pages = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(misses(&pages, Policy::Belady, 3), 9 - 6);
        assert_eq!(misses(&pages, Policy::Lru, 3), 12 - 6);
        // 2 is touched, so that 1 goes for 3; LRU likewise; the sieve's hand stands behind 2 then.
        assert_eq!(misses(&[1, 2, 2, 3, 2], Policy::Clock, 2), 0);
        assert_eq!(misses(&[1, 2, 1, 3, 1], Policy::Clock, 2), 0);
        assert_eq!(misses(&[1, 2, 1, 3, 1], Policy::Sieve, 2), 0);
        assert_eq!(misses(&[1, 2, 1, 3, 4, 1], Policy::Sieve, 2), 1);
        assert_eq!(misses(&[1, 2, 1, 3, 4, 1], Policy::Lru, 2), 1);
    }

    #[test]
    fn what_fits_never_misses_and_nobody_beats_belady() {
        let pages = skewed(5_000, 1_000);
        for policy in Policy::ALL {
            assert_eq!(misses(&pages, policy, 1_100), 0, "{}", policy.name());
            for room in [1, 2, 10, 300, 800] {
                let (least, got) = (misses(&pages, Policy::Belady, room), misses(&pages, policy, room));
                assert!(got >= least, "{} with {room}", policy.name());
            }
        }
    }

    #[test]
    fn a_circle_is_the_worst_for_who_throws_out_the_oldest() {
        let pages: Vec<u64> = (0..3_000).map(|n| n % 300).collect();
        assert_eq!(misses(&pages, Policy::Lru, 200), 2_700);
        assert_eq!(misses(&pages, Policy::Clock, 200), 2_700);
        // Of each turn only what has no room is missed, by Belady.
        assert!(misses(&pages, Policy::Belady, 200) < 1_000);
    }

    #[test]
    fn who_sees_what_is_touched_keeps_favourites() {
        let pages = skewed(50_000, 2_000);
        let of = |policy| misses(&pages, policy, 500);
        let (lru, s3, sieve) = (of(Policy::Lru), of(Policy::S3Fifo), of(Policy::Sieve));
        assert!(s3 < lru && sieve < lru, "{lru} {s3} {sieve}");
    }
}
