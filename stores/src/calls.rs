//! What a store was asked for so far.

use std::sync::atomic::{AtomicU64, Ordering};

use userswap_store::Stats;

/// Counts of calls, a page each, as [`Stats`] tells them.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) puts: Count,
    pub(crate) fetches: Count,
    pub(crate) frees: Count,
    pub(crate) full: Count,
    pub(crate) fetch_errors: Count,
    pub(crate) bad_frees: Count,
}

/// One count.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Calls {
    /// Enters them.
    pub(crate) fn tell(&self, stats: &mut Stats) {
        stats.puts = self.puts.get();
        stats.fetches = self.fetches.get();
        stats.frees = self.frees.get();
        stats.full = self.full.get();
        stats.fetch_errors = self.fetch_errors.get();
        stats.bad_frees = self.bad_frees.get();
    }
}
