//! Which ledgers there are, and what else one worker leaves to the next.

use super::Ledger;
use super::map::{Map, Words};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// The list of all ledgers, made by the process that keeps what workers leave, before the first of them.
pub struct Roster {
    map: Arc<Map>,
    head: Words<AtomicU64>,
    entries: Words<AtomicU64>,
    /// Entries are chosen under it.
    choosing: Mutex<()>,
    /// Where stores' keys are.
    keys: OnceLock<Arc<Map>>,
    /// Who keeps descriptors even when this file table is gone.
    depot: OnceLock<Arc<dyn Depot>>,
    /// For a child whose fork has been read when there is no descriptor left. In nobody's list.
    spare: Mutex<Option<Arc<Ledger>>>,
    is_scarce: AtomicBool,
    is_want_told: AtomicBool,
}

/// So many descriptors' numbers below the highest that a process may have they are scarce: more than are read of at once take.
const SCARCE: u64 = 1024;

/// Keeps a ledger, and the descriptors that it names, for somebody who doesn't share this process's file table.
pub trait Depot: Send + Sync {
    /// A ledger was listed, or names more than it did.
    fn entered(&self, ledger: &Ledger);

    /// It is about to be taken off the list, after which what it names is closed. Called again for one that has left, it does nothing.
    fn leaving(&self, ledger: &Ledger);
}

const HEAD_WORDS: usize = 64;
/// Where the numbers of the store's descriptors begin.
const ARENAS: usize = 16;
/// Bytes there are for keys.
const KEYS: usize = 4096;
const MOST: usize = 1 << 14;
const LEN: usize = (HEAD_WORDS + MOST) * 8;

#[derive(Clone, Copy)]
enum Head {
    Uid,
    Owner,
    /// How many descriptors the store's objects are in; their numbers are behind the rest.
    Arenas,
    /// One more than the number of the descriptor of stores' keys.
    Keys,
    Serving,
    Ended,
    /// One more than the limit that an operator has set since the start.
    Limit,
    Epoch,
    /// The worker's process, and when it began, in the kernel's ticks.
    Worker,
    WorkerBegan,
}

