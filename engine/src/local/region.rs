//! A region of this process's memory that pages itself.

use super::LocalReach;
use crate::engine::{Engine, SpaceId};
use crate::evict::{EvictError, Keep, MovedOut};
use crate::memory::MemoryError;
use crate::pacer::Pacer;
use crate::space::Space;
use crate::watched::Watched;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use userswap_store::Store;
use userswap_uffd::own::madvise;
use userswap_uffd::{Advice, Error, Features, Mapping, OpenMode, Protection, Span, Uffd, page_size};

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
/// # System calls
/// Where the process may not take faults that happen inside the kernel (`vm.unprivileged_userfaultfd=0` and no privilege), a
/// system call on a buffer that is out fails with `EFAULT`: [`bring_in`](Self::bring_in) the range first.
/// [`serves_system_calls`](Self::serves_system_calls) tells.
///
/// # Forking
/// Forked children don't have the region mapped. Serving them from here can't be made safe: the C library's fork holds the
/// allocator's locks until the kernel's event of it has been read, by a thread that may be waiting for just those locks.
pub struct PagedRegion {
    // Order matters: the engine lets go of the address space before the memory goes.
    keeper: Option<Keeper>,
    engine: Arc<Engine>,
    id: SpaceId,
    space: Arc<Space>,
    mapping: Mapping,
    whole: bool,
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
}

/// Settings of a [`PagedRegion`].
pub struct PagedRegionBuilder {
    bytes: u64,
    store: Arc<dyn Store>,
    engine: Option<Arc<Engine>>,
    limit: Option<u64>,
    staging: u64,
}

impl PagedRegionBuilder {
    /// Keep at most about this many bytes of the region in memory: a thread looks a hundred times a second and moves out
    /// what is over. Without a limit only [`PagedRegion::evict`] moves anything out.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Use this engine's threads and store rather than ones of its own.
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

    /// Maps the memory.
    ///
    /// # Errors
    /// When the kernel refuses a userfaultfd, memory or threads.
    pub fn build(self) -> Result<PagedRegion, RegionError> {
        let wanted = Features::EVENT_REMAP
            | Features::EVENT_REMOVE
            | Features::EVENT_UNMAP
            | Features::THREAD_ID
            | Features::MOVE
            | Features::POISON;
        let (uffd, whole) = open(wanted)?;
        let page = page_size() as u64;
        let mapping = Mapping::new(self.bytes.next_multiple_of(page), Protection::READ_WRITE)?;
        // Else a child would read zeros from what is out.
        // SAFETY: needed because a child won't have the range; it is new, and the documentation says so.
        unsafe { madvise(mapping.span(), Advice::DontFork)? };
        let engine = match self.engine {
            Some(engine) => engine,
            None => Arc::new(Engine::builder(self.store).build()?),
        };
        let reach = LocalReach::new(self.staging.next_multiple_of(page))?;
        let (id, space) = engine.adopt(Arc::new(Watched::new(uffd, reach)?))?;
        space.manage(mapping.span())?;
        let keeper = match self.limit {
            Some(limit) => Some(Keeper::start(Arc::clone(&space), limit / page)?),
            None => None,
        };
        Ok(PagedRegion { keeper, engine, id, space, mapping, whole })
    }
}

/// The most this process is allowed: with faults inside system calls, or without. Says whether those are served.
fn open(wanted: Features) -> Result<(Uffd, bool), Error> {
    Uffd::open(wanted, OpenMode::Auto)
        .map(|uffd| (uffd, true))
        .or_else(|_| Ok((Uffd::open(wanted, OpenMode::UserModeOnly)?, false)))
}

impl PagedRegion {
    /// A region of `bytes` (rounded up to pages) whose cold pages go to `store`.
    pub fn builder(bytes: u64, store: Arc<dyn Store>) -> PagedRegionBuilder {
        PagedRegionBuilder { bytes, store, engine: None, limit: None, staging: 16 << 20 }
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: needed because the memory isn't Rust's. The mapping is readable, zeroed at first, and lives as long as `self`.
        // Pages leave and come back behind the reference, but with the bytes they had: no load through it ever sees a change
        // that wasn't stored through a reference. A page that is lost is a SIGBUS, not another value.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().as_ptr(), self.len()) }
    }

    /// Its bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference. A store to a page that is leaving waits until it is
        // back; the engine reads a page's bytes only after it has left this range.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_ptr().as_ptr(), self.len()) }
    }

    /// Where it starts, for access shared between threads by means of the caller's own.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr().as_ptr()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.span().bytes()
    }

    /// Whether it has no bytes; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether system calls on moved-out parts wait for them, rather than fail with `EFAULT`.
    pub fn serves_system_calls(&self) -> bool {
        self.whole
    }

    /// Moves out what is resident of a range of bytes (whole pages of it).
    ///
    /// # Errors
    /// When it had to stop early; nothing is lost.
    pub fn evict(&self, range: impl std::ops::RangeBounds<usize>) -> Result<MovedOut, EvictError> {
        match self.span(range) {
            Some(span) => self.space.move_out(span, u64::MAX, Keep::Stored),
            None => Ok(MovedOut::default()),
        }
    }

    /// Brings a range of bytes back. Returns how many pages came.
    ///
    /// # Errors
    /// When the region is being given up.
    pub fn bring_in(&self, range: impl std::ops::RangeBounds<usize>) -> Result<u64, MemoryError> {
        match self.span(range) {
            Some(span) => self.space.bring_back(span, 64),
            None => Ok(0),
        }
    }

    /// What is where.
    pub fn usage(&self) -> RegionUsage {
        let usage = self.space.usage();
        let page = page_size() as u64;
        RegionUsage {
            resident_bytes: Pacer::resident(&self.space).unwrap_or(0) * page,
            out_bytes: usage.out * page,
            standby_bytes: usage.standby * page,
        }
    }

    /// The address space as the engine knows it.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    fn span(&self, range: impl std::ops::RangeBounds<usize>) -> Option<Span> {
        use std::ops::Bound;
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
        let base = self.mapping.span().start();
        (from < to).then(|| Span::between(base + from as u64, base + to as u64).ok()).flatten()
    }
}

impl Drop for PagedRegion {
    fn drop(&mut self) {
        self.keeper = None;
        // Else unmapping it would wait for somebody to read of it, and whoever still holds the space doesn't.
        let _ = self.space.memory().unregister(self.mapping.span());
        self.engine.forget(self.id);
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

/// The thread that holds a region under its limit.
struct Keeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    const TICK: Duration = Duration::from_millis(10);

    fn start(space: Arc<Space>, limit: u64) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("userswap-keeper".into()).spawn(move || {
            let mut pacer = Pacer::new();
            let (stop, changed) = &*stopped;
            let mut stop = stop.lock();
            while !*stop {
                parking_lot::MutexGuard::unlocked(&mut stop, || {
                    if let Err(error) = pacer.hold(&space, limit, Keep::Stored) {
                        tracing::warn!(%error, "holding a region under its limit");
                    }
                });
                if !*stop {
                    changed.wait_for(&mut stop, Self::TICK);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
