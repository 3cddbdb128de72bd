//! What a successor needs: the books of an address space, in memory that outlives the process that keeps them.
//!
//! A daemon's worker can die at any instant. What it knew of its clients stands in *ledgers*, one an address space, in memfds that a process
//! with the same file table keeps open. Nothing is journaled or replayed but the messages of the kernel: the ledger **is** the memory that
//! the worker works on (page tables, counters), or is written before what it says is done (slots, regions), or after, as a whole
//! (which region is mapped where). Each part says for itself how it reads when its writer died between any two stores:
//!
//! ```text
//! head     counters; one word that says which copy of the directory is the latest, and how many of the ring's events are in it
//! ring     messages read, cleared once they are in the books
//! notes    the embedder's own
//! copies   of the directory: two, written in turn
//! slots    a record a name: whose slot it is and where; its owner last, so a record without one is none
//! regions  a record a region object: its name, size, key, and where its page table is; its size last
//! tables   the page tables, twelve bytes a page
//! ```
//! Whoever keeps the memory for himself alone (a region of the own process) has no ledger and pays nothing.

pub(crate) mod map;
mod roster;
mod tables;

pub use roster::{Depot, Roster};
pub(crate) use tables::Home;

use crate::core::SlotId;
use map::{Map, Words};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tables::Heap;
use userswap_uffd::{Features, Span};

/// The books of one address space in memory that outlives this process.
pub struct Ledger {
    map: Arc<Map>,
    head: Words<AtomicU64>,
    notes: Words<AtomicU64>,
    slots: Words<AtomicU64>,
    regions: Words<AtomicU64>,
    heap: Mutex<Heap>,
    roster: Arc<Roster>,
}

const HEAD: usize = 0;
pub(crate) const RING: usize = 4096;
const NOTES: usize = 8192;
const COPIES: [usize; 2] = [1 << 20, 9 << 20];
const COPY_WORDS: usize = 1 << 20;
const SLOTS: usize = 32 << 20;
const MOST_SLOTS: usize = 1 << 19;
const REGIONS: usize = 64 << 20;
const MOST_REGIONS: usize = 1 << 20;
const TABLES: usize = 128 << 20;
const LEN: usize = 4 << 30;

/// Words that an embedder may write.
pub const NOTES_WORDS: usize = 1024;

const MAGIC: u64 = 0x7573_7761_6c65_6400 | LAYOUT;

/// Which layout of ledgers and lists this program writes and takes up. Changed with any of them, with what an embedder's notes say, and with the layout of the
/// store's objects.
pub const LAYOUT: u64 = 3;

/// The words of the head.
#[derive(Clone, Copy)]
enum Head {
    Magic,
    /// Names this ledger among all of one roster.
    Uid,
    /// Whose pages these are, for the store.
    Owner,
    Generation,
    /// Bit 0: which copy of the directory counts. From bit 1 on: how many events in the ring are in it.
    Directory,
    Sentinel,
    /// One more than the descriptor's number.
    Uffd,
    Features,
    SlotPages,
    /// Names of slots below this were used.
    SlotsUsed,
    /// Slots are cut from an area that came with pages in it.
    Inherited,
    /// Something didn't fit: this can't be recovered.
    Overflown,
}

impl Ledger {
    /// New books, in nobody's list yet.
    ///
    /// # Errors
    /// When the system has no descriptors, addresses or memory left.
    pub fn create(roster: &Arc<Roster>) -> io::Result<Arc<Self>> {
        let ledger = Self::over(Map::create("userswap-ledger", LEN)?, roster);
        ledger.set(Head::Uid, roster.next_uid());
        // All of the ring is written to now: the kernel can't write to a page that it has to get first for a process that is being killed.
        ledger.map.words::<AtomicU64>(RING, 512).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        ledger.set(Head::Magic, MAGIC);
        roster.made(&ledger);
        Ok(Arc::new(ledger))
    }

