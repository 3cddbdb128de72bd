//! Taking up what a dead worker has left: its descriptors by their numbers, its clients by their ledgers.
#![allow(unsafe_code)]

use super::divisions::Divisions;
use super::error::{ServerError, end_at_once};
use super::notes::{self, Note};
use super::reach::{ClientReach, Told};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::{Ledger, Memory, Roster, Watched};
use userswap_ipc::{ClientLink, Connection, Peer, Resumed};
use userswap_uffd::succession::{close_all_but, take_over};
use userswap_uffd::{Pagemap, Process, RawUffd, Uffd};

/// What a worker starts with: the list of what the ones before it have left.
pub struct Heritage {
    roster: Arc<Roster>,
    epoch: u64,
    /// Closed by whoever takes them up, and else by nobody: a worker that gets no further leaves them to the next.
    ledgers: ManuallyDrop<Vec<Arc<Ledger>>>,
    /// Closed by nobody: they are the next one's, too.
    arenas: ManuallyDrop<Vec<OwnedFd>>,
    /// Who keeps everything for who comes after the keeper, and what that one gave back.
    #[cfg(all(feature = "control", feature = "run"))]
    depot: Option<(Arc<super::notifier::Notifier>, Vec<RawFd>)>,
}

impl Heritage {
    /// Takes over what is listed, and closes everything else that a dead worker had open. `keep` are the descriptors that this process has from its
    /// keeper.
    ///
    /// # Errors
    /// When descriptors can't be listed.
    ///
    /// # Safety
    /// This process shares its file table with processes that wait for its end, and with no other. It owns the descriptors in `keep` and no others, and
    /// whatever the one before it owned is nobody's now.
    pub(super) unsafe fn take(roster: Arc<Roster>, keep: &[RawFd]) -> io::Result<Self> {
        let epoch = roster.next_epoch();
        let mut kept: HashSet<RawFd> = keep.iter().copied().collect();
        // SAFETY: listed descriptors are the dead worker's, and taken once: the list has each once.
        let take = |number| unsafe { take_over(number) };
        let mut ledgers = ManuallyDrop::new(Vec::new());
        for number in roster.ledgers() {
            let Some(memory) = take(number) else {
                tracing::error!("a ledger is listed that isn't open: whose it is is lost");
                roster.strike(number);
                continue;
            };
            kept.insert(number);
            let ledger = match Ledger::adopt(memory, &roster) {
                Ok(ledger) => ledger,
                Err(error) if is_want(&error) => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "a ledger makes no sense: whose it is is lost");
                    roster.strike(number);
                    continue;
                }
            };
            kept.extend(ledger.uffd().map(|(uffd, _)| uffd));
            kept.extend(ledger.children());
            if let Some(note) = notes::read(&ledger) {
                kept.extend([note.connection, note.pidfd]);
            }
            ledgers.push(ledger);
        }
        let arenas: ManuallyDrop<Vec<_>> =
            ManuallyDrop::new(roster.arenas().into_iter().filter_map(take).collect());
        kept.extend(arenas.iter().map(AsRawFd::as_raw_fd));
        // SAFETY: this process owns those in `keep`, and what was just taken over.
        unsafe { close_all_but(&kept.into_iter().collect::<Vec<_>>()) }.map_err(io::Error::other)?;
        Ok(Self {
            roster,
            epoch,
            ledgers,
            arenas,
            #[cfg(all(feature = "control", feature = "run"))]
            depot: None,
        })
    }

    /// The list, to enter what this worker will leave.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// What the store's objects are in, if there was a worker before this one that had any.
    pub fn arenas(&self) -> Vec<BorrowedFd<'_>> {
        self.arenas.iter().map(AsFd::as_fd).collect()
    }

    /// Has somebody keep everything who outlives the keeper, and gave these back.
    #[cfg(all(feature = "control", feature = "run"))]
    pub(super) fn deposit_with(&mut self, notifier: Arc<super::notifier::Notifier>, returned: Vec<RawFd>) {
        self.depot = Some((notifier, returned));
    }

    /// From now on everything is kept so, if there is who does.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn begin_deposit(&self) -> io::Result<()> {
        #[cfg(all(feature = "control", feature = "run"))]
        if let Some((notifier, returned)) = &self.depot {
            super::deposit::Deposit::start(notifier, &self.roster, &self.ledgers, returned)?;
        }
        Ok(())
    }

    /// How many clients, children included, wait for this worker.
    pub fn waiting(&self) -> usize {
        self.ledgers.len()
    }

    /// How many workers there were, this one included.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Everybody that can be served on. Who can't is ended: what is out of its memory will never be there again.
    pub(super) fn clients(self) -> Vec<Waiting> {
        let mut waiting = Vec::with_capacity(self.ledgers.len());
        for ledger in ManuallyDrop::into_inner(self.ledgers) {
            let note = notes::read(&ledger);
            let reach = note.as_ref().map(Reach::of);
            if let Some(Err(error)) = &reach
                && is_want(error)
            {
                end_at_once(error);
            }
            // SAFETY: the ledger says that it was the dead worker's, and is asked once.
            let taken =
                ledger.uffd().and_then(|(uffd, features)| Some((unsafe { take_over(uffd) }?, features)));
            let uffd = taken.and_then(|(uffd, features)| {
                let uffd =
                    RawUffd::from_fd(uffd).and_then(|uffd| Uffd::from_handshaken(uffd.into_fd(), features));
                uffd.inspect_err(|error| tracing::error!(%error, "a client's userfaultfd")).ok()
            });
            let Some(uffd) = uffd else {
                end(note.as_ref(), &ledger);
                std::mem::forget(ledger);
                continue;
            };
            if !ledger.is_complete() {
                end(note.as_ref(), &ledger);
                // Its userfaultfd stays open with it, if it couldn't be ended: it waits, and is never fed anything else.
                std::mem::forget((uffd, ledger));
                continue;
            }
            match resume(uffd, note.zip(reach), Arc::clone(&ledger), self.epoch) {
                Ok(client) => waiting.push(client),
                Err(error) => {
                    tracing::debug!(%error, "a client has gone meanwhile");
                    ledger.leave();
                }
            }
        }
        waiting
    }
}

