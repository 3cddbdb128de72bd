//! The server: who listens, who is served, what can be asked of it.

use super::admission::{Admission, Admitted, MOVE_PAGES, Newcomer, register_sentinel, told};
use super::builder::{Objects, ServerBuilder};
use super::claims::Claims;
use super::doors::{Door, Doors};
use super::error::{ServerError, chain, end_at_once, tell_refused};
use super::heir::{Heritage, Waiting, note};
use super::notes;
use super::orders::{Choose, Done};
use super::reach::ClientReach;
use super::steward::{Start, Steward, Task};
use super::survey::Survey;
use super::sweep::Swept;
use super::telling::Telling;
use super::total::Total;
use super::upkeep::Upkeep;
use crossbeam::channel::{Receiver, Sender};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_engine::{
    Engine, Memory, MemoryError, MovedOut, Observer, Roster, Space, SpaceId, Stalled, Watched,
};
use userswap_ipc::{Child, ClientLink, Connection, LinkError, Listener, Peer, Received, Wait};
use userswap_policy::chromium::Hint;
use userswap_policy::working_set::{Run, WorkingSet};
use userswap_policy::{Budget, Order};
use userswap_store::Store;
use userswap_uffd::{Span, page_bytes};

/// One client, for whoever wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientStatus {
    /// Its process, 0 for a forked child that hasn't said who it is.
    pub pid: u32,
    /// Its address space in the engine.
    pub space: SpaceId,
    /// Bytes in care.
    pub managed_bytes: u64,
    /// Bytes out of its memory, standing in slots or stored.
    pub out_bytes: u64,
    /// Of these, bytes still standing in slots.
    pub standby_bytes: u64,
    /// How long the one of its threads that waited longest has waited for pages that were out.
    pub stalled: Duration,
}

/// Serves clients until it is dropped.
///
/// Dropping it without [`drain`](Self::drain) leaves clients that have memory out waiting for ever when they touch it.
pub struct Server {
    pub(super) inner: Arc<Inner>,
    acceptor: Option<JoinHandle<()>>,
    _upkeep: Upkeep,
}

pub(super) struct Inner {
    engine: OnceLock<Engine>,
    pub(super) admission: Admission,
    pub(super) budget: Mutex<Budget>,
    pub(super) standby: bool,
    listener: Option<Listener>,
    clients: Mutex<HashMap<SpaceId, Arc<ClientEntry>>>,
    claims: Claims,
    /// Stewards of clients that are gone, to be joined.
    past: Mutex<Vec<Steward>>,
    total: Mutex<Total>,
    /// What clients told of themselves, for the policy.
    hints: Mutex<Vec<(u32, Hint)>>,
    refused: AtomicU64,
    doors: Arc<Doors>,
    telling: Telling,
    clients_per_user: usize,
    stop: AtomicBool,
}

/// How long the door stays closed after somebody was turned away at it.
const HELD_UP: Duration = Duration::from_millis(1);

/// Hints that are kept.
const MOST_HINTS: usize = 1024;

/// One client.
pub(super) struct ClientEntry {
    pub(super) pid: u32,
    uid: u32,
    pub(super) id: SpaceId,
    pub(super) space: Arc<Space>,
    pub(super) link: Arc<ClientLink>,
    steward: Mutex<Option<Steward>>,
}

impl Server {
    /// Settings for a server over `store`.
    pub fn builder(store: Arc<dyn Store>) -> ServerBuilder {
        ServerBuilder::new(store)
    }

