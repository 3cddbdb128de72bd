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
}

impl Pattern {
    /// As in arguments and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }

    /// What each of `threads` threads touches, of a memory of `pages` pages. Random touches are `touches` in all, and the
    /// same for the same seed; sequential ones are all pages, a part to each thread.
    pub(crate) fn orders(self, pages: usize, touches: usize, threads: usize, seed: u64) -> Vec<Vec<u32>> {
        let mut all: Vec<u32> = (0..u32::try_from(pages).unwrap_or(u32::MAX)).collect();
        if self == Self::Random {
            Random::new(seed).shuffle(&mut all);
            all.truncate(touches.max(1));
        }
        let share = all.len().div_ceil(threads.max(1)).max(1);
        all.chunks(share).map(<[u32]>::to_vec).collect()
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
    fn random_orders_come_from_the_seed() {
        let of = |seed| Pattern::Random.orders(100, 50, 1, seed);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_eq!(of(1)[0].len(), 50);
        assert_ne!(of(1)[0], (0..50).collect::<Vec<_>>());
    }
}
