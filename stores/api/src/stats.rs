//! What a store holds, and what it did when asked to tidy up.

/// What a store holds now, and what it has done since it was made.
///
/// The gauges of an empty store are 0, but for [`memory_bytes`](Stats::memory_bytes), which is then a small constant at most
/// once [`maintain`](crate::Store::maintain) has nothing more to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Gauge: stored pages, same-filled ones included.
    pub pages: u64,
    /// Gauge: `pages` × page size: what they were before.
    pub raw_bytes: u64,
    /// Gauge: the stored objects' bytes, headers and tags included, rounding and free space not.
    pub stored_bytes: u64,
    /// Gauge: all memory the store holds from the operating system for pages: objects, rounding, free space, index.
    pub memory_bytes: u64,
    /// Gauge: bytes the store takes of a file or a device, free space within that it keeps for later puts included.
    pub device_bytes: u64,
    /// Gauge: stored pages that are one word repeated, and take no object.
    pub same_filled_pages: u64,
    /// Gauge: stored pages kept as they came since compressing didn't pay.
    pub incompressible_pages: u64,
    /// Counter: pages put.
    pub puts: u64,
    /// Counter: pages fetched, ready or completed.
    pub fetches: u64,
    /// Counter: pages freed.
    pub frees: u64,
    /// Counter: puts refused because the store was full.
    pub full: u64,
    /// Counter: fetches that failed.
    pub fetch_errors: u64,
    /// Counter: handles freed that named nothing: the caller broke the contract.
    pub bad_frees: u64,
}

impl Stats {
    /// All the store takes, in memory and on devices.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.memory_bytes.saturating_add(self.device_bytes)
    }

    /// Raw bytes a byte of memory holds, same-filled pages left out of the raw bytes; 0 for an empty store.
    #[must_use]
    pub fn ratio(&self, page_size: usize) -> f64 {
        let same_filled = self.same_filled_pages.saturating_mul(page_size as u64);
        let raw = self.raw_bytes.saturating_sub(same_filled);
        if self.memory_bytes == 0 { 0.0 } else { raw as f64 / self.memory_bytes as f64 }
    }
}

/// How much background work [`maintain`](crate::Store::maintain) may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Budget {
    /// Bytes of objects moved, recompressed or written, about.
    pub bytes: u64,
}

impl Budget {
    /// All there is to do.
    pub const UNLIMITED: Self = Self { bytes: u64::MAX };

    /// About so many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self { bytes }
    }
}

/// What [`maintain`](crate::Store::maintain) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// Bytes of objects moved, recompressed or written.
    pub moved_bytes: u64,
    /// Bytes of memory given back to the operating system.
    pub released_bytes: u64,
    /// There is more to do, the budget ran out.
    pub more: bool,
}
