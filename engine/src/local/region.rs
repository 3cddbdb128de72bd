//! A region of this process's memory that pages itself.

use super::served::Served;
use super::signalled::Signalled;
use crate::core::{Counts, Habit};
use crate::engine::Engine;
use crate::evict::{EvictError, MovedOut};
use crate::memory::MemoryError;
use crate::space::Space;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use userswap_store::Store;
use userswap_uffd::{Error, Features, Span, page_size};

/// Memory that may be larger than the machine has: what isn't used for a while lives in a store, and comes back when touched.
///
/// ```no_run
/// # fn page(store: std::sync::Arc<dyn userswap_store::Store>) -> Result<(), Box<dyn std::error::Error>> {
/// let mut region = userswap_engine::PagedRegion::builder(1 << 30, store).limit(64 << 20).build()?;
/// region.as_mut_slice()[12345] = 67;
/// region.evict(..)?;
/// assert_eq!(region.as_slice()[12345], 67);
/// # Ok(()) }
/// ```
///
/// # Two ways to serve a fault
/// By default **handler threads** of an [`Engine`] do: a thread that touches a page that is out sleeps until one of them has put it in place.
/// With [`inline`](PagedRegionBuilder::inline) the **faulting thread** does it itself, in its handler of SIGBUS, which costs no wake-ups and so
/// half as much. What can be done with a region is the same. What differs:
///
/// | | handler threads | inline |
/// |---|---|---|
/// | a system call on a page that is out | waits, where [`serves_system_calls`](Self::serves_system_calls) | **fails with `EFAULT`**: [`pin`](Self::pin) the range first |
/// | threads | one a CPU, for all regions of an engine | one a region, which mostly sleeps |
/// | SIGBUS | as the program likes | ours first, then as it was; no thread may block it |
/// | madvise, mremap, munmap on the range | as on any memory | never: [`advise`](Self::advise) |
/// | privilege | for faults inside system calls | none |
///
/// # System calls
/// **A system call whose buffer is out fails with `EFAULT`** if the region is inline, or where the process may not take faults that happen
/// inside the kernel (`vm.unprivileged_userfaultfd=0` and no privilege). `read(2)` into such a region, `write(2)` from it, anything that takes a
/// pointer. [`serves_system_calls`](Self::serves_system_calls) tells; [`pin`](Self::pin) the range for the time of the call.
/// Libraries make system calls, too: a standard library's file read straight into the region is one.
///
/// # Access from several threads
/// A region is memory, and Rust's rules are those of any memory: [`as_slice`](Self::as_slice) for readers, [`as_mut_slice`](Self::as_mut_slice) for one
/// writer, parts of it for several (`split_at_mut`), [`as_ptr`](Self::as_ptr) for whoever keeps order by other means. That pages leave and come
/// back behind a reference is no concern of theirs: a page has the same bytes when it is back, a store to a page that is leaving happens when it
/// is back, and no load sees anything that wasn't stored. Moving out, bringing in, pins and advice take `&self` and may be
/// called by any thread while others read and write; only dropping contents takes `&mut self`, for it changes bytes.
///
/// # Forking
/// Forked children don't have the region mapped. Serving them from here can't be made safe: the C library's fork holds the
/// allocator's locks until the kernel's event of it has been read, by a thread that may be waiting for just those locks.
pub struct PagedRegion {
    way: Way,
}

enum Way {
    Served(Served),
    Signalled(Signalled),
}

/// Calls the same method of either.
macro_rules! either {
    ($region:expr, $way:ident => $call:expr) => {
        match &$region.way {
            Way::Served($way) => $call,
            Way::Signalled($way) => $call,
        }
    };
}

/// Why a region could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Threads or descriptors could not be had.
    #[error("starting the engine")]
    Start(#[from] io::Error),
    /// The range could not be taken into care.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel is too old for an inline region.
    #[error("this kernel has no {0:?} of userfaultfd, which an inline region needs")]
    Lacking(Features),
}

/// Settings of a [`PagedRegion`].
pub struct PagedRegionBuilder {
    pub(super) bytes: u64,
    pub(super) store: Arc<dyn Store>,
    pub(super) engine: Option<Arc<Engine>>,
    pub(super) limit: Option<u64>,
    pub(super) staging: u64,
    pub(super) around: Option<u32>,
    pub(super) frames: u64,
    pub(super) inline: bool,
}

