//! Memory of this process in an engine's care, with the calls a program makes on its own mappings.

use crate::pages::Pages;
use parking_lot::Mutex;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use userswap_engine::memory::{Batch, Memory, MemoryError, Moved, Order};
use userswap_engine::{Engine, Keep, LocalReach, MovedOut, Space, SpaceId, Watched};
use userswap_store::Store;
use userswap_uffd::own::{madvise, map_anonymous_over, unmap};
use userswap_uffd::{
    Advice, Features, Mapping, OpenMode, Outcome, Protection, RegisterMode, Span, Uffd, page_bytes,
};

/// An engine, an address space of its own (a userfaultfd of this process) and one region in it.
///
/// The program's calls that change mappings wait for the engine to read about them: none may be made by a handler.
pub struct Own {
    /// The address space.
    pub space: Arc<Space>,
    /// Its name.
    pub id: SpaceId,
    /// The region.
    pub pages: Pages,
    /// The engine.
    pub engine: Arc<Engine>,
    /// Called before the kernel is asked for something.
    pub hooks: Arc<Hooks>,
    /// What tests unmap themselves is forgotten here.
    mapping: Option<Mapping>,
}

/// Settings of an [`Own`].
pub struct Settings {
    store: Arc<dyn Store>,
    pages: u64,
    handlers: usize,
    staging_pages: u64,
    slot_pages: u32,
    around: u32,
    sentinel: bool,
    fork: bool,
    engine: Option<Arc<Engine>>,
}

impl Settings {
    /// How many handler threads; two unless said otherwise, waiting all the time.
    #[must_use]
    pub fn handlers(mut self, handlers: usize) -> Self {
        self.handlers = handlers;
        self
    }

    /// Slots: how many pages in all, and in each.
    #[must_use]
    pub fn slots(mut self, staging_pages: u64, slot_pages: u32) -> Self {
        (self.staging_pages, self.slot_pages) = (staging_pages, slot_pages);
        self
    }

    /// Pages brought in with one fault, at most.
    #[must_use]
    pub fn around(mut self, around: u32) -> Self {
        self.around = around;
        self
    }

    /// Follows forks, with a page registered for good.
    #[must_use]
    pub fn forks(mut self) -> Self {
        (self.fork, self.sentinel) = (true, true);
        self
    }

    /// An engine that is there already.
    #[must_use]
    pub fn engine(mut self, engine: &Arc<Engine>) -> Self {
        self.engine = Some(Arc::clone(engine));
        self
    }

    /// Maps the memory and takes it into care. `None`, having said so, where this user or kernel can't have it.
    pub fn build(self, name: &str) -> Option<Own> {
        let mut wanted = Features::EVENT_REMAP
            | Features::EVENT_REMOVE
            | Features::EVENT_UNMAP
            | Features::THREAD_ID
            | Features::MOVE
            | Features::POISON;
        if self.fork {
            wanted |= Features::EVENT_FORK;
        }
        let uffd = match Uffd::open(wanted, OpenMode::Auto) {
            Ok(uffd) if uffd.features().contains(wanted) => uffd,
            Ok(uffd) => {
                println!("SKIPPED {name}: not granted: {:?}", wanted - uffd.features());
                return None;
            }
            Err(error) => {
                println!("SKIPPED {name}: {error}");
                return None;
            }
        };
        let engine = self.engine.unwrap_or_else(|| {
            let engine = Engine::builder(self.store)
                .handlers(self.handlers)
                .around(self.around)
                .slot_pages(self.slot_pages)
                .adaptive_placement(false)
                .build();
            Arc::new(must(engine))
        });
        // One page more than asked for on either side, so that no other mapping touches the region's.
        let mapping = must(Mapping::new((self.pages + 2) * page_bytes(), Protection::READ_WRITE));
        let (start, end) = (mapping.span().start(), mapping.span().end());
        let region = must(Span::between(start + page_bytes(), end - page_bytes()));
        if self.sentinel {
            let sentinel = must(Span::from_pages(start, 1));
            // SAFETY: needed because its missing pages become the engine's to fill; nobody uses this page.
            must(unsafe { uffd.register(sentinel, RegisterMode::MISSING) });
        }
        let reach = must(LocalReach::new(self.staging_pages * page_bytes()));
        let hooks = Arc::new(Hooks::default());
        let memory = Hooked { inner: must(Watched::new(uffd, reach)), hooks: Arc::clone(&hooks) };
        let (id, space) = must(engine.adopt(Arc::new(memory)));
        must(space.manage(region));
        // SAFETY: the mapping is read-write and known to nobody else. Tests that unmap parts of it don't name those after.
        let pages = unsafe { Pages::new(region) };
        Some(Own { space, id, pages, engine, hooks, mapping: Some(mapping) })
    }
}