    /// The books that a dead process has left.
    ///
    /// # Errors
    /// When it isn't a ledger of this version.
    pub fn adopt(memory: OwnedFd, roster: &Arc<Roster>) -> io::Result<Arc<Self>> {
        let ledger = Self::over(Map::adopt(memory, LEN)?, roster);
        if ledger.get(Head::Magic) != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a ledger of this version"));
        }
        *ledger.heap.lock() = ledger.found_heap();
        Ok(Arc::new(ledger))
    }

    fn over(map: Arc<Map>, roster: &Arc<Roster>) -> Self {
        Self {
            head: map.words(HEAD, 64),
            notes: map.words(NOTES, NOTES_WORDS),
            slots: map.words(SLOTS, MOST_SLOTS * SLOT_WORDS),
            regions: map.words(REGIONS, MOST_REGIONS * tables::REGION_WORDS),
            heap: Mutex::new(Heap::new((TABLES as u64, LEN as u64))),
            map,
            roster: Arc::clone(roster),
        }
    }

    fn get(&self, word: Head) -> u64 {
        self.head[word as usize].load(Ordering::Acquire)
    }

    fn set(&self, word: Head, value: u64) {
        self.head[word as usize].store(value, Ordering::Release);
    }

    /// Where it is listed, and its like are.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// From now on a successor takes the address space up.
    pub fn enter(&self) {
        self.roster.enter(self);
    }

    /// There is nothing to take up any more.
    pub fn leave(&self) {
        self.roster.leave(self);
    }

    /// Its name among all of one list, never 0.
    pub fn uid(&self) -> u64 {
        self.get(Head::Uid)
    }

    pub(crate) fn memory(&self) -> &Arc<Map> {
        &self.map
    }

    /// What the embedder keeps here: all zero at first.
    pub fn notes(&self) -> &[AtomicU64] {
        &self.notes
    }

    /// Something of the embedder's doesn't fit: the address space can't be recovered from here.
    pub fn give_up(&self, what: &'static str) {
        self.overflow(what);
    }

    /// Something doesn't fit: the address space can't be recovered from here.
    pub(crate) fn overflow(&self, what: &'static str) {
        if self.get(Head::Overflown) == 0 {
            tracing::warn!(
                what,
                "an address space is too large for its ledger: it won't survive this process"
            );
        }
        self.set(Head::Overflown, 1);
    }

    /// Whether all of the address space is in here.
    pub fn is_complete(&self) -> bool {
        self.get(Head::Overflown) == 0
    }

    // ---- what there is one of ----

    /// Says which descriptor the userfaultfd is, and what its handshake granted.
    pub fn note_uffd(&self, uffd: BorrowedFd<'_>, features: Features) {
        self.set(Head::Features, features.bits());
        self.set(Head::Uffd, u64::try_from(uffd.as_raw_fd()).map_or(0, |number| number + 1));
    }

    /// The number of the userfaultfd's descriptor, and its features.
    pub fn uffd(&self) -> Option<(RawFd, Features)> {
        let number = RawFd::try_from(self.get(Head::Uffd).checked_sub(1)?).ok()?;
        Some((number, Features::from_bits_truncate(self.get(Head::Features))))
    }

    pub(crate) fn note_owner(&self, owner: u64, slot_pages: u32) {
        self.set(Head::Owner, owner);
        self.set(Head::SlotPages, slot_pages.into());
    }

    pub(crate) fn owner(&self) -> u64 {
        self.get(Head::Owner)
    }

    pub(crate) fn slot_pages(&self) -> u32 {
        u32::try_from(self.get(Head::SlotPages)).unwrap_or(1).max(1)
    }

    pub(crate) fn note_generation(&self, next: u32) {
        self.head[Head::Generation as usize].store(next.into(), Ordering::Relaxed);
    }

    pub(crate) fn generation(&self) -> u32 {
        u32::try_from(self.get(Head::Generation)).unwrap_or(0)
    }

    /// Says where the page is that stays registered.
    pub fn note_sentinel(&self, addr: u64) {
        self.set(Head::Sentinel, addr);
    }

    pub(crate) fn sentinel(&self) -> u64 {
        self.get(Head::Sentinel)
    }

    pub(crate) fn note_inherited(&self) {
        self.set(Head::Inherited, 1);
    }

    pub(crate) fn has_inherited(&self) -> bool {
        self.get(Head::Inherited) != 0
    }

    // ---- the directory ----

    /// Writes the directory as words, and that so many events of the ring are in it. The last store makes it so.
    pub(crate) fn write_directory(&self, words: &[u64], events: u32) {
        let next = (self.get(Head::Directory) & 1) ^ 1;
        if words.len() > COPY_WORDS {
            return self.overflow("more mappings than are written down");
        }
        let copy = self.map.words::<AtomicU64>(COPIES[usize::from(next == 1)], words.len());
        for (to, word) in copy.iter().zip(words) {
            to.store(*word, Ordering::Relaxed);
        }
        self.set(Head::Directory, next | u64::from(events) << 1);
    }

    /// The directory as it was last written, all its words and what lies behind them.
    pub(crate) fn directory(&self) -> Words<AtomicU64> {
        self.map.words(COPIES[usize::from(self.get(Head::Directory) & 1 == 1)], COPY_WORDS)
    }

    /// How many events of the ring are in the directory.
    pub fn events_applied(&self) -> u32 {
        u32::try_from(self.get(Head::Directory) >> 1).unwrap_or(0)
    }

    /// The ring is empty.
    pub fn ring_cleared(&self) {
        let word = self.get(Head::Directory);
        if word > 1 {
            self.set(Head::Directory, word & 1);
        }
    }

    /// The descriptors of children whose fork was read and isn't in the books: the ledger's writer is dead, and nobody owns them.
    pub fn children(&self) -> Vec<RawFd> {
        let mut ring = crate::ring::Ring::look(&self.map);
        let forks = ring.unapplied(self.events_applied()).into_iter().filter_map(|message| message.is_fork());
        forks.filter_map(|number| RawFd::try_from(number).ok()).collect()
    }

    // ---- slots ----

    /// Writes down that `id` names a slot, before a page is said to stand there.
    pub(crate) fn note_slot(&self, id: SlotId, slot: &SlotRecord) {
        let Some(words) = self.slot_words(id) else {
            return self.overflow("more slots than are written down");
        };
        if self.get(Head::SlotsUsed) <= u64::from(id.0) {
            self.set(Head::SlotsUsed, u64::from(id.0) + 1);
        }
        words[1].store(slot.span.start(), Ordering::Release);
        words[2].store(slot.span.len(), Ordering::Release);
        words[3].store(slot.serial << 1 | u64::from(slot.ordered), Ordering::Release);
        words[0].store(slot.owner, Ordering::Release);
    }

    /// Writes down that pages are about to be ordered into the slot that `id` names.
    pub(crate) fn note_order(&self, id: SlotId) {
        if let Some(words) = self.slot_words(id) {
            words[3].fetch_or(1, Ordering::Release);
        }
    }

    /// Writes down that `id` names nothing any more.
    pub(crate) fn clear_slot(&self, id: SlotId) {
        if let Some(words) = self.slot_words(id) {
            words[0].store(0, Ordering::Release);
        }
    }

    /// What `id` names.
    pub(crate) fn slot(&self, id: SlotId) -> Option<SlotRecord> {
        let words = self.slot_words(id)?;
        let word = |at: usize| words[at].load(Ordering::Acquire);
        let span = Span::new(word(1), word(2)).ok()?;
        let (serial, ordered) = (word(3) >> 1, word(3) & 1 != 0);
        (word(0) != 0).then(|| SlotRecord { owner: word(0), span, serial, ordered })
    }

    /// All names that were ever used and what they name, in order.
    pub(crate) fn slots(&self) -> Vec<Option<SlotRecord>> {
        let used = u32::try_from(self.get(Head::SlotsUsed)).unwrap_or(0);
        (0..used).map(|id| self.slot(SlotId(id))).collect()
    }

    fn slot_words(&self, id: SlotId) -> Option<&[AtomicU64]> {
        self.slots.get(id.0 as usize * SLOT_WORDS..)?.get(..SLOT_WORDS)
    }
}

