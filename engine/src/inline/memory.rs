//! The memory of an inline region: the range itself, and the slots that pages leave through. All unsafe code of inline regions.

use crate::local::reach::move_to_slot;
use crate::memory::MemoryError;
use crate::watched::refused;
use std::sync::atomic::{AtomicU8, Ordering};
use userswap_uffd::own::{madvise, mincore};
use userswap_uffd::{
    Advice, CopyMode, Error, Features, Mapping, MoveMode, OpenMode, Outcome, Protection, RegisterMode, Span,
    Uffd, page_bytes, page_size,
};

/// The range of a region, its slots, and the userfaultfd for both.
pub(super) struct InlineMemory {
    uffd: Uffd,
    region: Mapping,
    slots: Mapping,
    slot_pages: u32,
    /// Wiped in a forked child, which has none of this.
    here: Mapping,
}

/// What can't be done without.
const NEEDED: Features = Features::SIGBUS.union(Features::MOVE);

/// What of the needed features this kernel hasn't.
pub(crate) fn lacking() -> Option<Features> {
    let available = Features::available().unwrap_or(Features::empty());
    Some(NEEDED - available).filter(|lacking| !lacking.is_empty())
}

impl InlineMemory {
    /// Maps `bytes` and as many slots of `slot_pages` as fit in `slot_bytes`.
    pub(super) fn new(bytes: u64, slot_bytes: u64, slot_pages: u32) -> Result<Self, Error> {
        // A system call on a missing page fails either way, and this takes no privilege.
        let uffd =
            Uffd::open(NEEDED, OpenMode::UserModeOnly).or_else(|_| Uffd::open(NEEDED, OpenMode::Auto))?;
        let region = Mapping::new(bytes, Protection::READ_WRITE)?;
        let slot = u64::from(slot_pages) * page_bytes();
        let slots = Mapping::new((slot_bytes / slot).max(2) * slot, Protection::READ_WRITE)?;
        let here = Mapping::new(page_bytes(), Protection::READ_WRITE)?;
        for (span, advice) in [
            (region.span(), Advice::DontFork),
            (slots.span(), Advice::DontFork),
            (slots.span(), Advice::NoHugePage),
            (here.span(), Advice::WipeOnFork),
        ] {
            // SAFETY: needed because a child won't have the ranges; they are new, and the documentation of regions says so.
            unsafe { madvise(span, advice)? };
        }
        // SAFETY: needed because missing pages are ours to fill. Slots are known to nobody else; of them only pages are touched that are there.
        unsafe { uffd.register(slots.span(), RegisterMode::MISSING) }?;
        let memory = Self { uffd, region, slots, slot_pages, here };
        memory.mark().store(1, Ordering::Relaxed);
        Ok(memory)
    }

