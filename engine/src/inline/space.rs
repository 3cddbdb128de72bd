//! An inline region: its memory, its books, and how it is changed from outside.

use super::kit::Kit;
use super::memory::InlineMemory;
use super::serve::{Means, Served};
use super::state::State;
use crate::core::{Counts, PageIndex, PageState, RegionId, Shard};
use crate::directory::pages_in;
use crate::local::Usage;
use crate::memory::MemoryError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use userswap_store::{OwnerId, PageKey, Store};
use userswap_uffd::{Bell, Blocked, Error, SignalLock, Span, page_bytes, page_size};

/// One inline region. See [the module](super).
pub(crate) struct Inline {
    pub(super) memory: InlineMemory,
    pub(super) store: Arc<dyn Store>,
    pub(crate) state: SignalLock<State>,
    pub(super) kits: Vec<SignalLock<Kit>>,
    /// Rung when a page's state changed that somebody may wait for.
    pub(super) changed: Bell,
    /// Rung when the helper has something to do.
    pub(super) errands: Bell,
    /// Rung when there is more in memory than there should be.
    pub(super) pressure: Bell,
    /// Rung when something was moved out.
    pub(super) room: Bell,
    /// One mover at a time. No handler takes it.
    pub(super) mover: Mutex<Moving>,
    pub(super) registered: AtomicBool,
    pub(super) ending: AtomicBool,
    pub(super) around: u32,
    pub(super) limit: Option<u64>,
    /// Whether the store can mostly be asked by handlers.
    pub(super) in_handlers: bool,
    pub(super) zeros: Vec<u8>,
    owner: OwnerId,
    counts: Counts,
}

/// What a mover keeps from one move to the next.
#[derive(Default)]
pub(super) struct Moving {
    /// What must not move, and how many asked for it.
    pub(super) pinned: Vec<(u32, u32)>,
    /// Where the keeper goes on.
    pub(super) hand: u32,
}

/// How an inline region is made.
pub(crate) struct Settings {
    /// Its length.
    pub(crate) bytes: u64,
    /// For slots.
    pub(crate) staging: u64,
    /// Pages brought in with one fault at most.
    pub(crate) around: u32,
    /// Bytes of frames kept for pages that come in.
    pub(crate) frames: u64,
    /// Pages in memory at most.
    pub(crate) limit: Option<u64>,
}

/// Pages moved at once.
const SLOT_PAGES: u32 = 64;

impl Inline {
    /// Maps one. Its faults are served once it is [registered](super::Registered).
    pub(crate) fn new(store: Arc<dyn Store>, settings: &Settings) -> Result<Arc<Self>, Error> {
        /// Engines count their address spaces from below.
        static OWNERS: AtomicU64 = AtomicU64::new(1 << 62);
        let memory = InlineMemory::new(settings.bytes, settings.staging, SLOT_PAGES)?;
        let counts = Counts::default();
        let pages = pages_in(memory.span().len());
        let shard = Shard::new(RegionId(0), pages, page_bytes(), memory.span().start(), counts.clone());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let kits = u32::try_from((2 * cpus).clamp(4, 16)).unwrap_or(4);
        let around = settings.around.clamp(1, SLOT_PAGES);
        let frames = u32::try_from(settings.frames / page_bytes()).unwrap_or(u32::MAX);
        let mut inline = Self {
            state: SignalLock::new(State::new(shard, kits, memory.slots(), frames)),
            memory,
            kits: (0..kits).map(|_| SignalLock::new(Kit::new(around))).collect(),
            changed: Bell::default(),
            errands: Bell::default(),
            pressure: Bell::default(),
            room: Bell::default(),
            mover: Mutex::new(Moving::default()),
            registered: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            around,
            limit: settings.limit,
            in_handlers: store.capabilities().fetches_in_handlers,
            store,
            zeros: std::hint::black_box(vec![1; around as usize * page_size()]),
            owner: OwnerId(OWNERS.fetch_add(1, Ordering::Relaxed)),
            counts,
        };
        // Written to, so that they are there when a handler has them copied.
        inline.zeros.fill(0);
        Ok(Arc::new(inline))
    }

