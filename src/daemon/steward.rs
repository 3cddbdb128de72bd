//! One thread a client: it moves the client's memory out and back, when asked and when the budget says so, and grants its wishes.
//!
//! Moving waits for the client, which may be stopped for as long as it likes; a thread of its own keeps that from everybody else.
//! Without a limit it sleeps until somebody asks for something.

use super::error::ServerError;
use super::notes;
use super::orders::{Choose, Done};
use super::reach::ClientReach;
use super::server::{ClientEntry, Inner};
use super::survey::Survey;
use super::sweep::{Sweeper, Swept};
use crossbeam::channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use userswap_engine::{EvictError, Keep, MovedOut, Pacer, Watched};
use userswap_ipc::extension::{self, HintKind, MAX_DROPS};
use userswap_ipc::wire::MAX_REGIONS;
use userswap_ipc::{Abilities, LinkError, Peer, Wanted, Wish};
use userswap_policy::chromium::{Area, Hint};
use userswap_policy::{Demand, What};
use userswap_uffd::{Span, page_bytes};

/// Something for a steward to do.
pub(super) enum Task {
    /// Move out so many bytes, or everything.
    Evict {
        /// How many.
        bytes: Option<u64>,
        /// Who asked.
        answer: Sender<Result<MovedOut, ServerError>>,
    },
    /// Do what the policy says.
    Order {
        /// What.
        what: What,
        /// Asked what of it goes, where regions go.
        choose: Choose,
        /// Who asked.
        answer: Sender<Result<Done, ServerError>>,
    },
    /// Bring everything back.
    Restore {
        /// Who asked.
        answer: Sender<Result<u64, ServerError>>,
    },
    /// Bring everything back and never move anything again.
    Retire {
        /// Who asked.
        answer: Sender<Result<u64, ServerError>>,
    },
    /// Say what was touched since the last time, and move everything out again.
    Sweep {
        /// Who asked.
        answer: Sender<Result<Swept, ServerError>>,
    },
    /// Look at the budget again.
    Look,
    /// Stop.
    End,
}

/// How a steward comes to its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// The client is new.
    New,
    /// Another worker's steward looked after it, and is dead.
    Again {
        /// The client had asked to be left alone for good.
        retired: bool,
    },
}

/// Where tasks are left.
#[derive(Clone)]
pub(super) struct Tasks {
    sender: Sender<Task>,
    bell: Arc<OwnedFd>,
}

impl Tasks {
    /// Leaves a task; `false` if nobody will ever do it.
    pub(super) fn send(&self, task: Task) -> bool {
        let sent = self.sender.send(task).is_ok();
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        sent
    }
}

/// The handle of a steward's thread. Dropping it ends the thread and waits for it.
pub(super) struct Steward {
    tasks: Tasks,
    thread: Option<JoinHandle<()>>,
}

/// How often the budget is looked at while there is a limit.
const TICK: Duration = Duration::from_millis(50);

/// Every how many looks a client is asked what it offers, or its mappings are looked at.
const OFFERS: u32 = 20;

/// Answers that a client is asked for at most, each as long as can be, until all it offers is out: one that goes on for ever would hold up who asked.
const ANSWERS: u32 = 64;

impl Steward {
    pub(super) fn start(
        server: Weak<Inner>,
        client: Arc<ClientEntry>,
        peer: Peer,
        survey: Option<Survey>,
        start: Start,
    ) -> io::Result<Self> {
        let (sender, inbox) = unbounded();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let tasks = Tasks { sender, bell: Arc::clone(&bell) };
        let mut work = Work {
            server,
            client,
            peer,
            survey,
            bell,
            pacer: Pacer::new(),
            sweeper: Sweeper::default(),
            until_offers: 0,
            linked: true,
            retired: matches!(start, Start::Again { retired: true }),
        };
        let thread = std::thread::Builder::new().name("userswap-steward".into()).spawn(move || {
            if start != Start::New {
                work.settle_orders();
            }
            work.run(&inbox);
        })?;
        Ok(Self { tasks, thread: Some(thread) })
    }

