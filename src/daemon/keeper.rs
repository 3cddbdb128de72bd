//! The keeper: a small process that outlives its workers.
//!
//! It makes the sockets and the roster, then a worker that shares its file table, and waits. The worker does everything; whatever it opens, or is
//! handed by a client or by the kernel, is open in the keeper too, which never looks at any of it. So nothing that a worker held is lost with
//! it: userfaultfds stay open, and who touches memory that is out waits; connections stay, and so do the ledgers and the store. Then the next worker
//! takes all of it up ([`Heritage`]).
//!
//! The keeper has one thread, allocates next to nothing and is not known to clients: there is little it could die of. If it does, its worker
//! is told to end in good order, which brings everything back.
#![allow(unsafe_code)]

use super::control::{ControlError, ControlSocket};
use super::deposit::{self, Returned};
use super::error::{chain, end_at_once};
use super::handover::{self, Handover};
use super::heir::Heritage;
use super::notes;
use super::notifier::Notifier;
use super::trustee;
use crate::run::Signals;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap_engine::{Ledger, Roster};
use userswap_ipc::{Listener, TransportError};
use userswap_uffd::succession::{Forked, descriptors, fork_sharing_files, take_over};

/// What workers are started with.
pub struct Keeper {
    listener: Listener,
    control: Option<ControlSocket>,
    signals: Signals,
    patience: Duration,
    /// Workers' stores have keys.
    has_keys: bool,
    /// What another program has left, and the descriptors of that which aren't its workers'.
    before: Option<(Arc<Roster>, Vec<RawFd>)>,
    /// Who keeps everything if this process dies, too.
    notifier: Option<Arc<Notifier>>,
    /// What that one gave back when this program began.
    returned: Vec<RawFd>,
    /// This process.
    process: u32,
    /// Who holds what must not be closed if keeper and worker die at once.
    trustee: Cell<Option<Pid>>,
}

/// What a process comes out of [`Keeper::keep`] as.
pub enum Kept {
    /// A worker, which is to serve. What it owns is to be dropped only at its orderly end.
    Worker {
        /// Where clients connect.
        listener: Listener,
        /// Where operators do.
        control: Option<ControlSocket>,
        /// What the worker before has left.
        heritage: Heritage,
        /// The way to the service manager, if there is one.
        notifier: Option<Arc<Notifier>>,
    },
    /// The keeper, whose last worker has ended with this status.
    Over(u8),
}