impl Own {
    /// A region of `pages` pages over `store`.
    pub fn settings(pages: u64, store: Arc<dyn Store>) -> Settings {
        Settings {
            store,
            pages,
            handlers: 2,
            staging_pages: 512,
            slot_pages: 64,
            around: 32,
            sentinel: false,
            fork: false,
            engine: None,
        }
    }

    /// Moves out what is resident of the region where it was first.
    pub fn evict(&self) -> MovedOut {
        self.evict_span(self.pages.span())
    }

    /// Moves out what is resident of `span`.
    pub fn evict_span(&self, span: Span) -> MovedOut {
        must(self.space.move_out(span, u64::MAX, Keep::Stored))
    }

    /// The test unmaps the memory, or moves it: what takes its place later must not be unmapped in its stead.
    pub fn keep_mapped(&mut self) {
        self.mapping.take().map(Mapping::leak);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // What a hook or a fetch still under way holds is not to make the unmapping wait for somebody to read of it.
        self.hooks.clear();
        self.engine.forget(self.id);
        if let Some(mapping) = &self.mapping {
            let _ = self.space.memory().unregister(mapping.span());
        }
    }
}

/// madvise(MADV_DONTNEED).
pub fn remove(span: Span) {
    // SAFETY: needed because it destroys what is there, which is what the test is about.
    must(unsafe { madvise(span, Advice::DontNeed) });
}

/// madvise(MADV_FREE).
pub fn free_lazily(span: Span) {
    // SAFETY: as in `remove`.
    must(unsafe { madvise(span, Advice::Free) });
}

/// madvise(MADV_DONTDUMP): a mapping of its own, of which nobody hears.
pub fn leave_out_of_dumps(span: Span) {
    // SAFETY: as in `remove`; it destroys nothing.
    must(unsafe { madvise(span, Advice::DontDump) });
}

/// munmap.
pub fn unmap_span(span: Span) {
    // SAFETY: needed because touching it is fatal afterwards; the test doesn't.
    must(unsafe { unmap(span) });
}

/// mmap(MAP_FIXED) of fresh memory.
pub fn map_over(span: Span) {
    // SAFETY: needed because it replaces what is there, which the test means to.
    must(unsafe { map_anonymous_over(span) });
}

/// Has memory that is about to be unmapped or moved taken out of care where the kernel wouldn't tell of it, since nothing there is
/// registered. What is registered is told of by events.
pub fn give_notice(space: &Arc<Space>, span: Span) {
    let parts = space.shared().parts(span);
    for part in parts {
        if !part.region.lock().is_registered()
            && let Some(piece) = part.span()
        {
            // Refused if somebody moves it out just now: it is registered then.
            let _ = space.let_go(piece);
        }
    }
}

