//! What the service manager keeps, so that keeper and worker may both die: every descriptor that a successor needs, under a name that says its number.
//!
//! The manager starts the program again and gives all of it back. Each descriptor is put under the number it had, for that is how ledgers and lists name them,
//! and then there is no difference to a program that this one became ([`handover`](super::handover)).
//!
//! A thread sends what is to be kept, some time after it was entered: most forked children are gone by then, and the manager, who is busy with more than this, never
//! hears of them. What is kept no longer is said before its number can be another's.
#![allow(unsafe_code)]

use super::handover::Found;
use super::keeper::KeeperError;
use super::notes;
use super::notifier::Notifier;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::ledger::{Depot, LAYOUT};
use userswap_engine::{Ledger, Roster};
use userswap_uffd::succession::{renumber, set_close_on_exec, take_over};

/// Who has been in the list for less isn't sent.
const PACE: Duration = Duration::from_millis(50);

/// When the manager takes nothing for now.
const PAUSE: Duration = Duration::from_millis(20);

/// What the keeper has, by the names it is kept under.
const ROSTER: &str = "roster";
const KEYS: &str = "keys";
const LISTENER: &str = "listener";
const CONTROL: &str = "control";

/// The name that a descriptor is kept under. `what` is empty for what the list and its ledgers name.
fn name(what: &str, number: RawFd) -> String {
    format!("userswap{LAYOUT}.{what}.{number}")
}

/// Which layout a name is of, what it is and which number it had.
fn parse(name: &str) -> Option<(u64, &str, RawFd)> {
    let (layout, rest) = name.strip_prefix("userswap")?.split_once('.')?;
    let (what, number) = rest.split_once('.')?;
    Some((layout.parse().ok()?, what, number.parse().ok()?))
}

/// The worker's side: follows the list of ledgers.
pub(super) struct Deposit {
    notifier: Arc<Notifier>,
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    /// By ledger: what belongs to it, the ledger itself last, so that none is found that lacks something.
    wanted: BTreeMap<u64, Vec<RawFd>>,
    kept: BTreeSet<RawFd>,
    /// Ledgers of which something isn't kept yet.
    unsent: BTreeSet<u64>,
    /// Names that are to be forgotten, when somebody listens.
    owed: VecDeque<String>,
    /// What is kept beside.
    others: usize,
    is_told_full: bool,
}