impl PagedRegionBuilder {
    /// Has the threads that fault serve their faults themselves. See [`PagedRegion`] for what that means for a program.
    #[must_use]
    pub fn inline(mut self) -> Self {
        self.inline = true;
        self
    }

    /// Keep at most about this many bytes of the region in memory. With handler threads another thread looks a hundred times a second and moves
    /// out what is over. Inline, it is woken when there is too much, and who faults meanwhile waits for a moment. Without a limit only
    /// [`PagedRegion::evict`] moves anything out.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Use this engine's threads and store rather than ones of its own; inline, its store.
    #[must_use]
    pub fn engine(mut self, engine: Arc<Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Address space for pages on their way out; 16 MiB unless said otherwise.
    #[must_use]
    pub fn staging(mut self, bytes: u64) -> Self {
        self.staging = bytes;
        self
    }

    /// Pages brought in with one fault at most, for a thread that goes through memory in order; 32 unless said otherwise, inline 64, which is the
    /// most there. An [`engine`](Self::engine) that was given has a setting of its own.
    #[must_use]
    pub fn around(mut self, pages: u32) -> Self {
        self.around = Some(pages.max(1));
        self
    }

    /// Inline: bytes of memory that what moved out leaves behind for what comes in, which spares the kernel finding new memory for it; 2 MiB
    /// unless said otherwise. Counts as memory of the process, not of the region.
    #[must_use]
    pub fn frames(mut self, bytes: u64) -> Self {
        self.frames = bytes;
        self
    }

    /// Maps the memory.
    ///
    /// # Errors
    /// When the kernel refuses a userfaultfd, memory or threads.
    pub fn build(self) -> Result<PagedRegion, RegionError> {
        let way = if self.inline {
            Way::Signalled(Signalled::build(self)?)
        } else {
            Way::Served(Served::build(self)?)
        };
        Ok(PagedRegion { way })
    }
}

impl PagedRegion {
    /// A region of `bytes` (rounded up to pages) whose cold pages go to `store`.
    pub fn builder(bytes: u64, store: Arc<dyn Store>) -> PagedRegionBuilder {
        PagedRegionBuilder {
            bytes,
            store,
            engine: None,
            limit: None,
            staging: 16 << 20,
            around: None,
            frames: 2 << 20,
            inline: false,
        }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: needed because the memory isn't Rust's. The mapping is readable, zeroed at first, and lives as long as `self`.
        // Pages leave and come back behind the reference, but with the bytes they had: no load through it ever sees a change
        // that wasn't stored through a reference. A page that is lost is a SIGBUS, not another value.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// Its bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference. A store to a page that is leaving waits until it is
        // back; the engine reads a page's bytes only after it has left this range.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }

    /// Where it starts, for access shared between threads by means of the caller's own.
    pub fn as_ptr(&self) -> *mut u8 {
        either!(self, way => way.as_ptr())
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.range().bytes()
    }

    /// Whether it has no bytes; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the threads that fault serve their faults themselves.
    pub fn is_inline(&self) -> bool {
        matches!(self.way, Way::Signalled(_))
    }

    /// Whether system calls on moved-out parts wait for them, rather than fail with `EFAULT`.
    pub fn serves_system_calls(&self) -> bool {
        match &self.way {
            Way::Served(way) => way.serves_system_calls(),
            Way::Signalled(_) => false,
        }
    }

    /// Moves out what is resident of a range of bytes (whole pages of it), pinned parts aside.
    ///
    /// # Errors
    /// When it had to stop early; nothing is lost.
    pub fn evict(&self, range: impl RangeBounds<usize>) -> Result<MovedOut, EvictError> {
        match self.span(range) {
            Some(span) => either!(self, way => way.evict(span)),
            None => Ok(MovedOut::default()),
        }
    }

    /// Brings a range of bytes back. Returns how many pages came. Under a limit they may leave again at any time: [`pin`](Self::pin) them for a
    /// system call.
    ///
    /// # Errors
    /// When pages of it are lost, or the region is being given up.
    pub fn bring_in(&self, range: impl RangeBounds<usize>) -> Result<u64, MemoryError> {
        match self.span(range) {
            Some(span) => either!(self, way => way.bring_in(span)),
            None => Ok(0),
        }
    }

    /// Brings a range of bytes back and keeps it in memory until the pin is dropped: for system calls, and for whatever must not fault.
    ///
    /// Pages that were never touched are not in memory yet; inline, their first touch by a system call fails as well, so they are filled with zeros now.
    /// With handler threads a limit may move pinned pages out all the same: what touches them waits.
    ///
    /// # Errors
    /// As [`bring_in`](Self::bring_in).
    pub fn pin(&self, range: impl RangeBounds<usize>) -> Result<Pinned<'_>, MemoryError> {
        let span = self.span(range);
        if let Some(span) = span {
            either!(self, way => way.pin(span));
        }
        let pinned = Pinned { region: self, span };
        if let Some(span) = span {
            either!(self, way => way.bring_in(span))?;
            if let Way::Signalled(way) = &self.way {
                way.fill(span)?;
            }
        }
        Ok(pinned)
    }

