//! What it costs to find out what of an address space is used.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What was spent on one address space so far.
#[derive(Debug, Default)]
pub struct Probes {
    looked_ns: AtomicU64,
    tried: AtomicU64,
}

impl Probes {
    /// CPU time of looking for memory that nobody told of, in the page table.
    pub fn looking(&self) -> Duration {
        Duration::from_nanos(self.looked_ns.load(Ordering::Relaxed))
    }

    /// Pages that were moved out to see whether they come back.
    pub fn tried_pages(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }

    pub(crate) fn looked(&self, took: Duration) {
        self.looked_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn tried(&self, pages: u64) {
        self.tried.fetch_add(pages, Ordering::Relaxed);
    }
}