/// Why there can be no keeper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// Listening for clients.
    #[error(transparent)]
    Listen(#[from] TransportError),
    /// Listening for orders.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A worker could not be started.
    #[error(transparent)]
    Fork(#[from] userswap_uffd::Error),
    /// Memory or descriptors could not be had.
    #[error("{doing}")]
    Start {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// How long clients are left waiting for a worker, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// So many workers in a row that die before they serve anybody are enough.
const TRIES: u32 = 5;

/// How long to wait after the first of these; twice as long after each.
const PAUSE: Duration = Duration::from_millis(20);

impl Keeper {
    /// Makes the sockets, unless somebody has left them: the program that this process was before, or one that died and whose descriptors the service
    /// manager has kept.
    ///
    /// # Errors
    /// When they can't be had, or signals can't be taken.
    pub fn new(listen: &Path, mode: u32, control: Option<&Path>) -> Result<Self, KeeperError> {
        let failed = |doing| move |source| KeeperError::Start { doing, source };
        // SAFETY: a program begins, and has nothing open but what the one before it has left.
        let (found, past) = match unsafe { Handover::found() }? {
            Some(found) => (Some(found), Vec::new()),
            // SAFETY: as above.
            None => match unsafe { deposit::returned() }? {
                Returned::Nothing => (None, Vec::new()),
                Returned::Ended(names) => (None, names),
                Returned::Daemon(mut found) => {
                    let stale = std::mem::take(&mut found.stale);
                    (Some(found), stale)
                }
            },
        };
        let signals = Signals::take().map_err(failed("taking signals"))?;
        let notifier = Notifier::of_environment().map_err(failed("finding the service manager"))?;
        for name in past {
            if let Some(Err(error)) = notifier.as_ref().map(|notifier| notifier.forget(&name)) {
                tracing::warn!(%error, name, "the service manager keeps what nobody needs");
            }
        }
        let bind = || match listen.to_str().and_then(|path| path.strip_prefix('@')) {
            Some(name) => Listener::bind_abstract(name),
            None => Listener::bind(listen, mode),
        };
        let (mut before, mut resumed, mut returned) = (None, (None, None), Vec::new());
        if let Some(found) = found {
            before = Some((found.roster, found.own));
            resumed = (found.listener, found.control);
            returned = found.returned;
        }
        let listener = match resumed.0 {
            Some(socket) => Listener::resume(socket, listen),
            None => bind()?,
        };
        let control = match (resumed.1, control) {
            (Some(socket), Some(path)) => Some(ControlSocket::resume(socket, path)),
            (_, path) => path.map(ControlSocket::bind).transpose()?,
        };
        if let Some((_, own)) = &mut before {
            let sockets =
                [signals.as_fd(), listener.as_fd()].into_iter().chain(notifier.as_ref().map(AsFd::as_fd));
            own.extend(sockets.map(|socket| socket.as_raw_fd()));
            own.extend(control.as_ref().map(|control| control.as_fd().as_raw_fd()));
        }
        let notifier = notifier.map(Arc::new);
        Ok(Self {
            listener,
            control,
            signals,
            patience: PATIENCE,
            has_keys: false,
            before,
            notifier,
            returned,
            process: std::process::id(),
            trustee: Cell::new(None),
        })
    }

    /// How long clients are left waiting, if no worker can serve them, before they are ended: a minute unless said otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether workers' stores have keys, which the keeper then has in locked memory.
    #[must_use]
    pub fn has_keys(mut self, yes: bool) -> Self {
        self.has_keys = yes;
        self
    }

    /// As [`keep`](Self::keep), for a program that has just begun.
    ///
    /// # Errors
    /// [`KeeperError::Start`] if this process has several threads; and as there.
    pub fn keep_alone(self) -> Result<Kept, KeeperError> {
        let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
        if !matches!(threads, Ok(1)) {
            let source = io::Error::other("this process has several threads");
            return Err(KeeperError::Start { doing: "starting a worker", source });
        }
        // SAFETY: there is one thread. The descriptors that are open are those of `self` and those that the program was started with, which nothing
        // closes.
        unsafe { self.keep() }
    }

    /// Starts a worker, and another whenever one has died. Returns in each worker, and in the keeper once a worker has ended in good order.
    ///
    /// # Errors
    /// When no worker can be started.
    ///
    /// # Safety
    /// This process has no other thread, and owns every descriptor that is open.
    pub unsafe fn keep(mut self) -> Result<Kept, KeeperError> {
        let failed = |source| KeeperError::Start { doing: "making the list of what workers leave", source };
        let (roster, own) = match self.before.take() {
            Some(before) => before,
            None => {
                let roster = Roster::create().map_err(failed)?;
                if self.has_keys {
                    let doing = "locking stores' keys in memory (RLIMIT_MEMLOCK allows how much)";
                    roster.make_keys().map_err(|source| KeeperError::Start { doing, source })?;
                }
                (roster, descriptors()?)
            }
        };
        // The last worker may have closed it when the keeper comes to its end.
        std::mem::forget(Arc::clone(&roster));
        if let Some(notifier) = self.depot() {
            let control = self.control.as_ref().map(AsFd::as_fd);
            deposit::keep_own(notifier, &roster, self.listener.as_fd(), control);
        }
        let mut failures = 0;
        for number in 1_u32.. {
            roster.set_serving(false);
            // SAFETY: the caller's promise.
            unsafe { self.see_to_trustee(&roster, true) };
            // SAFETY: there is one thread, by the caller's promise and since the keeper starts none. What exists twice is dropped by a worker at its
            // end, after which the keeper drops nothing.
            match unsafe { fork_sharing_files() }? {
                Forked::Child => return Ok(self.worker(roster, &own)),
                Forked::Parent(worker) => {
                    // SAFETY: as above.
                    let (ended, upgrade) = unsafe { self.wait(worker, &roster) };
                    let waiting = roster.ledgers().len();
                    if roster.has_ended() || waiting == 0 && matches!(ended, Ended::With(_)) {
                        let status = if let Ended::With(status) = ended { status } else { 0 };
                        self.end_trustee();
                        if let Some(notifier) = self.depot() {
                            let control = self.control.as_ref().map(|control| control.as_fd().as_raw_fd());
                            deposit::forget_own(
                                notifier,
                                &roster,
                                self.listener.as_fd().as_raw_fd(),
                                control,
                            );
                        }
                        return Ok(self.over(status));
                    }
                    if upgrade {
                        // It would keep open what the next program closes.
                        self.end_trustee();
                        self.become_what_the_program_is(&roster, &own);
                    }
                    failures = if upgrade || roster.is_serving() { 0 } else { failures + 1 };
                    if !upgrade {
                        tracing::error!(worker, number, of = %ended, clients = waiting, "a worker has died");
                    }
                    if failures >= TRIES {
                        break;
                    }
                    if failures > 0 {
                        std::thread::sleep(PAUSE * (1 << failures));
                    }
                }
            }
        }
        self.give_up(&roster, failures);
        Ok(self.over(GAVE_UP))
    }

    /// Who keeps descriptors, if somebody may.
    fn depot(&self) -> Option<&Notifier> {
        self.notifier.as_deref().filter(|notifier| notifier.may_keep())
    }

    /// Has a trustee: another one where it was killed, and a first one if it `may_begin`. None where somebody is sure to keep everything.
    ///
    /// # Safety
    /// As [`keep`](Self::keep).
    unsafe fn see_to_trustee(&self, roster: &Arc<Roster>, may_begin: bool) {
        let is_there = match self.trustee.get() {
            Some(pid) => matches!(rustix::process::waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)),
            None => !may_begin,
        };
        if is_there || self.notifier.as_ref().is_some_and(|notifier| notifier.keeps() > 0) {
            return;
        }
        // SAFETY: the caller's promise. The child drops nothing before both others are dead.
        let started = match unsafe { fork_sharing_files() } {
            // SAFETY: this is that child.
            Ok(Forked::Child) => unsafe { trustee::stay(roster, self.process, &self.signals, self.patience) },
            Ok(Forked::Parent(pid)) => i32::try_from(pid).ok().and_then(Pid::from_raw),
            Err(error) => {
                tracing::warn!(%error, "nobody holds forked children's memory should keeper and worker be killed at once");
                None
            }
        };
        self.trustee.set(started);
    }

    /// Nobody is left, or another one will be made.
    fn end_trustee(&self) {
        if let Some(pid) = self.trustee.take() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }

    fn worker(self, roster: Arc<Roster>, own: &[RawFd]) -> Kept {
        let pid = std::process::id();
        roster.note_worker(pid, deposit::began_at(pid).unwrap_or(0));
        if !trustee::is_child_of(self.process) {
            // Others know by now that the keeper is dead, and wait for no worker that they don't know of.
            tracing::error!("the keeper has died");
            std::process::exit(i32::from(GAVE_UP));
        }
        // SAFETY: the file table is shared with the keeper alone, which waits; `own` are the descriptors it had before the first worker, of which this
        // process has everything that owns one. The worker before is dead, if there was one.
        let taken = unsafe { Heritage::take(roster, own) };
        let mut heritage = taken.unwrap_or_else(|error| end_at_once(&error));
        let Self { listener, control, signals, notifier, returned, .. } = self;
        // A worker takes its own.
        std::mem::forget(signals);
        if let Some(notifier) = notifier.as_ref().filter(|notifier| notifier.may_keep()) {
            heritage.deposit_with(Arc::clone(notifier), returned);
        }
        Kept::Worker { listener, control, heritage, notifier }
    }

    /// Waits for a worker to end, passing on what the keeper is told. Whether it was ended for another program to go on.
    ///
    /// # Safety
    /// As [`keep`](Self::keep).
    unsafe fn wait(&self, worker: u32, roster: &Arc<Roster>) -> (Ended, bool) {
        let Some(pid) = i32::try_from(worker).ok().and_then(Pid::from_raw) else {
            return (Ended::Unknown, false);
        };
        let mut upgrade = false;
        loop {
            match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => return (Ended::of(status), upgrade),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return (Ended::Unknown, upgrade),
            }
            // SAFETY: the caller's promise.
            unsafe { self.see_to_trustee(roster, false) };
            let mut fds = [PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
            while let Some(arrived) = self.signals.next() {
                // What the terminal sends goes to the whole group, the worker included.
                if arrived.asks_to_end() && arrived.sent {
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
                if arrived.asks_to_upgrade() && !upgrade && handover::can_take_over() {
                    upgrade = true;
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    }

    /// Executes what stands where this program was. Returns if that fails: this one goes on then.
    fn become_what_the_program_is(&self, roster: &Arc<Roster>, own: &[RawFd]) {
        let manager = self.notifier.as_ref().map(|notifier| notifier.as_fd().as_raw_fd());
        let handover = Handover {
            roster: roster.as_fd().as_raw_fd(),
            listener: self.listener.as_fd().as_raw_fd(),
            control: self.control.as_ref().map(|control| control.as_fd().as_raw_fd()),
            // The next program finds its own way to the service manager.
            own: own.iter().copied().filter(|number| Some(*number) != manager).collect(),
            signals: self.signals.as_fd().as_raw_fd(),
        };
        tracing::info!("going on as what the program is now");
        // SAFETY: the keeper has one thread, and its worker is dead.
        let error = unsafe { handover.execute() };
        tracing::error!(error = %chain(&error), "the program could not be replaced: going on as before");
    }

    /// Nobody can serve those who wait. They are left waiting for a while, in which an operator may look, and then ended: never fed anything else.
    fn give_up(&self, roster: &Arc<Roster>, failures: u32) {
        let waiting = roster.ledgers();
        tracing::error!(
            failures,
            clients = waiting.len(),
            patience_s = self.patience.as_secs(),
            "no worker gets as far as serving: whoever has memory out waits, and will be ended"
        );
        let end = Instant::now() + self.patience;
        while Instant::now() < end && roster.ledgers() == waiting {
            let mut fds = [PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
            while self.signals.next().is_some() {}
        }
        for number in waiting {
            // SAFETY: the ledger was the last worker's, which is dead; nobody takes it over after this.
            let Some(memory) = (unsafe { take_over(number) }) else { continue };
            let Ok(ledger) = Ledger::adopt(memory, roster) else { continue };
            let Some(note) = notes::read(&ledger) else { continue };
            // SAFETY: as above.
            let Some(pidfd) = (unsafe { take_over(note.pidfd) }) else { continue };
            tracing::error!(pid = note.pid, "a program is ended: its memory can't be brought back");
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }

    /// The worker has dropped what is here, or nobody ever will.
    fn over(self, status: u8) -> Kept {
        let Self { listener, control, signals, notifier, .. } = self;
        std::mem::forget((listener, control, notifier));
        drop(signals);
        Kept::Over(status)
    }
}

/// The keeper's status when no worker could serve.
const GAVE_UP: u8 = 1;

/// How a worker ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    With(u8),
    By(i32),
    Unknown,
}

impl Ended {
    fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Self::With(u8::try_from(status).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Self::By(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::With(status) => write!(f, "exit {status}"),
            Self::By(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "an unknown cause"),
        }
    }
}