    /// Where it is.
    pub(crate) fn span(&self) -> Span {
        self.memory.span()
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// How often each transition was taken.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether this is the process it was made in.
    pub(crate) fn is_here(&self) -> bool {
        self.memory.is_here()
    }

    /// Fetches that failed, and pages lost for it.
    pub(crate) fn troubles(&self) -> (u64, u64) {
        let blocked = Blocked::now();
        let state = self.state.lock(&blocked);
        (state.errors, state.poisoned)
    }

    /// Pages in memory, pages out, and of these those that stand in slots.
    pub(crate) fn usage(&self) -> Result<Usage, MemoryError> {
        let resident = if self.registered.load(Ordering::Acquire) {
            None
        } else {
            let mut present = Vec::new();
            self.memory.resident(self.span(), &mut present)?;
            Some(present.iter().filter(|present| **present).count() as u64)
        };
        let blocked = Blocked::now();
        let state = self.state.lock(&blocked);
        let standing = state.slots.iter().map(|slot| u64::from(slot.count)).sum();
        Ok(Usage {
            resident: resident.unwrap_or(state.resident),
            out: u64::from(state.shard.out()),
            standing,
        })
    }

    /// The identity the bytes of a page are stored under.
    pub(super) fn key(&self, page: PageIndex, generation: crate::core::Generation) -> PageKey {
        let base = self.span().start() / page_bytes();
        PageKey { owner: self.owner, page: base + u64::from(page.0), generation: generation.get() }
    }

    /// The pages of a part of the range.
    pub(crate) fn pages(&self, span: Span) -> (u32, u32) {
        let first = pages_in(span.start() - self.span().start());
        (first, first + pages_in(span.len()))
    }

    /// The range of some pages.
    pub(super) fn range(&self, first: u32, pages: u32) -> Result<Span, MemoryError> {
        let start = self.span().start() + u64::from(first) * page_bytes();
        Span::from_pages(start, u64::from(pages)).map_err(|_| MemoryError::Gone)
    }

    /// Brings back what is out of a range. How many pages came.
    ///
    /// # Errors
    /// When pages are lost, or this is a forked child.
    pub(crate) fn bring_in(&self, span: Span) -> Result<u64, MemoryError> {
        if !self.is_here() {
            return Err(MemoryError::Gone);
        }
        let (first, end) = self.pages(span);
        let mut brought = 0;
        let mut at = first;
        while at < end {
            let page = PageIndex(at);
            let blocked = Blocked::now();
            let seen = self.changed.now();
            let state = self.state.lock(&blocked).shard.state(page);
            match state {
                PageState::Absent | PageState::Resident | PageState::Zero => at += 1,
                PageState::Stored(_) | PageState::Standby(_) => {
                    let before = self.state.lock(&blocked).shard.out();
                    self.serve(page, false, Means::Thread { all: Some(end - at) }, &blocked);
                    let after = self.state.lock(&blocked).shard.out();
                    brought += u64::from(before.saturating_sub(after));
                }
                PageState::Poisoned(_) => {
                    let reason = "a page is lost".into();
                    return Err(MemoryError::Refused { doing: "bringing in", span, reason });
                }
                _ => self.changed.wait(seen, Some(PATIENCE)),
            }
        }
        Ok(brought)
    }

    /// Puts zeros where no page is, in a range of which nothing is out.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn fill(&self, span: Span) -> Result<(), MemoryError> {
        let (first, end) = self.pages(span);
        if !self.registered.load(Ordering::Acquire) {
            return self.memory.populate(span);
        }
        for page in (first..end).map(PageIndex) {
            loop {
                let blocked = Blocked::now();
                let state = self.state.lock(&blocked).shard.state(page);
                if state == PageState::Resident {
                    break;
                }
                if self.serve(page, true, Means::Thread { all: None }, &blocked) == Served::Lost {
                    let reason = "a page can't be put there".into();
                    return Err(MemoryError::Refused { doing: "filling", span, reason });
                }
            }
        }
        Ok(())
    }

    /// Drops a range's contents: it reads as zeros.
    ///
    /// # Errors
    /// When the kernel refuses, or this is a forked child.
    pub(crate) fn discard(&self, span: Span) -> Result<(), MemoryError> {
        if !self.is_here() {
            return Err(MemoryError::Gone);
        }
        let (first, end) = self.pages(span);
        let mut lost = crate::core::Lost::with_capacity((end - first) as usize);
        let _mover = self.mover.lock();
        let blocked = Blocked::now();
        loop {
            let seen = self.changed.now();
            let mut state = self.state.lock(&blocked);
            state.barred = true;
            if state.installs == 0 {
                let was = (first..end)
                    .filter(|page| state.shard.state(PageIndex(*page)) == PageState::Resident)
                    .count() as u64;
                state.shard.remove(PageIndex(first), end - first, &mut lost);
                state.shard.settle_removed(PageIndex(first), end - first, &|_| false);
                state.resident = state.resident.saturating_sub(was);
                // The handles are freed here.
                let handles = std::mem::take(&mut lost.handles);
                state.settle(&mut lost);
                lost.handles = handles;
                break;
            }
            drop(state);
            self.changed.wait(seen, Some(PATIENCE));
        }
        let dropped = self.memory.drop_contents(span);
        self.state.lock(&blocked).barred = false;
        self.changed.ring();
        for (handle, _) in lost.handles {
            self.store.free(&[handle]);
        }
        dropped
    }

    /// Frees what pages that came back left in the store.
    pub(super) fn free_what_came_back(&self, blocked: &Blocked, freed: &mut Vec<userswap_store::Handle>) {
        {
            let mut state = self.state.lock(blocked);
            freed.extend_from_slice(&state.freed);
            state.freed.clear();
        }
        if !freed.is_empty() {
            self.changed.ring();
            self.store.free(freed);
            freed.clear();
        }
    }

    /// Keeps a range from being moved out. Undone by [`unpin`](Self::unpin).
    pub(crate) fn pin(&self, span: Span) {
        let pages = self.pages(span);
        self.mover.lock().pinned.push(pages);
    }

    /// One pin less.
    pub(crate) fn unpin(&self, span: Span) {
        let pages = self.pages(span);
        let mut mover = self.mover.lock();
        if let Some(at) = mover.pinned.iter().position(|pinned| *pinned == pages) {
            mover.pinned.swap_remove(at);
        }
    }

    /// The end: everything out is given up. Nobody touches the region any more.
    pub(crate) fn close(&self) {
        let mut lost = crate::core::Lost::default();
        let blocked = Blocked::now();
        let mut freed = Vec::with_capacity(super::state::FREED);
        self.free_what_came_back(&blocked, &mut freed);
        let out = self.state.lock(&blocked).shard.out() as usize;
        lost.handles.reserve(out);
        lost.slots.reserve(out);
        self.state.lock(&blocked).shard.clear(&mut lost);
        drop(blocked);
        for (handle, _) in lost.handles {
            self.store.free(&[handle]);
        }
    }
}

/// Nobody waits longer without looking again.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);
