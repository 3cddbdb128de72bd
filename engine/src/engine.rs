//! Handler threads, and workers, over any number of address spaces.

mod handler;
mod worker;

use crate::memory::{Memory, MemoryError};
use crate::placement::Placement;
use crate::shares::Shares;
use crate::space::recover::{Recovered, take_up};
use crate::space::{SLOT_PAGES, Space};
use crate::turns::Turns;
use crossbeam::queue::SegQueue;
use parking_lot::{Mutex, RwLock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use userswap_policy::working_set::Run;
use userswap_store::{Handle, OwnerId, PageKey, Store};
use worker::Workers;

/// What the engine tells whoever embeds it.
pub trait Observer: Send + Sync + 'static {
    /// A process in care forked; the child is in care too.
    fn forked(&self, parent: SpaceId, child: SpaceId) {
        let _ = (parent, child);
    }

    /// A thread touched the address space's [sentinel](Space::set_sentinel). It goes on after this. Called on a handler's thread.
    fn sentinel(&self, id: SpaceId, thread: u32) {
        let _ = (id, thread);
    }

    /// An address space is gone or let go of; its pages are given up next. Called on a handler's thread: it must not wait.
    fn leaving(&self, id: SpaceId, space: &Space) {
        let _ = (id, space);
    }
}

/// An observer that looks away.
pub struct Unobserved;

impl Observer for Unobserved {}

/// Names an address space in an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpaceId(pub u64);

/// An address space with its name.
pub type Named = (SpaceId, Arc<Space>);

/// Settings of an [`Engine`].
pub struct EngineBuilder {
    store: Arc<dyn Store>,
    handlers: usize,
    workers: usize,
    around: u32,
    slot_pages: u32,
    observer: Arc<dyn Observer>,
    adapt: bool,
    stages: bool,
}

impl EngineBuilder {
    /// How many threads serve faults; one for each CPU (at most four) unless said otherwise.
    #[must_use]
    pub fn handlers(mut self, handlers: usize) -> Self {
        self.handlers = handlers.max(1);
        self
    }

    /// How many threads do what others can go on without: help whoever moves pages out to write them to the store, and bring in early what comes
    /// next in a stream. One less than there are CPUs (at most three) unless said otherwise.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The most pages brought in with one fault; 32 unless said otherwise.
    #[must_use]
    pub fn around(mut self, pages: u32) -> Self {
        self.around = pages.clamp(1, 512);
        self
    }

    /// Pages a slot has: how many move at once.
    #[must_use]
    pub fn slot_pages(mut self, pages: u32) -> Self {
        self.slot_pages = pages.clamp(1, 512);
        self
    }

    /// Whether handlers move to the CPUs where faults happen (see `placement`); they do unless told otherwise.
    #[must_use]
    pub fn adaptive_placement(mut self, adapt: bool) -> Self {
        self.adapt = adapt;
        self
    }

    /// Whether the [stages](crate::Stages) of faults are measured; they aren't unless asked for. Costs some looks at the clock a fault.
    #[must_use]
    pub fn stage_times(mut self, measured: bool) -> Self {
        self.stages = measured;
        self
    }

    /// Who is told of forks and exits.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Starts the handler threads.
    ///
    /// # Errors
    /// When descriptors or threads can't be had.
    pub fn build(self) -> io::Result<Engine> {
        let shared = Arc::new(Shared {
            store: self.store,
            shares: Arc::new(Shares::default()),
            around: self.around,
            slot_pages: self.slot_pages,
            observer: self.observer,
            stages: self.stages,
            epolls: (0..self.handlers)
                .map(|_| epoll::create(epoll::CreateFlags::CLOEXEC))
                .collect::<Result<_, _>>()?,
            placement: Placement::new(self.handlers, self.adapt),
            turns: Turns::new(std::thread::available_parallelism().map_or(1, usize::from)),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            spaces: RwLock::new(HashMap::new()),
            next: AtomicU64::new(1),
            kicked: SegQueue::new(),
            workers: Workers::default(),
            stop: AtomicBool::new(false),
        });
        for epoll in &shared.epolls {
            epoll::add(epoll, &shared.bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        }
        let engine = Engine { shared: Arc::clone(&shared), threads: Mutex::new(Vec::new()) };
        for number in 0..self.handlers {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("userswap-fault{number}"))
                .spawn(move || shared.handle(number))?;
            engine.threads.lock().push(thread);
        }
        for number in 0..self.workers {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("userswap-work{number}"))
                .spawn(move || shared.work())?;
            engine.threads.lock().push(thread);
        }
        let watchdog = std::thread::Builder::new()
            .name("userswap-watch".into())
            .spawn(move || shared.placement.watch(|| shared.has_waiting()))?;
        engine.threads.lock().push(watchdog);
        Ok(engine)
    }
}

