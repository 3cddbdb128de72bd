//! Handler threads over any number of address spaces.

use crate::fault::FaultWork;
use crate::memory::{Batch, Memory, MemoryError};
use crate::placement::{Follower, Placement};
use crate::ring::RING_MESSAGES;
use crate::shares::Shares;
use crate::space::{SLOT_PAGES, Space};
use crate::steer::Post;
use crossbeam::queue::SegQueue;
use parking_lot::{Mutex, RwLock};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_store::{OwnerId, Store};

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

/// Settings of an [`Engine`].
pub struct EngineBuilder {
    store: Arc<dyn Store>,
    handlers: usize,
    around: u32,
    slot_pages: u32,
    observer: Arc<dyn Observer>,
    adapt: bool,
}

impl EngineBuilder {
    /// How many threads serve faults; one for each CPU (at most four) unless said otherwise.
    #[must_use]
    pub fn handlers(mut self, handlers: usize) -> Self {
        self.handlers = handlers.max(1);
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
            epolls: (0..self.handlers)
                .map(|_| epoll::create(epoll::CreateFlags::CLOEXEC))
                .collect::<Result<_, _>>()?,
            placement: Placement::new(self.handlers, self.adapt),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            spaces: RwLock::new(HashMap::new()),
            next: AtomicU64::new(1),
            kicked: SegQueue::new(),
            stop: AtomicBool::new(false),
        });
        for epoll in &shared.epolls {
            epoll::add(epoll, &shared.bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        }
        let engine = Engine { shared: Arc::clone(&shared), handlers: Mutex::new(Vec::new()) };
        for number in 0..self.handlers {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("userswap-fault{number}"))
                .spawn(move || shared.handle(number))?;
            engine.handlers.lock().push(thread);
        }
        let watchdog = std::thread::Builder::new()
            .name("userswap-watch".into())
            .spawn(move || shared.placement.watch(|| shared.has_waiting()))?;
        engine.handlers.lock().push(watchdog);
        Ok(engine)
    }
}

/// An engine: a store, handler threads, address spaces.
pub struct Engine {
    shared: Arc<Shared>,
    handlers: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<dyn Store>,
    shares: Arc<Shares>,
    around: u32,
    slot_pages: u32,
    observer: Arc<dyn Observer>,
    /// One for each handler: a message gets up every handler that sleeps on its own.
    epolls: Vec<OwnedFd>,
    placement: Placement,
    /// Rung to get a handler's attention: a space was kicked, or it is time to stop.
    bell: OwnedFd,
    spaces: RwLock<HashMap<u64, Arc<Space>>>,
    next: AtomicU64,
    kicked: SegQueue<u64>,
    stop: AtomicBool,
}

/// What a handler works with.
struct Hands {
    number: usize,
    work: FaultWork,
    batch: Batch,
    follower: Follower,
    /// The address space served last.
    last: Option<u64>,
    /// When a fault was served last.
    active: Instant,
    /// A fault was served since this helper was called.
    useful: bool,
    /// Messages may be left unread: no time to sleep.
    busy: bool,
    /// Address spaces to come back to soon: a fault is parked there, or the gate was held.
    soon: Vec<u64>,
}

/// Epoll data of the bell. A space's messages are twice its number, its exit one more.
const BELL: u64 = u64::MAX;

/// How soon a fault the kernel was too busy for is tried again.
const RETRY: Duration = Duration::from_micros(200);

/// How long a handler looks for the next message before it sleeps, while several serve.
const SPIN: Duration = Duration::from_micros(50);

/// How long a helper does before it rests.
const SPIN_LONG: Duration = Duration::from_micros(500);

/// How often a handler reads one address space's messages before it looks at the others'.
const ROUNDS: u32 = 64;

/// How long a handler waits for a gate before it turns to other address spaces.
const PATIENCE: Duration = Duration::from_micros(100);