    /// The region's range.
    pub(super) fn span(&self) -> Span {
        self.region.span()
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr().as_ptr()
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.slots.span().pages()).unwrap_or(u32::MAX) / self.slot_pages
    }

    /// Pages a slot has.
    pub(super) fn slot_pages(&self) -> u32 {
        self.slot_pages
    }

    /// Whether this is the process that the memory is of, and not a forked child.
    pub(super) fn is_here(&self) -> bool {
        self.mark().load(Ordering::Relaxed) == 1
    }

    fn mark(&self) -> &AtomicU8 {
        // SAFETY: needed because the kernel wipes it. A byte of a mapping that lives as long as `self` and that nobody else writes to.
        unsafe { AtomicU8::from_ptr(self.here.as_ptr().as_ptr()) }
    }

    /// Missing pages of the region are ours from now on.
    pub(super) fn register(&self) -> Result<(), MemoryError> {
        // SAFETY: needed because missing pages are filled by us. The range is the region's own, and what we fill it with is what was there.
        unsafe { self.uffd.register(self.span(), RegisterMode::MISSING) }
            .map(|_| ())
            .map_err(|error| refused("registering", self.span(), error))
    }

    pub(super) fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        mincore(span, present).map_err(|error| refused("looking at", span, error))
    }

    /// Has the kernel put zeros where nothing is, while it still does.
    pub(super) fn populate(&self, span: Span) -> Result<(), MemoryError> {
        // SAFETY: needed because madvise can destroy memory; this advice changes no byte.
        unsafe { madvise(span, Advice::PopulateWrite) }.map_err(|error| refused("filling", span, error))
    }

    /// Puts bytes in place.
    pub(super) fn copy(&self, to: u64, bytes: &[u8]) -> Outcome {
        self.uffd.copy(to, bytes, CopyMode { dont_wake: true, wp: false })
    }

    /// Puts zeros in place.
    pub(super) fn zero(&self, span: Span) -> Outcome {
        self.uffd.zeropage(span, true)
    }

    /// Moves pages of the region to the start of a slot that is free.
    pub(super) fn move_out(&self, from: Span, slot: u32) -> Outcome {
        // SAFETY: needed because the pages vanish from where the program has them. The range is registered; the slot is free.
        unsafe { move_to_slot(&self.uffd, from, self.slot_addr(slot, 0), MODE) }
    }

    /// Moves pages of a slot into the region.
    pub(super) fn move_in(&self, slot: u32, offset: u32, to: Span) -> Outcome {
        // SAFETY: needed because the slot's pages vanish. They are the caller's alone, by the state of the slot.
        unsafe { self.uffd.move_pages(to.start(), self.slot_addr(slot, offset), to.len(), MODE) }
    }

    /// Pages of a slot that are there and that nobody changes or moves: those that stand in it, whoever may be reading them as well.
    pub(super) fn standing(&self, slot: u32, offset: u32, pages: u32) -> &[u8] {
        let len = self.within(slot, offset, pages);
        // SAFETY: needed because slots are reached by address. The range is within the mapping, which lives as long as `self`; what stands in a slot
        // isn't changed or taken away before every page of it has left, and the caller works on one that hasn't.
        unsafe { std::slice::from_raw_parts(self.slot_pointer(slot, offset), len) }
    }

    /// Has `fill` write to pages of a slot that are there and that are the caller's alone: frames on their way into the region.
    pub(super) fn fill_frames<R>(
        &self,
        frames: &mut Frames,
        pages: u32,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let len = self.within(frames.slot, frames.next, pages.min(frames.end - frames.next));
        // SAFETY: as in `standing`; a `Frames` is made for a slot that nobody stands in, and there is one for a slot, borrowed exclusively here.
        fill(unsafe { std::slice::from_raw_parts_mut(self.slot_pointer(frames.slot, frames.next), len) })
    }

    /// Drops what is in a slot.
    pub(super) fn empty_slot(&self, slot: u32) -> Result<(), MemoryError> {
        let span = Span::from_pages(self.slot_addr(slot, 0), u64::from(self.slot_pages)).map_err(nowhere)?;
        // SAFETY: needed because it destroys what is there; the slot is the caller's alone.
        unsafe { madvise(span, Advice::DontNeed) }.map_err(|error| refused("emptying", span, error))
    }

    /// Drops what is in a part of the region.
    pub(super) fn drop_contents(&self, span: Span) -> Result<(), MemoryError> {
        // SAFETY: needed because it destroys what is there, which the region's owner asked for.
        unsafe { madvise(span, Advice::DontNeed) }.map_err(|error| refused("emptying", span, error))
    }

    fn within(&self, slot: u32, offset: u32, pages: u32) -> usize {
        assert!(slot < self.slots() && offset + pages <= self.slot_pages, "pages beyond a slot");
        pages as usize * page_size()
    }

    fn slot_addr(&self, slot: u32, offset: u32) -> u64 {
        let pages = u64::from(slot) * u64::from(self.slot_pages) + u64::from(offset);
        self.slots.span().start() + pages * page_bytes()
    }

    fn slot_pointer(&self, slot: u32, offset: u32) -> *mut u8 {
        let within = self.slot_addr(slot, offset) - self.slots.span().start();
        // SAFETY: needed to get from the first byte to another; `within` has checked that it is in the mapping.
        unsafe { self.slots.as_ptr().as_ptr().add(usize::try_from(within).unwrap_or(0)) }
    }
}

const MODE: MoveMode = MoveMode { dont_wake: true, allow_src_holes: false };

/// Frames of a slot that nobody stands in any more: pages on their way into the region are written there and moved. Whoever has it has the slot to itself.
pub(super) struct Frames {
    pub(super) slot: u32,
    /// The first that is there still.
    pub(super) next: u32,
    /// The one after the last.
    pub(super) end: u32,
}

fn nowhere(_: userswap_uffd::SpanError) -> MemoryError {
    MemoryError::Gone
}