    pub(super) fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Asks it to end, without waiting.
    pub(super) fn end(&self) {
        self.tasks.send(Task::End);
    }

    /// Whether its thread has ended.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

struct Work {
    server: Weak<Inner>,
    client: Arc<ClientEntry>,
    peer: Peer,
    /// Of a program that offers nothing by itself.
    survey: Option<Survey>,
    bell: Arc<OwnedFd>,
    pacer: Pacer,
    sweeper: Sweeper,
    /// Looks at the budget until the client is asked again what it offers.
    until_offers: u32,
    /// Whether the client can be given orders.
    linked: bool,
    /// It asked to be left alone for good.
    retired: bool,
}

impl Work {
    fn run(mut self, inbox: &Receiver<Task>) {
        loop {
            match inbox.try_recv() {
                Ok(Task::End) | Err(TryRecvError::Disconnected) => return,
                Ok(Task::Look) => self.hold(),
                Ok(Task::Evict { bytes, answer }) => {
                    let pages = bytes.map_or(u64::MAX, |bytes| bytes.div_ceil(page_bytes()));
                    let _ = answer.send(self.evict(pages));
                }
                Ok(Task::Order { what, choose, answer }) => {
                    let _ = answer.send(self.carry_out(what, choose));
                }
                Ok(Task::Sweep { answer }) => {
                    let _ = answer.send(self.sweep());
                }
                Ok(Task::Restore { answer }) => {
                    let _ = answer.send(self.restore());
                }
                Ok(Task::Retire { answer }) => {
                    self.retired = true;
                    let back = self.client.space.retire().map(|pages| pages * page_bytes());
                    let _ = answer.send(back.map_err(ServerError::from));
                }
                Err(TryRecvError::Empty) => {
                    self.grant_wishes();
                    let Some(limited) = self.server.upgrade().map(|server| server.budget.lock().is_limited())
                    else {
                        return;
                    };
                    if !self.wait(limited) && limited {
                        self.hold();
                    }
                }
            }
        }
    }

    /// Sleeps until there is a task or the client says something, or for a tick. Whether something woke it.
    fn wait(&self, limited: bool) -> bool {
        let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
        let mut fds = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        if self.linked {
            fds.push(PollFd::from_borrowed_fd(self.client.link.as_fd(), PollFlags::IN));
        }
        let woken = poll(&mut fds, limited.then_some(&tick)).unwrap_or(1) > 0;
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&*self.bell, &mut count);
        woken
    }

    /// A one-way order of the steward before may have been given or not. What comes after all orders tells.
    fn settle_orders(&mut self) {
        if self.client.link.abilities().contains(Abilities::UFFD_MOVE) {
            return;
        }
        match self.client.link.superpages(Some(0)) {
            Ok(_) => self.client.space.orders_are_done(),
            Err(error) => self.unlink(&error),
        }
    }

    // ---- what the client wants ----

    /// Grants what the client asked for, and keeps what it tells.
    fn grant_wishes(&mut self) {
        if !self.linked {
            return;
        }
        let link = &self.client.link;
        let wishes = if link.abilities().contains(Abilities::AGENT) { link.wishes() } else { Ok(Vec::new()) };
        match wishes.and_then(|wishes| link.hints().map(|hints| (wishes, hints))) {
            Ok((wishes, hints)) => {
                self.pass_on(&hints);
                wishes.into_iter().for_each(|wish| self.grant(wish));
            }
            Err(error) => self.unlink(&error),
        }
    }

    /// Tells the policy what the client tells of itself.
    fn pass_on(&self, hints: &[extension::Hint]) {
        let Some(server) = self.server.upgrade().filter(|_| !hints.is_empty()) else { return };
        for hint in hints {
            let so = hint.value != 0;
            let hint = match hint.kind {
                HintKind::Visible => Hint::Visible(so),
                HintKind::Audible => Hint::Audible(so),
                HintKind::Loading => Hint::Loading(so),
                HintKind::Frozen => Hint::Frozen(so),
            };
            server.keep_hint(self.client.pid, hint);
        }
    }

