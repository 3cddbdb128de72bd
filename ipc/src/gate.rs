//! The gate: a small lock and a counter in memory that daemon and client share.
//!
//! The daemon holds it exclusively while it reads a client's events and applies them; the client's agent holds it shared
//! while it checks an order's epoch and carries the order out. So an order is never carried out on an address space that
//! changed after the order was made.
//!
//! ```text
//! byte 0  u32  bits 0..16  how often it is held shared
//!              bit 29      revoked: nobody may take it again
//!              bit 30      somebody waits for the exclusive holder
//!              bit 31      held exclusively, or about to be: no new shared holder
//! byte 4  u32  unused
//! byte 8  u64  the epoch
//! ```
//!
//! The word is a futex. A shared holder that leaves as the last one under bit 31 wakes; so does an exclusive holder that
//! leaves with bit 30 set. The memfd is sealed against shrinking and growing before it is handed out, so that touching it
//! can't fail.
//!
//! # A peer that dies or lies
//!
//! The client may write anything there at any time. For the daemon the word is a hint with a deadline:
//! - Its epoch is kept in the daemon's own memory; the shared one is only ever written. What a client makes of it is between
//!   it and its own memory.
//! - Of the word only "is the count 0" matters, and a wrong answer costs a client that lied the protection of its own
//!   memory: an order carried out at the wrong moment moves pages of that client alone.
//! - Every wait has a timeout, and a word that keeps changing without coming free ends the wait early: [`GateError::Restless`].
//! - A client that doesn't let go in time (dead, stopped, hostile) has its hold declared void: [`DaemonGate::revoke`]. From
//!   then on the gate opens for the daemon at once, and the connection is to be closed: the client finds the gate revoked
//!   when it lets go, and is not to be given orders again.
//!
//! A daemon that dies while it holds the gate leaves bit 31 set: the agent's wait times out and the order isn't carried out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use userswap_uffd::futex;

use crate::extension::Epoch;
use crate::sys::SharedPage;

const EXCLUSIVE: u32 = 1 << 31;
const WAITERS: u32 = 1 << 30;
const REVOKED: u32 = 1 << 29;
const HOLDERS: u32 = 0xffff;

/// How often the word may change during one wait of the daemon without coming free. Under bit 31 an honest client changes it
/// at most once a holder.
const MOST_CHANGES: u32 = 256;

/// Why the gate wasn't had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The other side didn't let go in time.
    #[error("the gate was not free within {0:?}")]
    TimedOut(Duration),
    /// The word keeps changing and never comes free: somebody plays with it.
    #[error("the gate's word changes without ever coming free")]
    Restless,
    /// The daemon has declared the client's hold void.
    #[error("the gate was revoked")]
    Revoked,
    /// What was handed over can't be a gate.
    #[error("not a gate: {0}")]
    NotAGate(&'static str),
    /// The kernel wouldn't let it be waited for.
    #[error("waiting for the gate")]
    Wait(#[source] userswap_uffd::Error),
    /// A system call failed.
    #[error("{doing} the gate")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The daemon's side.
#[derive(Debug)]
pub struct DaemonGate {
    memfd: OwnedFd,
    page: SharedPage,
    /// The daemon's own threads take turns here; the shared word knows one exclusive holder.
    turn: Mutex<()>,
    epoch: AtomicU64,
    revoked: AtomicBool,
}

impl DaemonGate {
    /// A new gate, free, at epoch 0, in a memfd of its own.
    ///
    /// # Errors
    /// [`GateError::System`].
    pub fn new() -> Result<Self, GateError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("userswap-gate", flags).map_err(system("creating"))?;
        rustix::fs::ftruncate(&memfd, userswap_uffd::page_size() as u64).map_err(system("sizing"))?;
        rustix::fs::fcntl_add_seals(&memfd, seals()).map_err(system("sealing"))?;
        let page = SharedPage::map(memfd.as_fd()).map_err(mapping)?;
        let (epoch, revoked) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { memfd, page, turn: Mutex::new(()), epoch, revoked })
    }

    /// Takes it exclusively: no order is being carried out until the guard goes.
    ///
    /// # Errors
    /// [`GateError::TimedOut`] and [`GateError::Restless`]: the gate is as it was. A revoked gate opens at once.
    pub fn lock_exclusive(&self, timeout: Duration) -> Result<ExclusiveGate<'_>, GateError> {
        let deadline = Instant::now() + timeout;
        let turn = self.turn.try_lock_until(deadline).ok_or(GateError::TimedOut(timeout))?;
        let word = self.page.word();
        let mut seen = word.fetch_or(EXCLUSIVE, Ordering::AcqRel) | EXCLUSIVE;
        for _ in 0..MOST_CHANGES {
            if seen & HOLDERS == 0 || self.is_revoked() {
                return Ok(ExclusiveGate { gate: self, _turn: turn });
            }
            let waited = wait(word, seen, deadline)?;
            seen = word.load(Ordering::Acquire);
            if waited == Waited::TimedOut && seen & HOLDERS != 0 && !self.is_revoked() {
                self.open();
                return Err(GateError::TimedOut(timeout));
            }
        }
        self.open();
        Err(GateError::Restless)
    }

    /// The epoch, as the daemon knows it.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Declares the client's hold void. The gate opens for the daemon from now on; close the connection.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.page.word().fetch_or(REVOKED, Ordering::AcqRel);
        // Both whoever waits to take it exclusively and an agent that waits to take it shared.
        wake(self.page.word());
    }

    /// Whether [`DaemonGate::revoke`] was called.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// The memory's descriptor, for the client.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    fn open(&self) {
        let before = self.page.word().fetch_and(!(EXCLUSIVE | WAITERS), Ordering::AcqRel);
        if before & WAITERS != 0 {
            wake(self.page.word());
        }
    }
}