impl Deposit {
    /// Follows the list from now on, in which these ledgers are already. `returned` are the numbers that the manager gave back at the start.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(
        notifier: &Arc<Notifier>,
        roster: &Arc<Roster>,
        ledgers: &[Arc<Ledger>],
        returned: &[RawFd],
    ) -> io::Result<()> {
        let deposit = Arc::new(Self {
            notifier: Arc::clone(notifier),
            known: Mutex::default(),
            changed: Condvar::new(),
        });
        roster.set_depot(Arc::clone(&deposit) as Arc<dyn Depot>);
        for ledger in ledgers {
            deposit.entered(ledger);
        }
        let mut known = deposit.known.lock();
        let arenas = roster.arenas();
        known.others = arenas.len() + 4;
        let wanted: BTreeSet<RawFd> = known.wanted.values().flatten().chain(&arenas).copied().collect();
        known.owed.extend(
            returned.iter().filter(|number| !wanted.contains(number)).map(|number| name("", *number)),
        );
        drop(known);
        for arena in arenas {
            // SAFETY: open for as long as there is a worker.
            keep_for_sure(notifier, "", unsafe { BorrowedFd::borrow_raw(arena) });
        }
        std::thread::Builder::new().name("userswap-deposit".into()).spawn(move || deposit.run()).map(drop)
    }

    fn run(&self) {
        loop {
            let mut known = self.known.lock();
            while known.unsent.is_empty() && known.owed.is_empty() {
                self.changed.wait(&mut known);
            }
            drop(known);
            std::thread::sleep(PACE);
            while !self.send_one() {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Sends what is to be sent. `false`: nobody takes it for now.
    fn send_one(&self) -> bool {
        loop {
            let mut known = self.known.lock();
            if !known.settle(&self.notifier) {
                return false;
            }
            let Some(ledger) = known.unsent.first().copied() else { return true };
            let numbers = known.wanted.get(&ledger).cloned().unwrap_or_default();
            for number in numbers {
                if known.kept.contains(&number) {
                    continue;
                }
                // SAFETY: a ledger says that it leaves before what it names is closed, and waits for the lock that is held here to say so.
                let sent = self.notifier.keep(&name("", number), unsafe { BorrowedFd::borrow_raw(number) });
                match sent {
                    Ok(()) => drop(known.kept.insert(number)),
                    Err(Errno::AGAIN | Errno::NOBUFS) => return false,
                    Err(error) => {
                        tracing::warn!(%error, "a program isn't known to the service manager, and won't survive the keeper's death");
                        break;
                    }
                }
            }
            known.unsent.remove(&ledger);
            known.tell_if_full(self.notifier.keeps());
        }
    }
}

impl Known {
    /// Has forgotten what is owed to be, which comes before anything new: a number may be another's by now.
    fn settle(&mut self, notifier: &Notifier) -> bool {
        while let Some(name) = self.owed.front() {
            if matches!(notifier.forget(name), Err(Errno::AGAIN | Errno::NOBUFS)) {
                return false;
            }
            self.owed.pop_front();
        }
        true
    }

    fn tell_if_full(&mut self, most: usize) {
        let count = self.kept.len() + self.others;
        if most > 0 && count > most && !self.is_told_full {
            self.is_told_full = true;
            tracing::error!(
                count,
                most,
                "the service manager keeps no more descriptors (FileDescriptorStoreMax=): who came last won't survive the keeper's death"
            );
        }
    }
}

impl Depot for Deposit {
    fn entered(&self, ledger: &Ledger) {
        let mut numbers: Vec<RawFd> = ledger.uffd().map(|(number, _)| number).into_iter().collect();
        numbers.extend(notes::read(ledger).map(|note| [note.connection, note.pidfd]).into_iter().flatten());
        numbers.push(ledger.as_fd().as_raw_fd());
        let mut known = self.known.lock();
        known.wanted.insert(ledger.uid(), numbers);
        known.unsent.insert(ledger.uid());
        self.changed.notify_one();
    }

    fn leaving(&self, ledger: &Ledger) {
        let mut known = self.known.lock();
        known.unsent.remove(&ledger.uid());
        for number in known.wanted.remove(&ledger.uid()).unwrap_or_default() {
            if known.kept.remove(&number) {
                known.owed.push_back(name("", number));
            }
        }
        if !known.settle(&self.notifier) {
            self.changed.notify_one();
        }
    }
}

/// The keeper's side: has its own kept. What is sent once and never again is worth waiting for a little.
pub(super) fn keep_own(
    notifier: &Notifier,
    roster: &Roster,
    listener: BorrowedFd<'_>,
    control: Option<BorrowedFd<'_>>,
) {
    keep_for_sure(notifier, ROSTER, roster.as_fd());
    keep_for_sure(notifier, LISTENER, listener);
    for (what, descriptor) in [(KEYS, roster.keys()), (CONTROL, control)] {
        if let Some(descriptor) = descriptor {
            keep_for_sure(notifier, what, descriptor);
        }
    }
}

fn keep_for_sure(notifier: &Notifier, what: &str, descriptor: BorrowedFd<'_>) {
    let name = name(what, descriptor.as_raw_fd());
    if let Err(error) = patiently(|| notifier.keep(&name, descriptor)) {
        tracing::error!(%error, name, "the service manager takes nothing: nobody will survive the keeper's death");
    }
}

/// At the end in good order nothing is to be found by who comes next.
pub(super) fn forget_own(notifier: &Notifier, roster: &Roster, listener: RawFd, control: Option<RawFd>) {
    let own = [(ROSTER, Some(roster.as_fd().as_raw_fd())), (KEYS, roster.keys_number())];
    let own = own.into_iter().chain([(LISTENER, Some(listener)), (CONTROL, control)]);
    let arenas = roster.arenas().into_iter().map(|number| ("", Some(number)));
    for (what, number) in own.chain(arenas) {
        if let Some(number) = number {
            let _ = patiently(|| notifier.forget(&name(what, number)));
        }
    }
}

/// A second at most, in which a manager that lives has read.
fn patiently(send: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    for _ in 0..50 {
        match send() {
            Err(Errno::AGAIN | Errno::NOBUFS) => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// What the manager has given back to this process.
pub(super) enum Returned {
    /// Nothing of this program's.
    Nothing,
    /// A daemon's that ended in good order: these names are to be forgotten.
    Ended(Vec<String>),
    /// One that was killed.
    Daemon(Found),
}

/// Takes up what was given back, each under the number that it had.
///
/// # Errors
/// When it is another version's, or not whole: then this process is to end, and the manager has it all still.
///
/// # Safety
/// This process has one thread, and owns no descriptor yet but the first three.
pub(super) unsafe fn returned() -> Result<Returned, KeeperError> {
    let failed = |source| KeeperError::Start { doing: "taking up what the service manager has kept", source };
    let given = given();
    let mut pairs = Vec::new();
    let mut found = BTreeMap::new();
    for (at, given) in &given {
        let Some((layout, what, number)) = parse(given) else { continue };
        if layout != LAYOUT {
            return Err(failed(io::Error::other(format!(
                "it is of layout {layout}, this program's is {LAYOUT}: start the program again that left it, and end it in good order"
            ))));
        }
        pairs.push((*at, number));
        if !what.is_empty() {
            found.insert(what.to_owned(), number);
        }
    }
    if pairs.is_empty() {
        return Ok(Returned::Nothing);
    }
    set_close_on_exec(true)?;
    // SAFETY: nobody owns them, by the caller's promise.
    unsafe { renumber(&pairs) }?;
    // SAFETY: they are nobody's, and each is taken once.
    let mut take = |what: &str| found.remove(what).and_then(|number| unsafe { take_over(number) });
    let missing = |what| failed(io::Error::other(format!("there is no {what}")));
    let roster = Roster::adopt(take(ROSTER).ok_or_else(|| missing("list of clients"))?).map_err(failed)?;
    end_worker_of(&roster).map_err(failed)?;
    if roster.has_ended() {
        for (_, number) in &pairs {
            // SAFETY: as above. The list is closed by its owner.
            drop((*number != roster.as_fd().as_raw_fd()).then(|| unsafe { take_over(*number) }));
        }
        return Ok(Returned::Ended(given.into_iter().map(|(_, name)| name).collect()));
    }
    let keys = take(KEYS);
    if roster.keys_number() != keys.as_ref().map(AsRawFd::as_raw_fd) {
        return Err(missing("keys"));
    }
    if let Some(keys) = keys {
        roster.adopt_keys(keys).map_err(failed)?;
    }
    let mut stale = Vec::new();
    let mut listening = |what| {
        let socket = take(what)?;
        if is_listening(&socket) {
            return Some(socket);
        }
        stale.push(name(what, socket.as_raw_fd()));
        None
    };
    let (listener, control) = (listening(LISTENER), listening(CONTROL));
    let numbers = pairs.into_iter().map(|(_, number)| number).collect();
    let own = [0, 1, 2].into_iter().chain(keeper_numbers(&roster, &listener, &control)).collect();
    Ok(Returned::Daemon(Found { roster, listener, control, own, returned: numbers, stale }))
}

fn keeper_numbers(roster: &Roster, listener: &Option<OwnedFd>, control: &Option<OwnedFd>) -> Vec<RawFd> {
    let sockets = listener.iter().chain(control).map(AsRawFd::as_raw_fd);
    [Some(roster.as_fd().as_raw_fd()), roster.keys_number()].into_iter().flatten().chain(sockets).collect()
}

/// Whether a socket is still one to connect to, and says from now on that it is this process's. One that a worker had shut down at its end isn't.
fn is_listening(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let asked = rustix::event::poll(&mut fds, Some(&now));
    asked.is_ok() && !fds[0].revents().contains(PollFlags::HUP) && rustix::net::listen(socket, 128).is_ok()
}

/// A worker that hasn't noticed yet that its keeper is gone would serve beside the next.
fn end_worker_of(roster: &Roster) -> io::Result<()> {
    let Some((pid, began)) = roster.worker() else { return Ok(()) };
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else { return Ok(()) };
    let has_ended = |tv_sec| {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec, tv_nsec: 0 })), Ok(1..))
    };
    if began_at(pid) != Some(began) || has_ended(0) {
        return Ok(());
    }
    tracing::warn!(pid, "the last worker is still there, and is ended");
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    if has_ended(10) {
        return Ok(());
    }
    Err(io::Error::other(format!("the last worker, process {pid}, doesn't end")))
}

/// When a process began, in ticks since the machine did.
pub(super) fn began_at(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may be anything, in brackets.
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether the service manager has given something back that a daemon left.
pub fn has_returned() -> bool {
    given().iter().any(|(_, name)| parse(name).is_some())
}

/// What was given to this process, with its names: from 3 on, as sd_listen_fds(3) has it.
fn given() -> Vec<(RawFd, String)> {
    let text = |name| std::env::var(name).unwrap_or_default();
    if text("LISTEN_PID").parse() != Ok(std::process::id()) {
        return Vec::new();
    }
    let count: RawFd = text("LISTEN_FDS").parse().unwrap_or(0);
    (3..count.saturating_add(3)).zip(text("LISTEN_FDNAMES").split(':').map(str::to_owned)).collect()
}

/// What an environment is not to have for a program that this process becomes: it was meant for the one before.
pub(super) const GIVEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_and_which() {
        assert_eq!(parse(&name(ROSTER, 7)), Some((LAYOUT, ROSTER, 7)));
        assert_eq!(parse(&name("", 1234)), Some((LAYOUT, "", 1234)));
        for other in ["", "connection", "userswap", "userswap2", "userswapx..7", "userswap2..x"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_began_at_some_time() {
        assert!(began_at(std::process::id()).is_some_and(|ticks| ticks > 0));
    }
}