    fn grant(&mut self, wish: Wish) {
        match wish.what {
            Wanted::Exclude(area) => {
                if let Some(survey) = &mut self.survey {
                    survey.exclude(area);
                }
                // Before it is granted: a successor must leave it alone, too.
                if let Some(ledger) = self.client.space.memory().ledger() {
                    notes::exclude(ledger, area);
                }
                // Not before all is back: what the program is about to do goes unseen. But a page that is lost never comes.
                if let Err(error) = self.client.space.let_go_patiently(area) {
                    tracing::debug!(pid = self.client.pid, %error, "leaving a range alone");
                }
            }
            Wanted::Retire(why) => {
                tracing::info!(pid = self.client.pid, ?why, "a program retires");
                self.retired = true;
                if let Some(ledger) = self.client.space.memory().ledger() {
                    notes::retire(ledger);
                }
                if let Err(error) = self.client.space.retire() {
                    // Not granted: going on would lose what is still out.
                    tracing::error!(pid = self.client.pid, %error, "a program that retires could not be brought back");
                    return;
                }
            }
        }
        if let Err(error) = self.client.link.grant(wish) {
            self.unlink(&error);
        }
    }

    /// The connection is over. The address space may be as well, now or in a moment (an exec ends the agent first, and leaves only the process; then a
    /// [sweep](userswap_engine::Engine::sweep) finds out), or be served on without orders.
    fn unlink(&mut self, error: &LinkError) {
        self.linked = false;
        tracing::debug!(pid = self.client.pid, %error, "no more orders for a client");
        if self.client.space.memory().is_gone()
            && let Some(server) = self.server.upgrade()
        {
            server.engine().forget(self.client.id);
        }
    }

    // ---- moving ----

    /// Finds out what may be moved and takes what is new into care. `false` if there may be more: an answer names what is in memory, and only so much has
    /// room in it.
    fn take_offers(&mut self) -> Result<bool, ServerError> {
        if let Some(survey) = &mut self.survey {
            let memory = self.client.space.memory().as_any().downcast_ref::<Watched<ClientReach>>();
            return match memory.and_then(|memory| memory.reach().process()) {
                Some(process) => survey.look(process, &self.client.space).map(|()| true),
                None => Ok(true),
            };
        }
        let spans = self.client.link.superpages(None)?;
        self.client.space.manage_new(&spans)?;
        Ok(spans.len() < MAX_REGIONS)
    }

    fn evict(&mut self, pages: u64) -> Result<MovedOut, ServerError> {
        if self.retired || !self.linked {
            return Ok(MovedOut::default());
        }
        let mut moved = MovedOut::default();
        for _ in 0..ANSWERS {
            let all = self.take_offers()?;
            let more = self.move_out(pages.saturating_sub(moved.moved))?;
            moved += more;
            if all || more.moved == 0 || moved.moved >= pages {
                break;
            }
        }
        Ok(moved)
    }

    fn move_out(&mut self, pages: u64) -> Result<MovedOut, ServerError> {
        let moved = self.pacer.move_out(&self.client.space, pages, self.keep());
        self.judge(&moved);
        self.unshare()?;
        Ok(moved?)
    }

    fn keep(&self) -> Keep {
        match self.server.upgrade() {
            Some(server) if server.standby => Keep::Standby,
            _ => Keep::Stored,
        }
    }

    /// Does what the policy says.
    fn carry_out(&mut self, what: What, choose: Choose) -> Result<Done, ServerError> {
        if self.retired || !self.linked {
            return Ok(Done::default());
        }
        let bytes = |pages: u64| pages * page_bytes();
        match what {
            What::Out { bytes: wanted, spare: false } => {
                let moved = self.evict(wanted.div_ceil(page_bytes()))?;
                Ok(Done { moved: bytes(moved.moved), ..Done::default() })
            }
            What::Out { bytes: wanted, spare: true } => {
                self.take_offers()?;
                let pages = wanted.div_ceil(page_bytes());
                let moved = self.pacer.move_cold_out(&self.client.space, pages, self.keep());
                self.judge(&moved);
                self.unshare()?;
                Ok(Done { moved: bytes(moved?.moved), ..Done::default() })
            }
            What::Regions { pages } => self.move_regions_out(pages, choose),
            What::Back => Ok(Done { moved: self.restore()?, ..Done::default() }),
        }
    }