    pub(super) fn start(builder: ServerBuilder) -> Result<Self, ServerError> {
        let mut builder = builder;
        let heritage = builder.heritage.take();
        let mut admission = builder.admission();
        admission.roster = heritage.as_ref().map(|(heritage, _)| Arc::clone(heritage.roster()));
        let listener = match &builder.path {
            _ if builder.listener.is_some() => builder.listener.take(),
            Some(path) => Some(match path.to_str().and_then(|path| path.strip_prefix('@')) {
                Some(name) => Listener::bind_abstract(name)?,
                None => Listener::bind(path, builder.mode)?,
            }),
            None => None,
        };
        let inner = Arc::new(Inner {
            engine: OnceLock::new(),
            admission,
            budget: Mutex::new(builder.budget),
            standby: builder.standby,
            listener,
            clients: Mutex::new(HashMap::new()),
            claims: Claims::default(),
            past: Mutex::new(Vec::new()),
            total: Mutex::new(Total::default()),
            hints: Mutex::new(Vec::new()),
            refused: AtomicU64::new(0),
            doors: Arc::default(),
            telling: Telling::new(),
            clients_per_user: builder.clients_per_user,
            stop: AtomicBool::new(false),
        });
        let has_heirs = heritage.is_some();
        // What others wait for must not be given up because this process can't serve: the next one may.
        let or_end = |error: ServerError| if has_heirs { end_at_once(&error) } else { error };
        let engine = builder.engine(Arc::new(Watcher(Arc::downgrade(&inner)))).map_err(or_end)?;
        let _ = inner.engine.set(engine);
        if let Some((heritage, found)) = heritage {
            inner.serve_on(heritage, found);
        }
        let upkeep = Upkeep::start(Arc::clone(inner.engine().store()))
            .map_err(|source| or_end(ServerError::Start { doing: "looking after the store", source }))?;
        let serving = Arc::clone(&inner);
        let acceptor = std::thread::Builder::new()
            .name("userswap-accept".into())
            .spawn(move || serving.accept())
            .map_err(|source| or_end(ServerError::Start { doing: "starting the acceptor", source }))?;
        Ok(Self { inner, acceptor: Some(acceptor), _upkeep: upkeep })
    }

    /// Takes a client on over a connection that is there already. Returns its process.
    ///
    /// # Errors
    /// Why it wasn't taken on.
    pub fn adopt(&self, connection: Connection) -> Result<u32, ServerError> {
        self.inner.admit(connection)
    }

    /// The engine, for memory that doesn't come by a connection.
    pub fn engine(&self) -> &Engine {
        self.inner.engine()
    }

    /// The processes of all clients that have said who they are.
    pub fn pids(&self) -> Vec<u32> {
        // A process that has just become another program may be there twice, but has its memory once.
        let pids: BTreeSet<u32> = self.inner.entries().iter().map(|entry| entry.pid).collect();
        pids.into_iter().collect()
    }

