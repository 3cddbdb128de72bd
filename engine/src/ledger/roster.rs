//! Which ledgers there are, and what else one worker leaves to the next.

use super::Ledger;
use super::map::{Map, Words};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The list of all ledgers, made by the process that keeps what workers leave, before the first of them.
pub struct Roster {
    map: Arc<Map>,
    head: Words<AtomicU64>,
    entries: Words<AtomicU64>,
    /// Entries are chosen under it.
    choosing: Mutex<()>,
}

const HEAD_WORDS: usize = 64;
const MOST: usize = 1 << 14;
const LEN: usize = (HEAD_WORDS + MOST) * 8;

#[derive(Clone, Copy)]
enum Head {
    Uid,
    Owner,
    /// One more than the number of the store's descriptor.
    Arena,
    Serving,
    Ended,
    /// One more than the limit that an operator has set since the start.
    Limit,
    Epoch,
}

impl Roster {
    /// An empty list.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub fn create() -> io::Result<Arc<Self>> {
        let map = Map::create("userswap-roster", LEN)?;
        let (head, entries) = (map.words(0, HEAD_WORDS), map.words(HEAD_WORDS * 8, MOST));
        Ok(Arc::new(Self { map, head, entries, choosing: Mutex::new(()) }))
    }

    /// The list that another program of the same [layout](super::LAYOUT) has left.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn adopt(memory: OwnedFd) -> io::Result<Arc<Self>> {
        let map = Map::adopt(memory, LEN)?;
        let (head, entries) = (map.words(0, HEAD_WORDS), map.words(HEAD_WORDS * 8, MOST));
        Ok(Arc::new(Self { map, head, entries, choosing: Mutex::new(()) }))
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
    }

    /// Takes a ledger off the list: there is nothing to take up any more. Before any of its descriptors is closed.
    pub(crate) fn leave(&self, ledger: &Ledger) {
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

    /// Writes down where the store's objects are.
    pub fn note_arena(&self, arena: BorrowedFd<'_>) {
        self.set(Head::Arena, u64::try_from(arena.as_raw_fd()).map_or(0, |number| number + 1));
    }

    /// The number of the descriptor of what the store's objects are in, if there is a store.
    pub fn arena(&self) -> Option<RawFd> {
        RawFd::try_from(self.get(Head::Arena).checked_sub(1)?).ok()
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
        assert_eq!((roster.limit(), roster.arena()), (None, None));
        roster.note_limit(0);
        assert_eq!(roster.limit(), Some(0));
    }
}
