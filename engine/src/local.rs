//! The own process: a region of memory that pages itself.

mod reach;
mod region;

pub use reach::LocalReach;
pub use region::{PagedRegion, PagedRegionBuilder, RegionError, RegionUsage};