    /// Every client now.
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.inner.statuses()
    }

    /// Moves out up to `bytes` (all there is, with `None`) of a client's memory. Returns when they are out.
    ///
    /// # Errors
    /// [`ServerError::NoClient`], or why it stopped early.
    pub fn evict(&self, pid: u32, bytes: Option<u64>) -> Result<MovedOut, ServerError> {
        let entry = self.inner.client(pid)?;
        entry.ask(|answer| Task::Evict { bytes, answer })?
    }

    /// Has a client's steward carry out an order, without waiting: what came of it can be had from the channel.
    ///
    /// # Errors
    /// [`ServerError::NoClient`].
    pub(super) fn begin(
        &self,
        order: Order,
        choose: Choose,
    ) -> Result<Receiver<Result<Done, ServerError>>, ServerError> {
        let what = order.what;
        self.inner.client(order.pid)?.begin(|answer| Task::Order { what, choose, answer })
    }

    /// What a client touched since the last sweep; all it has goes out again. For whoever records accesses: with a limit, or other
    /// evictions between, what is told is incomplete.
    ///
    /// # Errors
    /// [`ServerError::NoClient`], or why it stopped early.
    pub fn sweep(&self, pid: u32) -> Result<Swept, ServerError> {
        self.inner.client(pid)?.ask(|answer| Task::Sweep { answer })?
    }

    /// Brings all of a client's memory back. Returns the bytes.
    ///
    /// # Errors
    /// [`ServerError::NoClient`], or that it is gone.
    pub fn restore(&self, pid: u32) -> Result<u64, ServerError> {
        let entry = self.inner.client(pid)?;
        entry.ask(|answer| Task::Restore { answer })?
    }

    /// The pages of a client that are in care and in memory now.
    ///
    /// # Errors
    /// [`ServerError::NoClient`], or that its page table can't be read.
    pub fn working_set(&self, pid: u32) -> Result<WorkingSet, ServerError> {
        Ok(WorkingSet::new(page_bytes(), self.inner.client(pid)?.space.in_memory()?))
    }

    /// Brings in what of these pages of a client is out, and gives way to threads that wait for others; returns when that is done. What the
    /// policy says of memory holds: with a limit others go for them. Returns the bytes asked for.
    ///
    /// # Errors
    /// [`ServerError::NoClient`].
    pub fn bring_early(&self, pid: u32, runs: &[Run]) -> Result<u64, ServerError> {
        let entry = self.inner.client(pid)?;
        Ok(self.engine().bring_early(&entry.space, runs) * page_bytes())
    }

    /// Changes the limits.
    pub fn set_budget(&self, budget: Budget) {
        *self.inner.budget.lock() = budget;
        for entry in self.inner.entries() {
            entry.nudge();
        }
    }

    /// Takes nobody on any more, brings everything back, and lets every client go.
    ///
    /// # Errors
    /// That of the first client that couldn't be brought back and isn't gone; it is still served.
    pub fn drain(&self) -> Result<(), ServerError> {
        self.inner.close_door();
        self.set_budget(Budget::default());
        let mut failed = None;
        for entry in self.inner.entries() {
            match entry.ask(|answer| Task::Retire { answer }) {
                Ok(Ok(_)) => entry.link.disconnect(),
                Ok(Err(ServerError::Memory(MemoryError::Gone))) | Err(_) => {}
                Ok(Err(error)) => failed = Some(error),
            }
        }
        let engine = self.inner.engine();
        for (id, space) in engine.spaces() {
            if failed.is_none() {
                match space.retire() {
                    Ok(_) | Err(MemoryError::Gone) => engine.forget(id),
                    Err(error) => failed = Some(error.into()),
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Where clients are listed for a successor, if there may be one.
    #[cfg(feature = "control")]
    pub(super) fn roster(&self) -> Option<&Arc<Roster>> {
        self.inner.admission.roster.as_ref()
    }

    /// Sums over all clients, past ones included.
    pub fn total(&self) -> Total {
        let mut total = self.inner.total.lock().copied();
        for (_, space) in self.inner.engine().spaces() {
            total.add(&space);
        }
        total
    }

    /// Connections that were turned away.
    pub fn refused(&self) -> u64 {
        self.inner.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.close_door();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for entry in self.inner.entries() {
            entry.link.disconnect();
            entry.stop();
        }
        self.inner.past.lock().clear();
        for (id, _) in self.inner.engine().spaces() {
            self.inner.engine().forget(id);
        }
    }
}

impl Inner {
    /// Set before anybody can ask.
    #[allow(clippy::unwrap_used)]
    pub(super) fn engine(&self) -> &Engine {
        self.engine.get().unwrap()
    }

    fn close_door(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(listener) = &self.listener {
            listener.shut_down();
        }
    }

    fn accept(self: &Arc<Self>) {
        let sweep = Duration::from_secs(1);
        while !self.stop.load(Ordering::Acquire) {
            // Children that never connect, and what a process was before it became another program, are known to be gone only by looking.
            self.engine().sweep();
            self.past.lock().retain(|steward| !steward.is_over());
            let Some(listener) = &self.listener else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            match listener.accept(Wait::For(sweep)) {
                Ok(Received::Got(connection)) => {
                    let door = match self.door_for(&connection) {
                        Ok(door) => door,
                        Err(error) => {
                            self.refuse(&error);
                            drop(connection);
                            // Whoever comes again and again at once is held up by that, and who comes meanwhile for the length of a queue.
                            std::thread::sleep(HELD_UP);
                            continue;
                        }
                    };
                    let inner = Arc::clone(self);
                    let admitting =
                        std::thread::Builder::new().name("userswap-admit".into()).spawn(move || {
                            if let Err(error) = inner.admit(connection) {
                                inner.refuse(&error);
                            }
                            drop(door);
                        });
                    if let Err(error) = admitting {
                        tracing::warn!(%error, "no thread to take a client on with");
                    }
                }
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting");
                    std::thread::sleep(sweep);
                }
            }
        }
    }

    /// Lets somebody in to be taken on, unless so many of its user are. Nothing is kept of who may do worse.
    fn door_for(&self, connection: &Connection) -> Result<Option<Door>, ServerError> {
        let peer = Peer::of(connection).map_err(LinkError::from)?;
        if is_last(connection.as_fd()) {
            return Err(ServerError::Descriptors { pid: peer.pid() });
        }
        if [0, rustix::process::geteuid().as_raw()].contains(&peer.uid()) {
            return Ok(None);
        }
        let door = self.doors.enter(peer.uid(), Instant::now());
        door.map(Some).ok_or(ServerError::Crowd { pid: peer.pid(), uid: peer.uid() })
    }

    /// Whether one more process of a user may be a client.
    fn has_room(&self, clients: &HashMap<SpaceId, Arc<ClientEntry>>, peer: &Peer) -> Result<(), ServerError> {
        let (pid, uid, most) = (peer.pid(), peer.uid(), self.clients_per_user);
        let is_held = ![0, rustix::process::geteuid().as_raw()].contains(&uid);
        if is_held && clients.values().filter(|client| client.uid == uid).count() >= most {
            return Err(ServerError::ManyClients { pid, uid, most });
        }
        Ok(())
    }

    /// Somebody was not taken on.
    fn refuse(&self, error: &ServerError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tell_refused(error, &self.telling);
    }

    fn admit(self: &Arc<Self>, connection: Connection) -> Result<u32, ServerError> {
        // Before anything is agreed on.
        let peer = Peer::of(&connection).map_err(LinkError::from)?;
        self.has_room(&self.clients.lock(), &peer)?;
        match self.admission.admit(connection)? {
            Admitted::Client(newcomer) => self.take_on(newcomer),
            Admitted::Child(child) => {
                let pid = child.peer.pid();
                if let Some((child, id)) = self.claims.claim(child) {
                    self.enlist(child, id)?;
                }
                Ok(pid)
            }
        }
    }

    fn take_on(self: &Arc<Self>, newcomer: Newcomer) -> Result<u32, ServerError> {
        let Newcomer { link, peer, memory, sentinel, program } = newcomer;
        // Held over the adoption, so that whoever is told of the exit finds the entry.
        let mut clients = self.clients.lock();
        self.has_room(&clients, &peer).inspect_err(|_| {
            if let Some(ledger) = memory.ledger() {
                ledger.leave();
            }
        })?;
        let (id, space) = self
            .engine()
            .adopt(memory)
            .map_err(|source| ServerError::Start { doing: "watching a client", source })?;
        space.set_sentinel(sentinel.start());
        let survey = program.map(|program| Survey::new(program.ours));
        match self.start_steward(id, space, link, peer, survey, Start::New) {
            Ok(entry) => {
                let pid = entry.pid;
                tracing::info!(pid, "client taken on");
                clients.insert(id, entry);
                Ok(pid)
            }
            Err(error) => {
                drop(clients);
                self.engine().forget(id);
                Err(error)
            }
        }
    }

    /// A forked child's agent and its address space have found each other.
    pub(super) fn enlist(self: &Arc<Self>, child: Child, id: SpaceId) -> Result<(), ServerError> {
        let Some(space) = self.engine().space(id) else { return Ok(()) };
        let Some(memory) = space.memory().as_any().downcast_ref::<Watched<ClientReach>>() else {
            return Ok(());
        };
        child.settle(memory.uffd().as_fd())?;
        let Child { link, program, staging, peer, .. } = child;
        let link = Arc::new(link);
        let Some(staging) = staging else { return Ok(()) };
        let told = told(Arc::clone(&link), &peer, staging, MOVE_PAGES)?;
        if let Some(ledger) = memory.ledger() {
            let ranges = notes::Ranges { ours: program.ours.clone(), ..notes::Ranges::default() };
            space.inherit_slots(staging);
            notes::write(ledger, &note(&told, &peer, Some(ranges)));
            ledger.roster().told_more(ledger);
        } else {
            space.inherit_slots(staging);
        }
        if !memory.reach().tell(told) {
            return Ok(());
        }
        // What it has copies of, of its parent's slots, needs memory until it is in the store.
        if let Err(error) = space.write_out(u64::MAX) {
            tracing::debug!(%error, "what a forked client inherited stands as it did");
        }
        let survey = Some(Survey::new(program.ours));
        let mut clients = self.clients.lock();
        if self.engine().space(id).is_none() {
            // It was gone before it was listed, and nobody would say so again: an hour of programs left one behind, with its steward and seven descriptors.
            return Ok(());
        }
        self.has_room(&clients, &peer)?;
        let entry = self.start_steward(id, Arc::clone(&space), link, peer, survey, Start::New)?;
        tracing::debug!(pid = entry.pid, "forked client taken on");
        clients.insert(id, entry);
        drop(clients);
        self.engine()
            .watch_exit(id)
            .map_err(|source| ServerError::Start { doing: "watching a client", source })
    }

    fn start_steward(
        self: &Arc<Self>,
        id: SpaceId,
        space: Arc<Space>,
        link: Arc<ClientLink>,
        peer: Peer,
        survey: Option<Survey>,
        start: Start,
    ) -> Result<Arc<ClientEntry>, ServerError> {
        let entry = Arc::new(ClientEntry {
            pid: peer.pid(),
            uid: peer.uid(),
            id,
            space,
            link,
            steward: Mutex::new(None),
        });
        let steward = Steward::start(Arc::downgrade(self), Arc::clone(&entry), peer, survey, start)
            .map_err(|source| ServerError::Start { doing: "starting a steward", source })?;
        *entry.steward.lock() = Some(steward);
        Ok(entry)
    }

    /// Takes up those whom a worker served that has died.
    fn serve_on(self: &Arc<Self>, heritage: Heritage, found: Objects) {
        let begun = Instant::now();
        let (epoch, roster) = (heritage.epoch(), Arc::clone(heritage.roster()));
        heritage.begin_deposit().unwrap_or_else(|source| {
            end_at_once(&ServerError::Start { doing: "having what is left kept", source })
        });
        let waiting = heritage.clients();
        let memories: Vec<_> = waiting.iter().map(Waiting::memory).collect();
        let mut clients = self.clients.lock();
        let (spaces, report) = self.engine().recover(found, &memories).unwrap_or_else(|source| {
            end_at_once(&ServerError::Start { doing: "taking up what was left", source })
        });
        for (client, space) in waiting.into_iter().zip(spaces) {
            let Some((id, space)) = space else {
                client.end();
                continue;
            };
            let Some((link, peer, note)) = client.told else { continue };
            // Registered already, unless its worker died right before.
            let registered = Span::page_of(space.sentinel())
                .map(|sentinel| register_sentinel(client.memory.uffd(), sentinel));
            if let Ok(Err(error)) = registered {
                tracing::debug!(pid = note.pid, %error, "a client's sentinel");
            }
            let survey = note.program.map(|ranges| Survey::again(ranges.ours, ranges.excluded));
            let start = Start::Again { retired: note.retired };
            match self.start_steward(id, space, link, peer, survey, start) {
                Ok(entry) => drop(clients.insert(id, entry)),
                Err(error) => {
                    tracing::error!(pid = note.pid, error = %chain(&error), "a client is served, and given no orders")
                }
            }
        }
        drop(clients);
        if epoch > 1 {
            tracing::warn!(
                worker = epoch,
                clients = report.spaces,
                stored_pages = report.stored,
                standing_pages = report.standing,
                lost_pages = report.lost,
                unnamed_objects = report.unnamed,
                took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                "serving on where a worker has died"
            );
        }
        roster.set_serving(true);
    }

    fn client(&self, pid: u32) -> Result<Arc<ClientEntry>, ServerError> {
        // After an exec the old program may still be on its way out.
        let mut entries = self.entries();
        entries.sort_unstable_by_key(|entry| entry.id);
        entries.into_iter().rfind(|entry| entry.pid == pid).ok_or(ServerError::NoClient { pid })
    }

    pub(super) fn entries(&self) -> Vec<Arc<ClientEntry>> {
        self.clients.lock().values().cloned().collect()
    }

    /// Keeps what a client tells of itself; of those who tell more than anybody asks for the oldest is forgotten.
    pub(super) fn keep_hint(&self, pid: u32, hint: Hint) {
        let mut hints = self.hints.lock();
        if hints.len() == MOST_HINTS {
            hints.remove(0);
        }
        hints.push((pid, hint));
    }

    /// What clients told of themselves since the last time.
    pub(super) fn take_hints(&self) -> Vec<(u32, Hint)> {
        std::mem::take(&mut *self.hints.lock())
    }

    fn statuses(&self) -> Vec<ClientStatus> {
        let clients = self.clients.lock();
        let pids: HashMap<SpaceId, u32> = clients.iter().map(|(id, entry)| (*id, entry.pid)).collect();
        drop(clients);
        let mut statuses: Vec<ClientStatus> = self
            .engine()
            .spaces()
            .into_iter()
            .map(|(id, space)| {
                let usage = space.usage();
                ClientStatus {
                    pid: pids.get(&id).copied().unwrap_or(0),
                    space: id,
                    managed_bytes: usage.managed * page_bytes(),
                    out_bytes: usage.out * page_bytes(),
                    standby_bytes: usage.standby * page_bytes(),
                    stalled: space.stalls().now().since(&Stalled::default()).0,
                }
            })
            .collect();
        statuses.sort_unstable_by_key(|status| status.space);
        statuses
    }
}

impl ClientEntry {
    /// Has the client's steward do something and waits for what came of it.
    fn ask<T>(&self, task: impl FnOnce(Sender<T>) -> Task) -> Result<T, ServerError> {
        self.begin(task)?.recv().map_err(|_| ServerError::NoClient { pid: self.pid })
    }

    /// Has the client's steward do something; what comes of it can be had from the channel.
    fn begin<T>(&self, task: impl FnOnce(Sender<T>) -> Task) -> Result<Receiver<T>, ServerError> {
        let gone = || ServerError::NoClient { pid: self.pid };
        let (answer, answered) = crossbeam::channel::bounded(1);
        let tasks = self.steward.lock().as_ref().map(Steward::tasks).ok_or_else(gone)?;
        if tasks.send(task(answer)) { Ok(answered) } else { Err(gone()) }
    }

    /// Has the steward look at the budget again.
    fn nudge(&self) {
        if let Some(steward) = &*self.steward.lock() {
            let _ = steward.tasks().send(Task::Look);
        }
    }

    /// Ends its steward and waits for that.
    fn stop(&self) {
        let steward = self.steward.lock().take();
        drop(steward);
    }
}

/// Whether a descriptor that was just made is of the last eighth that this process may have: the kernel gives the lowest that is free, so all below are in use.
fn is_last(made: BorrowedFd<'_>) -> bool {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    u64::try_from(made.as_raw_fd()).unwrap_or(0) >= most - most / 8
}

/// Tells the server what the engine sees.
struct Watcher(Weak<Inner>);

impl Observer for Watcher {
    fn forked(&self, parent: SpaceId, child: SpaceId) {
        // A client can fork as often as it likes.
        tracing::debug!(parent = parent.0, child = child.0, "a client forked");
    }

    fn sentinel(&self, id: SpaceId, thread: u32) {
        let Some(inner) = self.0.upgrade() else { return };
        let Some(sentinel) = inner.engine().space(id).map(|space| space.sentinel()) else { return };
        let Some((child, id)) = inner.claims.touched(sentinel, thread, id) else { return };
        // Talking to the child would hold up everybody's faults.
        let enlisting = std::thread::Builder::new().name("userswap-admit".into()).spawn(move || {
            if let Err(error) = inner.enlist(child, id) {
                tell_refused(&error, &inner.telling);
            }
        });
        if let Err(error) = enlisting {
            tracing::warn!(%error, "no thread to take a forked client on with");
        }
    }

    fn leaving(&self, id: SpaceId, space: &Space) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.claims.forget(id);
        inner.total.lock().add(space);
        let Some(entry) = inner.clients.lock().remove(&id) else { return };
        tracing::info!(pid = entry.pid, "client gone");
        // Whoever waits for its answer, the steward first of all, learns it from the link.
        entry.link.disconnect();
        let steward = entry.steward.lock().take();
        if let Some(steward) = steward {
            steward.end();
            inner.past.lock().push(steward);
        }
    }
}