/// An engine: a store, handler threads, address spaces.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<dyn Store>,
    shares: Arc<Shares>,
    around: u32,
    slot_pages: u32,
    observer: Arc<dyn Observer>,
    stages: bool,
    /// One for each handler: a message gets up every handler that sleeps on its own.
    epolls: Vec<OwnedFd>,
    placement: Placement,
    turns: Turns,
    /// Rung to get a handler's attention: a space was kicked, or it is time to stop.
    bell: OwnedFd,
    spaces: RwLock<HashMap<u64, Arc<Space>>>,
    next: AtomicU64,
    kicked: SegQueue<u64>,
    workers: Workers,
    stop: AtomicBool,
}

/// Epoll data of the bell. A space's messages are twice its number, its exit one more.
const BELL: u64 = u64::MAX;

impl Engine {
    /// An engine over `store`.
    pub fn builder(store: Arc<dyn Store>) -> EngineBuilder {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        EngineBuilder {
            store,
            handlers: cpus.min(4),
            workers: (cpus - 1).min(3),
            around: 32,
            slot_pages: SLOT_PAGES,
            observer: Arc::new(Unobserved),
            adapt: true,
            stages: false,
        }
    }

    /// Its store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Takes an address space into care and serves its faults from now on.
    ///
    /// # Errors
    /// When it can't be watched.
    pub fn adopt(&self, memory: Arc<dyn Memory>) -> io::Result<(SpaceId, Arc<Space>)> {
        let shared = &self.shared;
        let id = SpaceId(shared.next.fetch_add(1, Ordering::Relaxed));
        let slot_pages = memory.slot_pages().unwrap_or(shared.slot_pages);
        let owner = memory.ledger().map_or(id.0, |ledger| ledger.roster().next_owner());
        let owner = OwnerId(owner);
        let space =
            Space::new(memory, Arc::clone(&shared.store), Arc::clone(&shared.shares), owner, slot_pages);
        if let Err(error) = shared.watch(id, &space) {
            space.close();
            return Err(error);
        }
        Ok((id, space))
    }

    /// Takes the address spaces into care again that a dead process served, each of which has a [ledger](crate::Ledger), and serves their faults from now
    /// on. `found` is what the store holds still: all of it, for what nobody names is freed. To be called once, before anybody is adopted.
    /// Gives them in the same order; `None` for one whose ledger makes no sense.
    ///
    /// # Errors
    /// When one of them can't be watched. Nothing more is served then, and nothing given up: this process is to end.
    pub fn recover(
        &self,
        found: Vec<(PageKey, Handle)>,
        memories: &[Arc<dyn Memory>],
    ) -> io::Result<(Vec<Option<Named>>, Recovered)> {
        let shared = &self.shared;
        let (spaces, report) = take_up(&shared.store, &shared.shares, found, memories);
        let uffds: Vec<_> = memories.iter().filter_map(|memory| Some(memory.ledger()?.uffd()?.0)).collect();
        let mut served = Vec::with_capacity(spaces.len());
        // Dropped, they would take their books with them; the next process may have more luck.
        let leaked = spaces.clone();
        for space in spaces {
            let Some(space) = space else {
                served.push(None);
                continue;
            };
            let id = SpaceId(shared.next.fetch_add(1, Ordering::Relaxed));
            // One that is gone is found to be so when it is watched.
            let children = space.replay(&|number| uffds.contains(&number)).unwrap_or_else(|error| {
                tracing::debug!(%error, "a client that was served before");
                Vec::new()
            });
            if let Err(error) = shared.watch(id, &space) {
                std::mem::forget(leaked);
                return Err(error);
            }
            for child in children {
                shared.follow(id.0, &child);
            }
            served.push(Some((id, space)));
        }
        Ok((served, report))
    }

    /// The address space called `id`.
    pub fn space(&self, id: SpaceId) -> Option<Arc<Space>> {
        self.shared.spaces.read().get(&id.0).cloned()
    }

    /// All address spaces.
    pub fn spaces(&self) -> Vec<(SpaceId, Arc<Space>)> {
        self.shared.spaces.read().iter().map(|(&id, space)| (SpaceId(id), Arc::clone(space))).collect()
    }

    /// Watches an address space's exit, which could not be told before: a child whose agent has called.
    ///
    /// # Errors
    /// When it can't be watched.
    pub fn watch_exit(&self, id: SpaceId) -> io::Result<()> {
        match self.space(id) {
            Some(space) => self.shared.watch_exit(id, &space),
            None => Ok(()),
        }
    }

