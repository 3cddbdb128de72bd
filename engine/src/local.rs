//! The own process: a region of memory that pages itself.

pub(crate) mod reach;
mod region;
mod served;
mod signalled;

pub use reach::LocalReach;
pub use region::{Expected, PagedRegion, PagedRegionBuilder, Pinned, RegionError, RegionUsage};

/// What is where of a region, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// In memory.
    pub(crate) resident: u64,
    /// Out.
    pub(crate) out: u64,
    /// Of these, in slots.
    pub(crate) standing: u64,
}