const SLOT_WORDS: usize = 4;

/// What is written down of a slot's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotRecord {
    /// The [`uid`](Ledger::uid) of the address space that the slot is of.
    pub(crate) owner: u64,
    /// Its range there.
    pub(crate) span: Span,
    /// Orders slots by when they were filled.
    pub(crate) serial: u64,
    /// What is to move there may have been ordered to; else it wasn't.
    pub(crate) ordered: bool,
}

impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ledger {}", self.uid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Arc<Ledger> {
        Ledger::create(&Roster::create().unwrap()).unwrap()
    }

    /// What a successor would see.
    fn found(ledger: &Ledger) -> Arc<Ledger> {
        Ledger::adopt(ledger.as_fd().try_clone_to_owned().unwrap(), ledger.roster()).unwrap()
    }

    #[test]
    fn a_directory_is_the_old_one_until_the_new_one_is_whole() {
        let ledger = ledger();
        ledger.write_directory(&[1, 2, 3], 0);
        // Another one, as far as it gets before its last store.
        let other = ledger.map.words::<AtomicU64>(COPIES[0], 3);
        other.iter().for_each(|word| word.store(9, Ordering::Relaxed));
        let read = |ledger: &Ledger| -> Vec<u64> {
            ledger.directory().iter().take(3).map(|word| word.load(Ordering::Relaxed)).collect()
        };
        assert_eq!((read(&found(&ledger)), found(&ledger).events_applied()), (vec![1, 2, 3], 0));
        ledger.write_directory(&[4, 5, 6], 2);
        assert_eq!((read(&found(&ledger)), found(&ledger).events_applied()), (vec![4, 5, 6], 2));
        ledger.ring_cleared();
        assert_eq!((read(&found(&ledger)), found(&ledger).events_applied()), (vec![4, 5, 6], 0));
    }

    #[test]
    fn a_slot_is_one_from_its_last_store_on() {
        let ledger = ledger();
        let record =
            SlotRecord { owner: 3, span: Span::new(0x1000, 0x4000).unwrap(), serial: 9, ordered: false };
        assert_eq!(found(&ledger).slot(SlotId(5)), None);
        ledger.note_slot(SlotId(5), &record);
        assert_eq!(found(&ledger).slot(SlotId(5)), Some(record));
        ledger.note_order(SlotId(5));
        assert_eq!(found(&ledger).slot(SlotId(5)), Some(SlotRecord { ordered: true, ..record }));
        ledger.clear_slot(SlotId(5));
        assert_eq!(found(&ledger).slot(SlotId(5)), None);
    }

    #[test]
    fn what_does_not_fit_is_known_not_to() {
        let ledger = ledger();
        let record =
            SlotRecord { owner: 3, span: Span::new(0x1000, 0x4000).unwrap(), serial: 9, ordered: false };
        assert!(found(&ledger).is_complete());
        ledger.note_slot(SlotId(u32::try_from(MOST_SLOTS).unwrap()), &record);
        assert!(!found(&ledger).is_complete());
    }
}