    /// Brings everything of an address space back.
    ///
    /// # Errors
    /// When it is gone.
    pub fn bring_back_all(&self, space: &Arc<Space>) -> Result<u64, MemoryError> {
        let mut brought = 0;
        for span in space.spans() {
            brought += space.bring_back(span, self.shared.around)?;
        }
        Ok(brought)
    }

    /// As [`Space::bring_early`], as many together as come with a fault.
    pub fn bring_early(&self, space: &Arc<Space>, runs: &[Run]) -> u64 {
        space.bring_early(runs, self.shared.around)
    }

    /// Lets go of address spaces that are gone, where nothing else tells: those of forked children that never called, and of programs whose process
    /// goes on as another program. Returns how many. To be called every second or so.
    pub fn sweep(&self) -> usize {
        let gone: Vec<SpaceId> = self
            .spaces()
            .into_iter()
            .filter(|(_, space)| space.memory().is_gone())
            .map(|(id, _)| id)
            .collect();
        for id in &gone {
            self.forget(*id);
        }
        gone.len()
    }

    /// Lets go of an address space: what is still out is given up.
    pub fn forget(&self, id: SpaceId) {
        self.shared.forget(id);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring_bell();
        self.shared.placement.stop();
        self.shared.workers.stop();
        for thread in self.threads.lock().drain(..) {
            // An observer that is called on a handler's thread may be the last who holds the engine. That thread ends by itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        let ids: Vec<u64> = self.shared.spaces.read().keys().copied().collect();
        for id in ids {
            self.shared.forget(SpaceId(id));
        }
    }
}

impl Shared {
    fn watch(self: &Arc<Self>, id: SpaceId, space: &Arc<Space>) -> io::Result<()> {
        if self.stages {
            space.time_stages();
        }
        let kicked = Arc::downgrade(self);
        space.set_kick(Box::new(move || {
            if let Some(shared) = kicked.upgrade() {
                shared.kicked.push(id.0);
                shared.ring_bell();
            }
        }));
        let called = Arc::downgrade(self);
        space.set_workers(Box::new(move |errand| {
            if let Some(shared) = called.upgrade() {
                shared.workers.call(id.0, errand);
            }
        }));
        self.spaces.write().insert(id.0, Arc::clone(space));
        let memory = space.memory();
        let watched = (|| {
            if let Some(messages) = memory.messages() {
                // Edge-triggered: each new message gets one handler out of bed, and reading needs no second read to find nothing.
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                for (handler, epoll) in self.epolls.iter().enumerate() {
                    // Helpers look by themselves while they are up.
                    if self.placement.is_helper(handler) {
                        continue;
                    }
                    epoll::add(epoll, messages, epoll::EventData::new_u64(id.0 * 2), flags)?;
                }
            }
            self.watch_exit(id, space)
        })();
        if watched.is_err() {
            self.spaces.write().remove(&id.0);
        }
        watched
    }

    fn watch_exit(&self, id: SpaceId, space: &Space) -> io::Result<()> {
        if let Some(exit) = space.memory().exit() {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
            epoll::add(&self.epolls[0], exit, epoll::EventData::new_u64(id.0 * 2 + 1), flags)?;
        }
        Ok(())
    }

    fn forget(&self, id: SpaceId) {
        let Some(space) = self.spaces.write().remove(&id.0) else { return };
        if let Some(messages) = space.memory().messages() {
            for epoll in &self.epolls {
                let _ = epoll::delete(epoll, messages);
            }
        }
        if let Some(exit) = space.memory().exit() {
            let _ = epoll::delete(&self.epolls[0], exit);
        }
        // Before anything that a successor would look for is closed.
        if let Some(ledger) = space.memory().ledger() {
            ledger.leave();
        }
        self.observer.leaving(id, &space);
        self.turns.forget(id.0);
        space.close();
        // A handler that served its last fault may have looked for its thread after the others were forgotten, and would hold on to what
        // tells of it until somebody else faults. Who is there still is found again.
        self.placement.steering.forget();
    }

    fn ring_bell(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Whether an address space has messages nobody has read.
    fn has_waiting(&self) -> bool {
        let spaces: Vec<Arc<Space>> = self.spaces.read().values().cloned().collect();
        let mut fds: Vec<PollFd<'_>> = spaces
            .iter()
            .filter_map(|space| Some(PollFd::from_borrowed_fd(space.memory().messages()?, PollFlags::IN)))
            .collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
