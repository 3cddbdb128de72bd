//! How old the pages of each tier are, as the background work finds them on its way.

use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds below which a page belongs to a bucket, and the bucket's name. The rest is older.
const BUCKETS: [(u32, &str); 4] =
    [(10, "under_10s"), (60, "under_1m"), (600, "under_10m"), (u32::MAX, "older")];

/// Counts by tier, of the last time around.
pub(super) struct Ages(Box<[[AtomicU64; BUCKETS.len()]]>);

/// Counts of a time around that isn't over.
#[derive(Default)]
pub(super) struct Count(Vec<[u64; BUCKETS.len()]>);

impl Ages {
    pub(super) fn new(tiers: usize) -> Self {
        Self((0..tiers).map(|_| Default::default()).collect())
    }

    pub(super) fn publish(&self, count: &Count) {
        for (tier, ages) in self.0.iter().enumerate() {
            for (bucket, age) in ages.iter().enumerate() {
                let pages = count.0.get(tier).map_or(0, |of_tier| of_tier[bucket]);
                age.store(pages, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn tell(&self, tier: usize, tell: &mut dyn FnMut(&str, u64)) {
        for ((_, name), pages) in BUCKETS.iter().zip(self.0.get(tier).into_iter().flatten()) {
            tell(&format!("tier{tier}_pages_{name}"), pages.load(Ordering::Relaxed));
        }
    }
}

impl Count {
    pub(super) fn count(&mut self, tier: usize, unused: u32) {
        if tier >= self.0.len() {
            self.0.resize(tier + 1, [0; BUCKETS.len()]);
        }
        let bucket = BUCKETS.iter().position(|(below, _)| unused < *below).unwrap_or(BUCKETS.len() - 1);
        self.0[tier][bucket] += 1;
    }
}
