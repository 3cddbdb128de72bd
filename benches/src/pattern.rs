//! In which order pages are touched.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The order of the touches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    /// Each page at most once, in random order.
    Random,
    /// Every page from the first to the last.
    Sequential,
    /// Every fourth page from the first to the last.
    Strided,
    /// Two runs through a half each, in turn.
    TwoStreams,
    /// Few pages often and many seldom, by Zipf's law.
    Zipf,
    /// Anywhere in an eighth of all pages for a while, then in the next eighth.
    Shift,
}

impl Pattern {
    /// As in arguments and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
            Self::Strided => "strided",
            Self::TwoStreams => "two-streams",
            Self::Zipf => "zipf",
            Self::Shift => "shift",
        }
    }

    /// The figure that says how it does beside zram. Where each touch, one like another, leads to a fault, that is the median's; of the others only the
    /// mean says something, for neighbours come along and pages are there already.
    pub(crate) fn ratio(self) -> &'static str {
        if self == Self::Random { "ratio_p50" } else { "ratio_mean" }
    }

    /// What each of `threads` threads touches, of a memory of `pages` pages: all pages in an order, or `touches` made at random, the same
    /// for the same seed. Each thread has a part of them.
    pub(crate) fn orders(self, pages: usize, touches: usize, threads: usize, seed: u64) -> Vec<Vec<u32>> {
        let all = self.order(pages, touches.max(1), seed);
        let share = all.len().div_ceil(threads.max(1)).max(1);
        all.chunks(share).map(<[u32]>::to_vec).collect()
    }

    fn order(self, pages: usize, touches: usize, seed: u64) -> Vec<u32> {
        let last = u32::try_from(pages).unwrap_or(u32::MAX);
        let mut random = Random::new(seed);
        let shuffled = |random: &mut Random| {
            let mut all: Vec<u32> = (0..last).collect();
            random.shuffle(&mut all);
            all
        };
        match self {
            Self::Random => {
                let mut all = shuffled(&mut random);
                all.truncate(touches);
                all
            }
            Self::Sequential => (0..last).collect(),
            Self::Strided => (0..last).step_by(4).collect(),
            Self::TwoStreams => (0..last / 2).flat_map(|at| [at, at + last / 2]).collect(),
            Self::Zipf => {
                let all = shuffled(&mut random);
                // As many of each number of digits: nearly Zipf's law, which has 1/n of the n-th.
                let digits = pages.ilog2() as usize + 1;
                let rank = |random: &mut Random| {
                    let most = 1 << random.below(digits + 1);
                    random.below(most)
                };
                (0..touches).map(|_| all[rank(&mut random).min(pages - 1)]).collect()
            }
            Self::Shift => {
                let part = (pages / 8).max(1);
                let stay = touches.div_ceil(8).max(1);
                (0..touches)
                    .map(|touch| (touch / stay * part + random.below(part)).min(pages - 1))
                    .map(|page| u32::try_from(page).unwrap_or(0))
                    .collect()
            }
        }
    }
}

/// Seeded randomness: splitmix64. Good enough to scatter touches and to make up text, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which isn't 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let product = u128::from(self.next()) * end as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_every_page_between_them() {
        for (pattern, touches) in [(Pattern::Random, 1000), (Pattern::Sequential, 7)] {
            for threads in 1..4 {
                let orders = pattern.orders(1000, touches, threads, 42);
                assert_eq!(orders.len(), threads);
                let mut all: Vec<u32> = orders.concat();
                all.sort_unstable();
                assert_eq!(all, (0..1000).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_pattern_stays_within_the_memory() {
        for pattern in Pattern::value_variants() {
            for pages in [8, 9, 1000] {
                let orders = pattern.orders(pages, 500, 2, 7);
                assert!(!orders.is_empty() && orders.concat().iter().all(|page| (*page as usize) < pages));
            }
        }
    }

    #[test]
    fn zipf_prefers_few_and_shift_moves_on() {
        let zipf = Pattern::Zipf.orders(1000, 10_000, 1, 3).concat();
        let mut counts = vec![0; 1000];
        zipf.iter().for_each(|page| counts[*page as usize] += 1);
        counts.sort_unstable();
        assert!(counts[900..].iter().sum::<u32>() > 6000, "a tenth has most of it");
        let shift = Pattern::Shift.orders(800, 1600, 1, 3).concat();
        assert!(
            shift[..200].iter().all(|page| *page < 100)
                && shift[200..400].iter().all(|page| (100..200).contains(page))
        );
    }

    #[test]
    fn random_orders_come_from_the_seed() {
        let of = |seed| Pattern::Random.orders(100, 50, 1, seed);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_eq!(of(1)[0].len(), 50);
        assert_ne!(of(1)[0], (0..50).collect::<Vec<_>>());
    }
}
