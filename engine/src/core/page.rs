//! The page table of a region: twelve bytes a page, dense, indexed by [`PageIndex`].

use super::index::{Generation, PageIndex, SlotPage};
use crate::ledger::Home;
use crate::ledger::map::Words;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use userswap_store::Handle;

/// Where a page's bytes are, and who is working on it.
///
/// ```text
///              first touch, install                 order            moved                     committed
///   absent ───────────────────────▶ resident ──────────────▶ moving ─────────▶ standby ───────────────────▶ stored
///     ▲                             ▲  ▲  ▲ ▲                  │                 │  ▲                        │  ▲
///     │ unmapped                    │  │  │ └── not moved ─────┘           fault │  │ busy             fault │  │ busy
///   any state                       │  │  │                                      ▼  │                        ▼  │
///                                   │  │  └────────── installed ──────────── recalling                  fetching
///   any state ── removed ──▶ zero ──┘  └───────────── installed ──────────────────────────────────────────┘  │
///                                                                              can't be brought back ──▶ poisoned
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// Never ours; the kernel alone knows whether anything is there.
    Absent,
    /// With its owner, as far as we know: we brought it in or left it there.
    Resident,
    /// Removed by its owner: must read as zeros.
    Zero,
    /// A move order covers it and its outcome isn't known; faults on it wait.
    Moving(SlotPage),
    /// Moved to a slot, still uncompressed.
    Standby(SlotPage),
    /// Being brought back from its slot.
    Recalling(SlotPage),
    /// In the store; the memory is free.
    Stored(Handle),
    /// Being brought back from the store. The work in flight owns the handle.
    Fetching(Handle),
    /// A zero page is being installed.
    Zeroing,
    /// It could not be brought back: whoever touches it gets SIGBUS. The object is kept while the store has it.
    Poisoned(Option<Handle>),
}

impl PageState {
    /// Whether the page's bytes are in our care, so that its range must stay registered.
    pub fn is_out(self) -> bool {
        !matches!(self, Self::Absent | Self::Resident | Self::Zero)
    }

    /// Whether the page is out and on no way: whoever asks for it brings it back.
    pub fn is_away(self) -> bool {
        matches!(self, Self::Stored(_) | Self::Standby(_))
    }
}

/// What else is noted of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(u32);

impl Flags {
    /// Nothing noted.
    pub const NONE: Self = Self(0);
    /// A forked relative may name the same stored object: ask the share table before freeing it.
    pub const SHARED: Self = Self(1);
    /// Removed by its owner while a move order covered it: whatever arrives in the slot is dead. Or, of a page being zeroed:
    /// removed before.
    pub const DOOMED: Self = Self(2);

    /// Whether all of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// State, flags and generation of every page of one region. 12 bytes a page.
///
/// `meta` holds the state in bits 0–3, the flags in 4–7, the generation in 8–31; `value` a handle or a packed
/// [`SlotPage`], by state.
///
/// The words may be in memory that a successor finds. They are written in an order in which it always finds one of the two states: a
/// slot's page is there before the state that needs it; a handle may come after its state, for a successor looks stored pages up
/// by their keys.
#[derive(Debug)]
pub struct PageTable {
    meta: Words<AtomicU32>,
    value: Words<AtomicU64>,
    home: Option<Home>,
}

impl Clone for PageTable {
    /// A copy on the heap.
    fn clone(&self) -> Self {
        let copy = Self::new(self.len());
        copy.copy_from(self);
        copy
    }
}

const ABSENT: u32 = 0;
const RESIDENT: u32 = 1;
const ZERO: u32 = 2;
const MOVING: u32 = 3;
const STANDBY: u32 = 4;
const RECALLING: u32 = 5;
const STORED: u32 = 6;
const FETCHING: u32 = 7;
const POISONED: u32 = 8;
const ZEROING: u32 = 9;

impl PageTable {
    /// A table of `pages` absent pages.
    pub fn new(pages: u32) -> Self {
        Self { meta: Words::on_heap(pages as usize), value: Words::on_heap(pages as usize), home: None }
    }

    /// The table in these words, as they stand.
    pub(crate) fn over(meta: Words<AtomicU32>, value: Words<AtomicU64>, home: Home) -> Self {
        Self { meta, value, home: Some(home) }
    }

    /// Its place in a ledger, if it has one.
    pub(crate) fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// Takes over what another table of the same length says.
    pub(super) fn copy_from(&self, other: &Self) {
        for (to, from) in self.value.iter().zip(&*other.value) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for (to, from) in self.meta.iter().zip(&*other.meta) {
            to.store(from.load(Ordering::Relaxed), Ordering::Release);
        }
    }

    fn meta(&self, page: PageIndex) -> u32 {
        self.meta[page.at()].load(Ordering::Relaxed)
    }

    /// How many pages the region has.
    #[allow(clippy::cast_possible_truncation)] // made from a u32
    pub fn len(&self) -> u32 {
        self.meta.len() as u32
    }