/// The gate held exclusively; opens when dropped.
#[derive(Debug)]
pub struct ExclusiveGate<'a> {
    gate: &'a DaemonGate,
    _turn: MutexGuard<'a, ()>,
}

impl ExclusiveGate<'_> {
    /// Counts one change of the client's address space; orders made before are dropped from now on. Gives the new epoch.
    pub fn bump_epoch(&self) -> Epoch {
        let epoch = self.gate.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        self.gate.page.counter().store(epoch, Ordering::Release);
        Epoch(epoch)
    }
}

impl Drop for ExclusiveGate<'_> {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// The client's side.
#[derive(Debug)]
pub struct ClientGate {
    page: SharedPage,
}

impl ClientGate {
    /// The gate in a memfd the daemon passed.
    ///
    /// # Errors
    /// [`GateError::NotAGate`] if it isn't sealed against shrinking or too small.
    pub fn open(memfd: BorrowedFd<'_>) -> Result<Self, GateError> {
        let sealed =
            rustix::fs::fcntl_get_seals(memfd).map_err(|_| GateError::NotAGate("it has no seals"))?;
        if !sealed.contains(SealFlags::SHRINK) {
            return Err(GateError::NotAGate("it could shrink"));
        }
        let size = rustix::fs::fstat(memfd).map_err(system("measuring"))?.st_size;
        if usize::try_from(size).unwrap_or(0) < userswap_uffd::page_size() {
            return Err(GateError::NotAGate("it is smaller than a page"));
        }
        Ok(Self { page: SharedPage::map(memfd).map_err(mapping)? })
    }

    /// Takes it shared. While it is held, touch nothing that may have been moved out: the daemon can't read the fault.
    ///
    /// # Errors
    /// [`GateError::TimedOut`], [`GateError::Revoked`]; the gate isn't held then.
    pub fn lock_shared(&self, timeout: Duration) -> Result<SharedGate<'_>, GateError> {
        let deadline = Instant::now() + timeout;
        let word = self.page.word();
        let mut seen = word.load(Ordering::Acquire);
        loop {
            if seen & REVOKED != 0 {
                return Err(GateError::Revoked);
            }
            if seen & EXCLUSIVE == 0 {
                match word.compare_exchange_weak(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Ok(SharedGate { gate: self }),
                    Err(now) => seen = now,
                }
                continue;
            }
            if seen & WAITERS == 0 {
                let marked = seen | WAITERS;
                match word.compare_exchange_weak(seen, marked, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => seen = marked,
                    Err(now) => {
                        seen = now;
                        continue;
                    }
                }
            }
            if wait(word, seen, deadline)? == Waited::TimedOut {
                return Err(GateError::TimedOut(timeout));
            }
            seen = word.load(Ordering::Acquire);
        }
    }
}

/// The gate held shared; let go when dropped.
#[derive(Debug)]
pub struct SharedGate<'a> {
    gate: &'a ClientGate,
}

impl SharedGate<'_> {
    /// The epoch. It doesn't change while the gate is held.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.gate.page.counter().load(Ordering::Acquire))
    }
}

impl Drop for SharedGate<'_> {
    fn drop(&mut self) {
        let after = self.gate.page.word().fetch_sub(1, Ordering::AcqRel).wrapping_sub(1);
        if after & EXCLUSIVE != 0 && after & HOLDERS == 0 {
            wake(self.gate.page.word());
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waited {
    Perhaps,
    TimedOut,
}

/// Waits until the word is no longer `seen`, somebody wakes, or it is late; shared, so that another process may wake.
fn wait(word: &AtomicU32, seen: u32, deadline: Instant) -> Result<Waited, GateError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(Waited::TimedOut);
    }
    match futex::wait(word, seen, Some(left)) {
        Ok(futex::Waited::TimedOut) => Ok(Waited::TimedOut),
        Ok(_) => Ok(Waited::Perhaps),
        Err(e) => Err(GateError::Wait(e)),
    }
}

