//! A region whose faults the faulting threads serve themselves.

use super::Usage;
use super::region::{Expected, PagedRegionBuilder, RegionError};
use crate::core::PageIndex;
use crate::evict::{EvictError, MovedOut};
use crate::inline::{Helper, Inline, Keeper, Registered, Settings, lacking};
use crate::memory::MemoryError;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use userswap_uffd::{Blocked, Span, page_bytes};

/// An inline region with the threads it needs beside those that fault.
pub(super) struct Signalled(ManuallyDrop<Parts>);

/// In the order in which they end: first nobody moves anything any more, then no fault is served.
struct Parts {
    _keeper: Option<Keeper>,
    _registered: Registered,
    _helper: Helper,
    region: Arc<Inline>,
}

/// Pages brought in with one fault at most, unless said otherwise: what moves at once.
const AROUND: u32 = 64;

impl Signalled {
    pub(super) fn build(builder: PagedRegionBuilder) -> Result<Self, RegionError> {
        if let Some(lacking) = lacking() {
            return Err(RegionError::Lacking(lacking));
        }
        let store = match &builder.engine {
            Some(engine) => Arc::clone(engine.store()),
            None => builder.store,
        };
        let limit = builder.limit.map(|limit| (limit / page_bytes()).max(1));
        let settings = Settings {
            bytes: builder.bytes.next_multiple_of(page_bytes()),
            staging: builder.staging.next_multiple_of(page_bytes()),
            around: builder.around.unwrap_or(AROUND),
            frames: builder.frames,
            limit,
        };
        let region = Inline::new(store, &settings)?;
        let helper = Helper::start(&region)?;
        let registered = Registered::new(&region)?;
        let keeper = match limit {
            Some(limit) => {
                region.watch_from_the_start()?;
                Some(Keeper::start(&region, limit)?)
            }
            None => None,
        };
        let parts = Parts { _keeper: keeper, _registered: registered, _helper: helper, region };
        Ok(Self(ManuallyDrop::new(parts)))
    }

    pub(super) fn region(&self) -> &Arc<Inline> {
        &self.0.region
    }

    pub(super) fn span(&self) -> Span {
        self.region().span()
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.region().as_ptr()
    }

    pub(super) fn evict(&self, span: Span) -> Result<MovedOut, EvictError> {
        self.region().evict(span)
    }

    pub(super) fn bring_in(&self, span: Span) -> Result<u64, MemoryError> {
        self.region().bring_in(span)
    }

    pub(super) fn pin(&self, span: Span) {
        self.region().pin(span);
    }

    pub(super) fn unpin(&self, span: Span) {
        self.region().unpin(span);
    }

    pub(super) fn expect(&self, span: Span, expected: Expected) -> Result<(), MemoryError> {
        let Some(habit) = expected.habit() else { return self.bring_in(span).map(drop) };
        let (first, end) = self.region().pages(span);
        let blocked = Blocked::now();
        self.region().state.lock(&blocked).shard.expect(PageIndex(first), end - first, habit);
        Ok(())
    }

    pub(super) fn discard(&self, span: Span) -> Result<(), MemoryError> {
        self.region().discard(span)
    }

    /// Puts zeros where nothing is.
    pub(super) fn fill(&self, span: Span) -> Result<(), MemoryError> {
        self.region().fill(span)
    }

    /// In pages: in memory, out, standing in slots.
    pub(super) fn usage(&self) -> Usage {
        self.region().usage().unwrap_or_default()
    }
}

impl Drop for Signalled {
    fn drop(&mut self) {
        // In a forked child there are neither the threads nor the memory, and something else may be where it was.
        if self.region().is_here() {
            let region = Arc::clone(self.region());
            // SAFETY: needed because in a child it must not be dropped; this is the one place that drops it, and nothing uses it after.
            unsafe { ManuallyDrop::drop(&mut self.0) };
            region.close();
        }
    }
}