impl Roster {
    /// An empty list.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn create() -> io::Result<Arc<Self>> {
        let map = Map::create("userswap-roster", LEN)?;
        Ok(Self::over(map))
    }

    /// The list that another program of the same [layout](super::LAYOUT) has left.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn adopt(memory: OwnedFd) -> io::Result<Arc<Self>> {
        let map = Map::adopt(memory, LEN)?;
        Ok(Self::over(map))
    }

    fn over(map: Arc<Map>) -> Arc<Self> {
        Arc::new(Self {
            head: map.words(0, HEAD_WORDS),
            entries: map.words(HEAD_WORDS * 8, MOST),
            map,
            choosing: Mutex::new(()),
            keys: OnceLock::new(),
            depot: OnceLock::new(),
            spare: Mutex::new(None),
            is_scarce: AtomicBool::new(false),
            is_want_told: AtomicBool::new(false),
        })
    }

    fn get(&self, word: Head) -> u64 {
        self.head[word as usize].load(Ordering::Acquire)
    }

    fn set(&self, word: Head, value: u64) {
        self.head[word as usize].store(value, Ordering::Release);
    }

    pub(super) fn next_uid(&self) -> u64 {
        self.head[Head::Uid as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A number that no owner of stored pages had before, in any worker.
    pub(crate) fn next_owner(&self) -> u64 {
        // Numbers that are handed out without a roster start at 1.
        self.head[Head::Owner as usize].fetch_add(1, Ordering::Relaxed) + (1 << 32)
    }

    /// Counts the workers there were, this one included.
    pub fn next_epoch(&self) -> u64 {
        self.head[Head::Epoch as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Lists a ledger: from now on a successor takes its address space up.
    pub(crate) fn enter(&self, ledger: &Ledger) {
        let _choosing = self.choosing.lock();
        let number = u64::try_from(ledger.as_fd().as_raw_fd()).map_or(0, |number| number + 1);
        let vacant = self.entries.iter().find(|entry| entry.load(Ordering::Relaxed) == 0);
        match vacant {
            Some(entry) => entry.store(number, Ordering::Release),
            None => tracing::error!("more address spaces than can be listed: one won't survive this process"),
        }
        if let Some(depot) = self.depot.get() {
            depot.entered(ledger);
        }
    }

    /// Takes a ledger off the list: there is nothing to take up any more. Before any of its descriptors is closed.
    pub(crate) fn leave(&self, ledger: &Ledger) {
        if let Some(depot) = self.depot.get() {
            depot.leaving(ledger);
        }
        self.strike(ledger.as_fd().as_raw_fd());
    }

    /// Takes a ledger off the list whose descriptor isn't open.
    pub fn strike(&self, number: RawFd) {
        let number = u64::try_from(number).map_or(0, |number| number + 1);
        let _choosing = self.choosing.lock();
        if let Some(entry) = self.entries.iter().find(|entry| entry.load(Ordering::Relaxed) == number) {
            entry.store(0, Ordering::Release);
        }
    }

    /// The numbers of all ledgers' descriptors.
    pub fn ledgers(&self) -> Vec<RawFd> {
        let numbers = self.entries.iter().filter_map(|entry| entry.load(Ordering::Acquire).checked_sub(1));
        numbers.filter_map(|number| RawFd::try_from(number).ok()).collect()
    }

    /// Writes down where the store's objects are, once, before there are any. The descriptors stay open: they are whoever's that serves.
    ///
    /// # Errors
    /// When there are more than can be written down.
    pub fn note_arenas(&self, arenas: Vec<OwnedFd>) -> io::Result<()> {
        let count = arenas.len();
        if count > HEAD_WORDS - ARENAS {
            return Err(io::Error::other("a store in so many files and memories can't be kept"));
        }
        for (at, arena) in (ARENAS..).zip(arenas) {
            let number = u64::try_from(arena.into_raw_fd()).unwrap_or(u64::MAX);
            self.head[at].store(number, Ordering::Release);
        }
        self.set(Head::Arenas, count as u64);
        Ok(())
    }

    /// The numbers of the descriptors of what the store's objects are in, if there is a store.
    pub fn arenas(&self) -> Vec<RawFd> {
        let count = usize::try_from(self.get(Head::Arenas)).unwrap_or(0).min(HEAD_WORDS - ARENAS);
        let numbers = self.head[ARENAS..ARENAS + count].iter().map(|word| word.load(Ordering::Acquire));
        numbers.filter_map(|number| RawFd::try_from(number).ok()).collect()
    }

    /// Makes room for stores' keys, in memory that this process, which outlives workers, keeps from being swapped and dumped.
    ///
    /// # Errors
    /// When memory can't be had or locked.
    pub fn make_keys(&self) -> io::Result<()> {
        let keys = Map::create("userswap-keys", KEYS)?;
        keys.lock()?;
        self.set(Head::Keys, u64::try_from(keys.as_fd().as_raw_fd()).map_or(0, |number| number + 1));
        let _ = self.keys.set(keys);
        Ok(())
    }

    /// The number of the descriptor of stores' keys, if there is room for any.
    pub fn keys_number(&self) -> Option<RawFd> {
        RawFd::try_from(self.get(Head::Keys).checked_sub(1)?).ok()
    }

    /// Takes the keys over that another program has left under that number, and locks them.
    ///
    /// # Errors
    /// When they aren't there, or can't be locked.
    pub fn adopt_keys(&self, keys: OwnedFd) -> io::Result<()> {
        let keys = Map::adopt(keys, KEYS)?;
        keys.lock()?;
        let _ = self.keys.set(keys);
        Ok(())
    }

    /// Where stores' keys are.
    pub fn keys(&self) -> Option<BorrowedFd<'_>> {
        self.keys.get().map(|keys| keys.as_fd())
    }

    /// A ledger for a child whose fork was read: the spare one if there is no other.
    pub(crate) fn new_ledger(self: &Arc<Self>) -> io::Result<Arc<Ledger>> {
        match Ledger::create(self) {
            Ok(ledger) => Ok(ledger),
            Err(error) => {
                self.is_scarce.store(true, Ordering::Relaxed);
                self.spare.lock().take().ok_or(error)
            }
        }
    }

    /// Whether few descriptors are left, so that each fork is read by itself.
    pub(crate) fn is_scarce(&self) -> bool {
        self.is_scarce.load(Ordering::Relaxed)
    }

    /// Has a ledger for a child ready, if there is a descriptor for it.
    pub(crate) fn have_spare(self: &Arc<Self>) {
        let mut spare = self.spare.lock();
        if spare.is_none() {
            *spare = Ledger::create(self).ok();
        }
    }

    /// A ledger was made: its number tells how many descriptors are left.
    pub(super) fn made(&self, ledger: &Ledger) {
        let is_scarce = is_high(ledger.as_fd().as_raw_fd());
        self.is_scarce.store(is_scarce, Ordering::Relaxed);
        self.is_want_told.fetch_and(is_scarce, Ordering::Relaxed);
    }

    /// Whether it hasn't been told yet that there are no descriptors. It is told again after there were enough.
    pub(crate) fn may_tell_of_want(&self) -> bool {
        !self.is_want_told.swap(true, Ordering::Relaxed)
    }

    /// From now on `depot` is told of ledgers. The first one stays.
    pub fn set_depot(&self, depot: Arc<dyn Depot>) {
        let _ = self.depot.set(depot);
    }

    /// Tells who keeps descriptors that a ledger names more than it did.
    pub fn told_more(&self, ledger: &Ledger) {
        if let Some(depot) = self.depot.get() {
            depot.entered(ledger);
        }
    }

    /// Writes down which process is the worker, and when it began: a number alone is another's one day.
    pub fn note_worker(&self, pid: u32, began: u64) {
        self.set(Head::WorkerBegan, began);
        self.set(Head::Worker, pid.into());
    }

    /// The last worker's process, and when it began.
    pub fn worker(&self) -> Option<(u32, u64)> {
        let pid = u32::try_from(self.get(Head::Worker)).ok().filter(|pid| *pid != 0)?;
        Some((pid, self.get(Head::WorkerBegan)))
    }

    /// Writes down whether clients are being served now.
    pub fn set_serving(&self, serving: bool) {
        self.set(Head::Serving, serving.into());
    }

    /// Whether clients are being served, or were when the worker died.
    pub fn is_serving(&self) -> bool {
        self.get(Head::Serving) != 0
    }

    /// Writes down that everything was brought back and everybody let go.
    pub fn set_ended(&self) {
        self.set(Head::Ended, 1);
    }

    /// Whether there is nothing left to do.
    pub fn has_ended(&self) -> bool {
        self.get(Head::Ended) != 0
    }

    /// Writes down the limit that an operator has set, in bytes.
    pub fn note_limit(&self, bytes: u64) {
        self.set(Head::Limit, bytes.saturating_add(1));
    }

    /// The limit that an operator has set since the start.
    pub fn limit(&self) -> Option<u64> {
        self.get(Head::Limit).checked_sub(1)
    }
}

/// Whether a descriptor that was just made has a number near the highest: then all below are in use.
fn is_high(number: RawFd) -> bool {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    u64::try_from(number).unwrap_or(0) >= most.saturating_sub(SCARCE.min(most / 2))
}

impl AsFd for Roster {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ledgers_are_listed_until_they_leave() {
        let roster = Roster::create().unwrap();
        let (one, two) = (Ledger::create(&roster).unwrap(), Ledger::create(&roster).unwrap());
        assert_ne!(one.uid(), two.uid());
        roster.enter(&one);
        roster.enter(&two);
        assert_eq!(roster.ledgers(), [one.as_fd().as_raw_fd(), two.as_fd().as_raw_fd()]);
        roster.leave(&one);
        assert_eq!(roster.ledgers(), [two.as_fd().as_raw_fd()]);
        assert_eq!((roster.limit(), roster.arenas()), (None, Vec::new()));
        let numbers: Vec<_> = [&one, &two].map(|ledger| ledger.as_fd().try_clone_to_owned().unwrap()).into();
        let expected: Vec<_> = numbers.iter().map(AsRawFd::as_raw_fd).collect();
        roster.note_arenas(numbers).unwrap();
        assert_eq!(roster.arenas(), expected);
        assert!(roster.keys().is_none());
        roster.make_keys().unwrap();
        assert_eq!(roster.keys_number(), roster.keys().map(|keys| keys.as_raw_fd()));
        roster.note_limit(0);
        assert_eq!(roster.limit(), Some(0));
    }
}