/// Wakes everybody. Can't fail on memory that is mapped, and whoever wasn't woken times out.
fn wake(word: &AtomicU32) {
    let _ = futex::wake(word, u32::MAX);
}

fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

fn system(doing: &'static str) -> impl FnOnce(Errno) -> GateError {
    move |errno| GateError::System { doing, source: errno.into() }
}

fn mapping(source: io::Error) -> GateError {
    GateError::System { doing: "mapping", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    fn pair() -> (DaemonGate, ClientGate) {
        let daemon = DaemonGate::new().unwrap();
        let client = ClientGate::open(daemon.memfd()).unwrap();
        (daemon, client)
    }

    #[test]
    fn each_side_keeps_the_other_out() {
        let (daemon, client) = pair();
        let shared = client.lock_shared(LONG).unwrap();
        let second = client.lock_shared(LONG).unwrap();
        assert!(matches!(daemon.lock_exclusive(SOON), Err(GateError::TimedOut(_))));
        drop(shared);
        assert!(matches!(daemon.lock_exclusive(SOON), Err(GateError::TimedOut(_))));
        drop(second);
        let exclusive = daemon.lock_exclusive(LONG).unwrap();
        assert!(matches!(client.lock_shared(SOON), Err(GateError::TimedOut(_))));
        drop(exclusive);
        assert!(client.lock_shared(LONG).is_ok());
        assert_eq!(daemon.page.word().load(Ordering::Relaxed) & !WAITERS, 0);
    }

    #[test]
    fn the_epoch_is_seen_by_the_next_shared_holder() {
        let (daemon, client) = pair();
        assert_eq!(client.lock_shared(LONG).unwrap().epoch(), Epoch(0));
        assert_eq!(daemon.lock_exclusive(LONG).unwrap().bump_epoch(), Epoch(1));
        assert_eq!(client.lock_shared(LONG).unwrap().epoch(), Epoch(1));
    }

    #[test]
    fn waiters_are_woken_on_both_sides() {
        let (daemon, client) = pair();
        std::thread::scope(|scope| {
            let (held, is_held) = mpsc::channel();
            let exclusive = daemon.lock_exclusive(LONG).unwrap();
            let client = &client;
            scope.spawn(move || {
                let guard = client.lock_shared(LONG).unwrap();
                held.send(guard).unwrap();
            });
            drop(exclusive);
            let shared = is_held.recv().unwrap();
            let daemon = &daemon;
            let waiter = scope.spawn(move || daemon.lock_exclusive(LONG).map(drop));
            drop(shared);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_revoked_gate_opens_for_the_daemon_and_for_nobody_else() {
        let (daemon, client) = pair();
        let held = client.lock_shared(LONG).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| daemon.lock_exclusive(LONG).map(drop));
            daemon.revoke();
            waiter.join().unwrap().unwrap();
        });
        drop(held);
        assert!(matches!(client.lock_shared(LONG), Err(GateError::Revoked)));
        assert!(daemon.lock_exclusive(SOON).is_ok());
    }

    #[test]
    fn garbage_in_the_word_ends_in_an_error() {
        let (daemon, client) = pair();
        for garbage in [1, HOLDERS, !REVOKED, 0x1234] {
            daemon.page.word().store(garbage, Ordering::Relaxed);
            assert!(matches!(daemon.lock_exclusive(SOON), Err(GateError::TimedOut(_))), "{garbage:#x}");
        }
        daemon.page.counter().store(77, Ordering::Relaxed);
        assert_eq!(daemon.epoch(), Epoch(0));
        daemon.page.word().store(0, Ordering::Relaxed);
        assert_eq!(daemon.lock_exclusive(LONG).unwrap().bump_epoch(), Epoch(1));
        assert_eq!(client.lock_shared(LONG).unwrap().epoch(), Epoch(1));
    }

    #[test]
    fn a_restless_word_ends_the_wait() {
        let (daemon, _client) = pair();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let word = daemon.page.word();
            word.store(1, Ordering::Relaxed);
            scope.spawn(|| {
                let mut n = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_add(1);
                    word.store(EXCLUSIVE | (n % 1000 + 1), Ordering::Relaxed);
                    wake(word);
                }
            });
            let answer = daemon.lock_exclusive(LONG).map(drop);
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(answer, Err(GateError::Restless)), "{answer:?}");
        });
    }

    #[test]
    fn what_could_shrink_is_no_gate() {
        let memfd = rustix::fs::memfd_create("not-a-gate", MemfdFlags::ALLOW_SEALING).unwrap();
        let refused = ClientGate::open(memfd.as_fd()).unwrap_err();
        assert!(matches!(refused, GateError::NotAGate("it could shrink")));
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
        let refused = ClientGate::open(memfd.as_fd()).unwrap_err();
        assert!(matches!(refused, GateError::NotAGate("it is smaller than a page")));
    }
}