/// A client that waits to be served on.
pub(super) struct Waiting {
    pub(super) memory: Arc<Watched<ClientReach>>,
    /// What orders are given by; not for a child whose agent hasn't called.
    pub(super) told: Option<(Arc<ClientLink>, Peer, Note)>,
}

impl Waiting {
    /// Ends it: its books make no sense. Its userfaultfd stays open, in case it can't be.
    pub(super) fn end(self) {
        if let Some((_, peer, _)) = &self.told {
            kill(peer);
        }
        std::mem::forget(self);
    }

    pub(super) fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as Arc<dyn Memory>
    }
}

/// What a client is reached by beside what is open already.
struct Reach {
    process: Process,
    pagemap: Pagemap,
}

impl Reach {
    fn of(note: &Note) -> Result<Self, ServerError> {
        let source = io::Error::other("the pidfd isn't open that a client's notes name");
        let failed = |source| ServerError::Start { doing: "taking a client up", source };
        // SAFETY: the notes say that it was the dead worker's. Not dropped here, so that it may be taken for good.
        let Some(pidfd) = (unsafe { take_over(note.pidfd) }).map(ManuallyDrop::new) else {
            return Err(failed(source));
        };
        let process = Process::from_pidfd(pidfd.try_clone().map_err(failed)?)?;
        let pagemap =
            Pagemap::open(note.pid).map_err(|source| ServerError::NoPagemap { pid: note.pid, source })?;
        Ok(Self { process, pagemap })
    }
}

/// Whether something failed for want of descriptors or memory. That says nothing of a client: the next worker may have more luck.
fn is_want(error: &(dyn Error + 'static)) -> bool {
    let want = |number| {
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM].iter().any(|errno| Some(errno.raw_os_error()) == number)
    };
    let io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let number = io.or_else(|| error.downcast_ref::<userswap_uffd::Error>()?.errno());
    want(number) || error.source().is_some_and(is_want)
}

fn resume(
    uffd: Uffd,
    told: Option<(Note, Result<Reach, ServerError>)>,
    ledger: Arc<Ledger>,
    epoch: u64,
) -> Result<Waiting, ServerError> {
    let Some((note, reach)) = told else {
        let memory = Arc::new(Watched::kept(uffd, ClientReach::default(), ledger));
        return Ok(Waiting { memory, told: None });
    };
    // SAFETY: the notes say that these were the dead worker's, and are read for this once.
    let (connection, pidfd) = unsafe { (take_over(note.connection), take_over(note.pidfd)) };
    let (Some(connection), Some(pidfd)) = (connection, pidfd) else {
        let source = io::Error::other("a descriptor isn't open that a client's notes name");
        return Err(ServerError::Start { doing: "taking a client up", source });
    };
    let Reach { process, pagemap } = reach?;
    let terms = Resumed {
        contract: note.contract,
        abilities: note.abilities,
        reply_timeout: REPLY_TIMEOUT,
        swap_area: note.swap_area,
        epoch,
    };
    let link = Arc::new(ClientLink::resume(Connection::from_fd(connection), &terms));
    let told = Told {
        link: Arc::clone(&link),
        process,
        pagemap,
        slots: note.slots,
        slot_pages: note.slot_pages,
        was_shared: Mutex::default(),
        divisions: Divisions::default(),
    };
    let memory = Arc::new(Watched::kept(uffd, ClientReach::new(told), ledger));
    let peer = Peer::resume(note.pid, note.uid, note.gid, pidfd);
    Ok(Waiting { memory, told: Some((link, peer, note)) })
}

/// A client may take as long as it likes: nobody but itself waits for it.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Ends a client whose books don't hold all of it. One that can't be named waits for ever where it touches what is out.
fn end(note: Option<&Note>, ledger: &Ledger) {
    // SAFETY: the notes say that it was the dead worker's, and are read for this once.
    let pidfd = note.and_then(|note| unsafe { take_over(note.pidfd) });
    match (note, pidfd) {
        (Some(note), Some(pidfd)) => {
            kill(&Peer::resume(note.pid, note.uid, note.gid, pidfd));
            ledger.leave();
        }
        _ => tracing::error!(
            "a forked child's books are not complete: it waits for ever where its memory is out"
        ),
    }
}

fn kill(peer: &Peer) {
    let pid = peer.pid();
    tracing::error!(pid, "a program is ended: what is out of its memory can't be told from its books");
    if let Err(error) = peer.kill() {
        tracing::error!(pid, %error, "it could not be ended, and waits for ever");
    }
}

/// What a successor must know to give a client orders.
pub(super) fn note(told: &Told, peer: &Peer, program: Option<notes::Ranges>) -> Note {
    Note {
        connection: notes::raw(told.link.as_fd()),
        pidfd: notes::raw(peer.pidfd()),
        pid: peer.pid(),
        uid: peer.uid(),
        gid: peer.gid(),
        contract: told.link.contract(),
        abilities: told.link.abilities(),
        swap_area: told.link.swap_area(),
        slots: told.slots,
        slot_pages: told.slot_pages,
        program,
        retired: false,
    }
}