    /// Whether the region has no page.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty()
    }

    /// The page's state.
    pub fn state(&self, page: PageIndex) -> PageState {
        let value = self.value[page.at()].load(Ordering::Relaxed);
        match self.meta(page) & 0xf {
            RESIDENT => PageState::Resident,
            ZERO => PageState::Zero,
            MOVING => PageState::Moving(SlotPage::unpack(value)),
            STANDBY => PageState::Standby(SlotPage::unpack(value)),
            RECALLING => PageState::Recalling(SlotPage::unpack(value)),
            STORED => with_handle(value, PageState::Stored),
            FETCHING => with_handle(value, PageState::Fetching),
            POISONED => PageState::Poisoned(Handle::from_raw(value)),
            ZEROING => PageState::Zeroing,
            _ => PageState::Absent,
        }
    }

    /// The page's flags.
    pub fn flags(&self, page: PageIndex) -> Flags {
        Flags((self.meta(page) >> 4) & 0xf)
    }

    /// The page's generation.
    pub fn generation(&self, page: PageIndex) -> Generation {
        Generation::from_count(self.meta(page) >> 8)
    }

    /// Puts the page into `state` and leaves its flags and generation.
    pub fn set_state(&mut self, page: PageIndex, state: PageState) {
        let (code, value) = match state {
            PageState::Absent => (ABSENT, 0),
            PageState::Resident => (RESIDENT, 0),
            PageState::Zero => (ZERO, 0),
            PageState::Moving(at) => (MOVING, at.pack()),
            PageState::Standby(at) => (STANDBY, at.pack()),
            PageState::Recalling(at) => (RECALLING, at.pack()),
            PageState::Stored(handle) => (STORED, handle.into_raw()),
            PageState::Fetching(handle) => (FETCHING, handle.into_raw()),
            PageState::Poisoned(handle) => (POISONED, handle.map_or(0, Handle::into_raw)),
            PageState::Zeroing => (ZEROING, 0),
        };
        let meta = (self.meta(page) & !0xf) | code;
        if matches!(code, MOVING | STANDBY | RECALLING) {
            self.value[page.at()].store(value, Ordering::Release);
            self.meta[page.at()].store(meta, Ordering::Release);
        } else {
            self.meta[page.at()].store(meta, Ordering::Release);
            self.value[page.at()].store(value, Ordering::Release);
        }
    }

    /// Replaces the page's flags.
    pub fn set_flags(&mut self, page: PageIndex, flags: Flags) {
        let meta = (self.meta(page) & !0xf0) | (flags.0 << 4);
        self.meta[page.at()].store(meta, Ordering::Release);
    }

    /// Gives the page a new generation.
    pub fn set_generation(&mut self, page: PageIndex, generation: Generation) {
        let meta = (self.meta(page) & 0xff) | (generation.get() << 8);
        self.meta[page.at()].store(meta, Ordering::Release);
    }
}

/// A handle is never zero, but a successor may find a state that its handle was to follow: it looks the page up by its key.
fn with_handle(value: u64, state: fn(Handle) -> PageState) -> PageState {
    state(Handle::from_raw(value).unwrap_or(Handle::MIN))
}

#[cfg(test)]
mod tests {
    use super::super::index::SlotId;
    use super::*;

    #[test]
    fn every_state_survives_packing_and_leaves_its_neighbours_alone() {
        let at = SlotPage { slot: SlotId(7), offset: 9 };
        let handle = Handle::from_raw(u64::MAX).unwrap();
        let states = [
            PageState::Absent,
            PageState::Resident,
            PageState::Zero,
            PageState::Moving(at),
            PageState::Standby(at),
            PageState::Recalling(at),
            PageState::Stored(handle),
            PageState::Fetching(handle),
            PageState::Zeroing,
            PageState::Poisoned(None),
            PageState::Poisoned(Some(handle)),
        ];
        let mut table = PageTable::new(3);
        for state in states {
            let page = PageIndex(1);
            table.set_generation(page, Generation::from_count(0xab_cdef));
            table.set_flags(page, Flags::SHARED.with(Flags::DOOMED));
            table.set_state(page, state);
            assert_eq!(table.state(page), state);
            assert_eq!(table.generation(page).get(), 0xab_cdef);
            assert!(table.flags(page).has(Flags::SHARED) && table.flags(page).has(Flags::DOOMED));
            assert_eq!(table.state(PageIndex(0)), PageState::Absent);
            assert_eq!(table.state(PageIndex(2)), PageState::Absent);
        }
    }

    #[test]
    fn a_page_costs_at_most_sixteen_bytes() {
        assert!(size_of::<u32>() + size_of::<u64>() <= 16);
        let table = PageTable::new(1000);
        assert_eq!(table.meta.len() * 4 + table.value.len() * 8, 12_000);
    }
}
