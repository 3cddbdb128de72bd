//! A region whose faults an engine's handler threads serve.

use super::region::{Expected, PagedRegionBuilder, RegionError};
use super::{LocalReach, Usage};
use crate::core::PageIndex;
use crate::engine::{Engine, SpaceId};
use crate::evict::{EvictError, Keep, MovedOut};
use crate::memory::MemoryError;
use crate::pacer::Pacer;
use crate::space::Space;
use crate::watched::{Watched, refused};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use userswap_uffd::own::madvise;
use userswap_uffd::{Advice, Error, Features, Mapping, OpenMode, Protection, Span, Uffd, page_size};

/// The memory, and the address space it is in the engine's care by.
pub(super) struct Served {
    // Order matters: the engine lets go of the address space before the memory goes.
    keeper: Option<Keeper>,
    engine: Arc<Engine>,
    id: SpaceId,
    space: Arc<Space>,
    mapping: Mapping,
    whole: bool,
    /// What `evict` leaves alone.
    pinned: Mutex<Vec<Span>>,
}

impl Served {
    pub(super) fn build(builder: PagedRegionBuilder) -> Result<Self, RegionError> {
        let wanted = Features::EVENT_REMAP
            | Features::EVENT_REMOVE
            | Features::EVENT_UNMAP
            | Features::THREAD_ID
            | Features::MOVE
            | Features::POISON;
        let (uffd, whole) = open(wanted)?;
        let page = page_size() as u64;
        let mapping = Mapping::new(builder.bytes.next_multiple_of(page), Protection::READ_WRITE)?;
        // Else a child would read zeros from what is out.
        // SAFETY: needed because a child won't have the range; it is new, and the documentation says so.
        unsafe { madvise(mapping.span(), Advice::DontFork)? };
        let engine = match builder.engine {
            Some(engine) => engine,
            None => {
                let mut engine = Engine::builder(builder.store);
                if let Some(pages) = builder.around {
                    engine = engine.around(pages);
                }
                Arc::new(engine.build()?)
            }
        };
        let reach = LocalReach::new(builder.staging.next_multiple_of(page))?;
        let (id, space) = engine.adopt(Arc::new(Watched::new(uffd, reach)?))?;
        space.manage(mapping.span())?;
        let keeper = match builder.limit {
            Some(limit) => Some(Keeper::start(Arc::clone(&space), limit / page)?),
            None => None,
        };
        Ok(Self { keeper, engine, id, space, mapping, whole, pinned: Mutex::new(Vec::new()) })
    }

    pub(super) fn span(&self) -> Span {
        self.mapping.span()
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr().as_ptr()
    }

    pub(super) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    pub(super) fn serves_system_calls(&self) -> bool {
        self.whole
    }

    pub(super) fn evict(&self, span: Span) -> Result<MovedOut, EvictError> {
        let mut moved = MovedOut::default();
        for span in self.unpinned(span) {
            moved += self.space.move_out(span, u64::MAX, Keep::Stored)?;
        }
        Ok(moved)
    }

    fn unpinned(&self, span: Span) -> Vec<Span> {
        let mut spans = vec![span];
        for pinned in &*self.pinned.lock() {
            spans = spans
                .into_iter()
                .flat_map(|span| match span.overlaps(pinned) {
                    true => {
                        let (before, after) = span.subtract(pinned);
                        [before, after]
                    }
                    false => [Some(span), None],
                })
                .flatten()
                .collect();
        }
        spans
    }

    pub(super) fn bring_in(&self, span: Span) -> Result<u64, MemoryError> {
        self.space.bring_back(span, 64)
    }

    pub(super) fn pin(&self, span: Span) {
        self.pinned.lock().push(span);
    }

    pub(super) fn unpin(&self, span: Span) {
        let mut pinned = self.pinned.lock();
        if let Some(at) = pinned.iter().position(|other| *other == span) {
            pinned.swap_remove(at);
        }
    }

    pub(super) fn expect(&self, span: Span, expected: Expected) -> Result<(), MemoryError> {
        let Some(habit) = expected.habit() else { return self.bring_in(span).map(drop) };
        for part in self.space.shared().parts(span) {
            part.region.lock().expect(PageIndex(part.piece.first.0), part.piece.pages, habit);
        }
        Ok(())
    }

    pub(super) fn discard(&self, span: Span) -> Result<(), MemoryError> {
        // SAFETY: needed because it destroys what is there, which the region's owner asked for.
        unsafe { madvise(span, Advice::DontNeed) }.map_err(|error| refused("emptying", span, error))
    }

    /// In pages: in memory, out, standing in slots.
    pub(super) fn usage(&self) -> Usage {
        let usage = self.space.usage();
        Usage { resident: Pacer::resident(&self.space).unwrap_or(0), out: usage.out, standing: usage.standby }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.keeper = None;
        // Else unmapping it would wait for somebody to read of it, and whoever still holds the space doesn't.
        let _ = self.space.memory().unregister(self.mapping.span());
        self.engine.forget(self.id);
    }
}

/// The most this process is allowed: with faults inside system calls, or without. Says whether those are served.
fn open(wanted: Features) -> Result<(Uffd, bool), Error> {
    Uffd::open(wanted, OpenMode::Auto)
        .map(|uffd| (uffd, true))
        .or_else(|_| Ok((Uffd::open(wanted, OpenMode::UserModeOnly)?, false)))
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