    fn move_regions_out(&mut self, pages: u32, choose: Choose) -> Result<Done, ServerError> {
        self.take_offers()?;
        let area = |span: &Span| Area { start: span.start(), bytes: span.len() };
        let mut areas: Vec<Area> =
            self.pacer.whole_regions(&self.client.space, pages)?.iter().map(area).collect();
        choose(&mut areas);
        let spans: Vec<Span> =
            areas.iter().filter_map(|area| Span::new(area.start, area.bytes).ok()).collect();
        let (mut went, keep) = (Vec::new(), self.keep());
        let moved = self.pacer.move_regions_out(&self.client.space, &spans, keep, &mut went);
        self.judge(&moved);
        self.unshare()?;
        // What went before it had to stop is out, and counts.
        if let Err(error) = moved {
            tracing::debug!(pid = self.client.pid, %error, "a round was cut short");
        }
        let regions = spans.iter().zip(&went).filter(|(_, pages)| **pages > 0);
        let moved = went.iter().sum::<u64>() * page_bytes();
        Ok(Done { moved, regions: regions.map(|(span, _)| area(span)).collect() })
    }

    fn sweep(&mut self) -> Result<Swept, ServerError> {
        if self.retired || !self.linked {
            return Ok(Swept::default());
        }
        self.take_offers()?;
        let swept = self.sweeper.sweep(&self.client.space);
        self.unshare()?;
        Ok(swept?)
    }

    /// Has pages that only seem shared, with a child that is gone, made the program's own: they can go next time.
    fn unshare(&self) -> Result<(), ServerError> {
        let memory = self.client.space.memory().as_any().downcast_ref::<Watched<ClientReach>>();
        let pages = memory.map(|memory| memory.reach().take_was_shared()).unwrap_or_default();
        for some in pages.chunks(MAX_DROPS) {
            self.client.link.unshare(some)?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<u64, ServerError> {
        let Some(server) = self.server.upgrade() else { return Ok(0) };
        Ok(server.engine().bring_back_all(&self.client.space)? * page_bytes())
    }

    /// Holds the client to the budget.
    fn hold(&mut self) {
        if self.retired || !self.linked {
            return;
        }
        if let Err(error) = self.try_hold() {
            tracing::debug!(pid = self.client.pid, %error, "holding a client to the budget");
        }
    }

    fn try_hold(&mut self) -> Result<(), ServerError> {
        if self.until_offers == 0 {
            self.until_offers = OFFERS;
            self.take_offers()?;
        }
        self.until_offers -= 1;
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let page = page_bytes();
        let resident = Pacer::resident(&self.client.space)? * page;
        let others = server.entries();
        let others = others.iter().filter(|entry| !Arc::ptr_eq(entry, &self.client));
        let in_others: u64 = others.map(|entry| Pacer::resident(&entry.space).unwrap_or(0) * page).sum();
        let demand = Demand { resident, resident_in_all: resident + in_others };
        let excess = server.budget.lock().excess(demand);
        drop(server);
        if excess > 0 {
            self.move_out(excess.div_ceil(page))?;
        }
        Ok(())
    }

    /// Ends or disconnects a client that unmapped what it was told to move, or didn't move it.
    fn judge(&self, moved: &Result<MovedOut, EvictError>) {
        if self.client.space.broke_promise() || matches!(moved, Err(EvictError::Unanswered(_))) {
            match self.client.link.unexpected_unmap(&self.peer) {
                Ok(done) => {
                    tracing::warn!(pid = self.client.pid, ?done, "a client unmapped what was being moved")
                }
                Err(error) => tracing::warn!(pid = self.client.pid, %error, "a client could not be ended"),
            }
        }
    }
}