impl Engine {
    /// An engine over `store`.
    pub fn builder(store: Arc<dyn Store>) -> EngineBuilder {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        EngineBuilder {
            store,
            handlers: cpus.min(4),
            around: 32,
            slot_pages: SLOT_PAGES,
            observer: Arc::new(Unobserved),
            adapt: true,
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
        let space = Space::new(
            memory,
            Arc::clone(&shared.store),
            Arc::clone(&shared.shares),
            OwnerId(id.0),
            slot_pages,
        );
        shared.watch(id, &space)?;
        Ok((id, space))
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
        for part in space.parts() {
            if let Ok(span) =
                userswap_uffd::Span::new(part.piece.addr, crate::directory::bytes_of(part.piece.pages))
            {
                brought += space.bring_back(span, self.shared.around)?;
            }
        }
        Ok(brought)
    }

    /// Lets go of address spaces whose process is gone, where nothing else tells: forked children that never called. Returns
    /// how many. To be called every second or so.
    pub fn sweep(&self) -> usize {
        let gone: Vec<SpaceId> = self
            .spaces()
            .into_iter()
            .filter(|(_, space)| space.memory().exit().is_none() && space.memory().is_gone())
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
        for thread in self.handlers.lock().drain(..) {
            let _ = thread.join();
        }
        let ids: Vec<u64> = self.shared.spaces.read().keys().copied().collect();
        for id in ids {
            self.shared.forget(SpaceId(id));
        }
    }
}

impl Shared {
    fn watch(self: &Arc<Self>, id: SpaceId, space: &Arc<Space>) -> io::Result<()> {
        let kicked = Arc::downgrade(self);
        space.set_kick(Box::new(move || {
            if let Some(shared) = kicked.upgrade() {
                shared.kicked.push(id.0);
                shared.ring_bell();
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
        self.observer.leaving(id, &space);
        space.close();
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

    /// The loop of one handler thread.
    fn handle(self: &Arc<Self>, number: usize) {
        let mut hands = Hands {
            number,
            work: FaultWork::new(self.around),
            batch: Batch::with_capacity(RING_MESSAGES),
            follower: Follower::new(number),
            last: None,
            active: Instant::now(),
            useful: false,
            busy: false,
            soon: Vec::with_capacity(16),
        };
        let (mut events, mut now) = (Vec::with_capacity(16), Vec::with_capacity(16));
        let steering = &self.placement.steering;
        self.placement.begin(number);
        while !self.stop.load(Ordering::Acquire) {
            self.spin(&mut hands);
            if self.placement.is_helper(number) && !hands.busy {
                self.rest(&mut hands);
                continue;
            }
            events.clear();
            let at_once = std::mem::take(&mut hands.busy) || !steering.may_sleep(number);
            let patience =
                if at_once { Some(Duration::ZERO) } else { (!hands.soon.is_empty()).then_some(RETRY) };
            let patience =
                patience.map(|time| Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) });
            let waited = epoll::wait(
                &self.epolls[number],
                rustix::buffer::spare_capacity(&mut events),
                patience.as_ref(),
            );
            steering.is_up(number);
            match waited {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for faults");
                    return;
                }
            }
            while self.take_post(&mut hands) {}
            std::mem::swap(&mut hands.soon, &mut now);
            for again in now.drain(..) {
                self.pump(again, &mut hands);
            }
            for event in &events {
                match event.data.u64() {
                    BELL => self.answer_bell(&mut hands),
                    exit if exit % 2 == 1 => self.forget(SpaceId(exit / 2)),
                    messages => {
                        self.pump(messages / 2, &mut hands);
                    }
                }
            }
        }
    }

    /// While several threads fault at once: looks for messages without sleeping, for a moment after the last. In the idle class
    /// that takes nothing from anybody, and a fault on this CPU finds a handler that needs no waking.
    fn spin(self: &Arc<Self>, hands: &mut Hands) {
        let (number, steering) = (hands.number, &self.placement.steering);
        for _ in 0..ROUNDS {
            let Some(id) = hands.last else { return };
            let spin = if number == 0 { SPIN } else { SPIN_LONG };
            if !self.placement.is_shared()
                || self.stop.load(Ordering::Acquire)
                || hands.active.elapsed() > spin
            {
                return;
            }
            if !self.take_post(hands) && !self.pump(id, hands) {
                steering.is_idle(number, true);
                steering.look_around(number);
            }
        }
        hands.busy = true;
    }

    /// A helper has had nothing to do for a while.
    fn rest(self: &Arc<Self>, hands: &mut Hands) {
        let (number, steering) = (hands.number, &self.placement.steering);
        steering.sits(number, None);
        steering.is_idle(number, false);
        if steering.may_sleep(number) {
            self.placement.rest(number, std::mem::take(&mut hands.useful));
            hands.active = Instant::now();
            // Where the lead has found work there may be more.
            hands.last = Some(self.placement.busy_space());
        }
        steering.is_up(number);
        while self.take_post(hands) {}
    }

    /// Serves a fault that another handler left to this one. Whether there was any.
    fn take_post(self: &Arc<Self>, hands: &mut Hands) -> bool {
        let Some(post) = self.placement.steering.take(hands.number) else { return false };
        self.placement.served(1);
        self.serve(post, hands, None);
        true
    }

    fn answer_bell(self: &Arc<Self>, hands: &mut Hands) {
        // While stopping, the bell keeps ringing, so that every handler hears it.
        if !self.stop.load(Ordering::Acquire) {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&self.bell, &mut count);
        }
        while let Some(id) = self.kicked.pop() {
            self.pump(id, hands);
        }
    }

    /// Reads one address space's messages and serves its faults. Whether there were any.
    fn pump(self: &Arc<Self>, id: u64, hands: &mut Hands) -> bool {
        hands.last = None;
        let Some(space) = self.spaces.read().get(&id).cloned() else { return false };
        let mut served = false;
        for round in 0.. {
            let shared = self.placement.is_shared();
            if shared {
                self.take_post(hands);
            }
            let close = shared || hands.follower.is_close(&self.placement);
            hands.batch.one = close;
            match space.take_messages(&mut hands.batch, PATIENCE) {
                Ok(Some(children)) => {
                    for child in children {
                        self.follow(id, &child);
                    }
                }
                Ok(None) => {
                    hands.soon.push(id);
                    return served;
                }
                Err(_) => {
                    self.forget(SpaceId(id));
                    return served;
                }
            }
            if hands.batch.faults.is_empty() {
                space.unpark(&mut hands.batch);
            }
            let any = !hands.batch.faults.is_empty();
            served |= any;
            hands.follower.note(&self.placement, &hands.batch.faults);
            let sentinel = space.sentinel();
            let read_at = Instant::now();
            for at in 0..hands.batch.faults.len() {
                let fault = hands.batch.faults[at];
                if fault.addr == sentinel
                    && let Some(thread) = fault.thread
                {
                    self.observer.sentinel(SpaceId(id), thread);
                }
                let mut post = Some(Post { space: id, fault, read_at });
                if shared {
                    post = post.and_then(|post| self.placement.steering.pass(hands.number, post));
                }
                if let Some(post) = post {
                    self.serve(post, hands, Some((id, &space)));
                }
            }
            if !any && !hands.batch.more {
                hands.follower.idle(&self.placement);
            }
            // The thread just woken has run in our stead, and may have stopped for its next page.
            let again = hands.batch.more || (any && close);
            if !again {
                break;
            }
            if round >= ROUNDS {
                hands.soon.push(id);
                hands.busy = true;
                break;
            }
        }
        if space.has_parked() && !hands.soon.contains(&id) {
            hands.soon.push(id);
        }
        hands.last = Some(id);
        self.placement.busy_in(id);
        served
    }

    /// Serves one fault. `known` is an address space at hand, perhaps the fault's.
    fn serve(&self, post: Post, hands: &mut Hands, known: Option<(u64, &Arc<Space>)>) {
        let space = match known {
            Some((id, space)) if id == post.space => Some(Arc::clone(space)),
            _ => self.spaces.read().get(&post.space).cloned(),
        };
        // One that is gone has nobody waiting.
        let Some(space) = space else { return };
        hands.work.read_at(post.read_at);
        let (number, steering) = (hands.number, &self.placement.steering);
        steering.is_idle(number, false);
        let thread = post.fault.thread.filter(|_| self.placement.is_shared());
        if thread.is_some_and(|thread| steering.is_crowded(number, thread)) {
            // Woken by a thread of the normal class it goes to a CPU that is free.
            self.placement.out_of_idle(|| hands.work.run(&space, post.fault));
        } else {
            hands.work.run(&space, post.fault);
        }
        hands.active = Instant::now();
        hands.useful = true;
    }

    /// Takes a forked child into care.
    fn follow(self: &Arc<Self>, parent: u64, child: &Arc<Space>) {
        let id = SpaceId(self.next.fetch_add(1, Ordering::Relaxed));
        match self.watch(id, child) {
            Ok(()) => self.observer.forked(SpaceId(parent), id),
            Err(error) => {
                tracing::error!(%error, "a forked child can't be watched; its moved-out pages are lost to it");
                child.close();
            }
        }
    }
}