    /// Says how a range of bytes will be used.
    ///
    /// # Errors
    /// [`Expected::WillNeed`]: as [`bring_in`](Self::bring_in).
    pub fn advise(&self, range: impl RangeBounds<usize>, expected: Expected) -> Result<(), MemoryError> {
        match self.span(range) {
            Some(span) => either!(self, way => way.expect(span, expected)),
            None => Ok(()),
        }
    }

    /// Forgets the contents of a range of bytes (whole pages of it): it reads as zeros, and takes no memory anywhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> Result<(), MemoryError> {
        // SAFETY: needed because it changes bytes; `&mut self` says that nobody else uses any.
        unsafe { self.discard_shared(range) }
    }

    /// As [`discard`](Self::discard), for regions that several threads use by [`as_ptr`](Self::as_ptr).
    ///
    /// # Safety
    /// It writes zeros: nobody has a reference to any of these pages, or reads or writes them meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub unsafe fn discard_shared(&self, range: impl RangeBounds<usize>) -> Result<(), MemoryError> {
        match self.span(range) {
            Some(span) => either!(self, way => way.discard(span)),
            None => Ok(()),
        }
    }

    /// What is where.
    pub fn usage(&self) -> RegionUsage {
        let usage = either!(self, way => way.usage());
        let page = page_size() as u64;
        RegionUsage {
            resident_bytes: usage.resident * page,
            out_bytes: usage.out * page,
            standby_bytes: usage.standing * page,
        }
    }

    /// How often each transition of a page's state was taken.
    pub fn counts(&self) -> &Counts {
        match &self.way {
            Way::Served(way) => way.space().counts(),
            Way::Signalled(way) => way.region().counts(),
        }
    }

    /// Fetches that failed, and pages that are lost for it.
    pub fn troubles(&self) -> (u64, u64) {
        match &self.way {
            Way::Served(way) => way.space().troubles(),
            Way::Signalled(way) => way.region().troubles(),
        }
    }

    /// The address space as the engine knows it, if handler threads serve it.
    pub fn space(&self) -> Option<&Arc<Space>> {
        match &self.way {
            Way::Served(way) => Some(way.space()),
            Way::Signalled(_) => None,
        }
    }

    fn range(&self) -> Span {
        either!(self, way => way.span())
    }

    fn span(&self, range: impl RangeBounds<usize>) -> Option<Span> {
        let page = page_size();
        let from = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len(),
        };
        let (from, to) = (from / page * page, to.min(self.len()).next_multiple_of(page));
        let base = self.range().start();
        (from < to).then(|| Span::between(base + from as u64, base + to as u64).ok()).flatten()
    }
}

/// How a range will be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Expected {
    /// Nothing is known: fault-around finds out.
    Unknown,
    /// In order, from low addresses to high ones.
    Sequential,
    /// In no order.
    Random,
    /// Soon: it is brought in now.
    WillNeed,
}

impl Expected {
    /// What is to be remembered; `None` if it is to be brought in instead.
    pub(super) fn habit(self) -> Option<Habit> {
        match self {
            Self::Unknown => Some(Habit::Unknown),
            Self::Sequential => Some(Habit::Sequential),
            Self::Random => Some(Habit::Random),
            Self::WillNeed => None,
        }
    }
}

/// Keeps a range of a region in memory until it is dropped.
#[must_use = "the range may leave again when this is dropped"]
pub struct Pinned<'a> {
    region: &'a PagedRegion,
    span: Option<Span>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if let Some(span) = self.span {
            either!(self.region, way => way.unpin(span));
        }
    }
}

/// What is where of a region, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionUsage {
    /// In memory.
    pub resident_bytes: u64,
    /// Out.
    pub out_bytes: u64,
    /// Of these, still uncompressed in slots.
    pub standby_bytes: u64,
}