/// mremap(MREMAP_MAYMOVE), onto `to` if that is given. Where it is now.
///
/// # Errors
/// The kernel's refusal; nothing has moved then.
pub fn move_mapping(from: Span, new_len: u64, to: Option<u64>) -> std::io::Result<Span> {
    let pointer = |addr: u64| std::ptr::without_provenance_mut::<libc::c_void>(addr as usize);
    let (flags, target) = match to {
        Some(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, pointer(to)),
        None => (libc::MREMAP_MAYMOVE, pointer(0)),
    };
    // SAFETY: needed because it moves memory from under its users: the test's own, which follows it.
    let got = unsafe { libc::mremap(pointer(from.start()), from.bytes(), new_len as usize, flags, target) };
    if got == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(must(Span::new(got.expose_provenance() as u64, new_len)))
}

/// A free range of addresses of `len` bytes: nothing is mapped there until this process maps something else.
pub fn free_range(len: u64) -> Mapping {
    must(Mapping::new(len, Protection::READ_WRITE))
}

/// A step before which a test may want to do something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// Pages are about to be copied to this address. The gate is held.
    Copy(u64),
    /// A zero page is about to be installed at this address. The gate is held.
    Zero(u64),
    /// A range is about to be moved out. The gate is held.
    Move(Span),
    /// It was, as far as it could be, and nobody has noted that yet. The gate is held.
    Moved(Span),
}

type Hook = Arc<dyn Fn(Point) + Send + Sync>;

/// What to call before the kernel is asked for something.
#[derive(Default)]
pub struct Hooks {
    hook: Mutex<Option<Hook>>,
}

impl Hooks {
    /// Calls this from now on.
    pub fn set(&self, hook: impl Fn(Point) + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// Calls nothing from now on.
    pub fn clear(&self) {
        *self.hook.lock() = None;
    }

    fn at(&self, point: Point) {
        let hook = self.hook.lock().clone();
        if let Some(hook) = hook {
            hook(point);
        }
    }
}

/// The real memory, with a hook before its system calls.
struct Hooked {
    inner: Watched<LocalReach>,
    hooks: Arc<Hooks>,
}

impl Memory for Hooked {
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        self.inner.read(batch)
    }

    fn applied(&self) {
        self.inner.applied();
    }

    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.hooks.at(Point::Copy(dst));
        self.inner.copy(dst, bytes)
    }

    fn zero(&self, span: Span) -> Outcome {
        self.hooks.at(Point::Zero(span.start()));
        self.inner.zero(span)
    }

    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.hooks.at(Point::Copy(dst));
        self.inner.copy_asleep(dst, bytes)
    }

    fn zero_asleep(&self, span: Span) -> Outcome {
        self.hooks.at(Point::Zero(span.start()));
        self.inner.zero_asleep(span)
    }

    fn poison(&self, span: Span) -> Outcome {
        self.inner.poison(span)
    }

    fn wake(&self, span: Span) {
        self.inner.wake(span);
    }

    fn wake_all(&self) {
        self.inner.wake_all();
    }

    fn register(&self, span: Span) -> Result<(), MemoryError> {
        self.inner.register(span)
    }

    fn unregister(&self, span: Span) -> Result<(), MemoryError> {
        self.inner.unregister(span)
    }

    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        self.inner.resident(span, present)
    }

    fn slot_area(&self) -> Option<Span> {
        self.inner.slot_area()
    }

    fn most_orders(&self) -> usize {
        self.inner.most_orders()
    }

    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError> {
        orders.iter().for_each(|order| self.hooks.at(Point::Move(order.from)));
        let moved = self.inner.move_out(orders, outcomes);
        orders.iter().for_each(|order| self.hooks.at(Point::Moved(order.from)));
        moved
    }

    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError> {
        self.inner.settle_slot(slot)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read_slot(addr, out)
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        self.inner.read_inherited(addr, out, thread)
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        self.inner.empty_slots(slots)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn messages(&self) -> Option<BorrowedFd<'_>> {
        self.inner.messages()
    }

    fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.inner.exit()
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }
}

/// What a test can't go on without.
#[track_caller]
fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
