//! The pool: slots by class, memory by need.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use super::arena::{Arena, Slab, Slot};
use super::classes::{ClassId, Classes};
use super::object;

/// What a store holds from the operating system, against what it may.
pub(crate) struct Held {
    bytes: AtomicU64,
    most: AtomicU64,
    limits: Limits,
}

/// What a store may hold.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    capacity: u64,
    /// Of the capacity, what is left to [`Purpose::Upkeep`].
    kept_back: u64,
}

impl Limits {
    pub(crate) const NONE: Self = Self { capacity: u64::MAX, kept_back: 0 };

    /// `works`: a part of the capacity is for upkeep.
    pub(crate) fn new(capacity: Option<u64>, works: bool) -> Self {
        let kept_back = capacity.filter(|_| works).map_or(0, |capacity| (capacity / 32).min(KEPT_BACK));
        Self { capacity: capacity.unwrap_or(u64::MAX), kept_back }
    }
}

/// What memory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For more pages.
    Put,
    /// For work that makes what is there smaller: a store that is full to the last byte could do none.
    Upkeep,
}

impl Held {
    /// Nothing yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { bytes: AtomicU64::new(0), most: AtomicU64::new(0), limits }
    }

    /// From now on these limits are for it, those before come back. More may be held than they allow: nothing is added until less is.
    pub(crate) fn limit(&mut self, limits: Limits) -> Limits {
        std::mem::replace(&mut self.limits, limits)
    }

    /// The most it ever was.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed).max(self.bytes())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts `more` in, if it fits.
    pub(crate) fn reserve(&self, more: u64) -> Result<(), NoRoom> {
        self.reserve_for(Purpose::Put, more)
    }

    /// Counts `more` in, if it fits what there is for this purpose.
    pub(crate) fn reserve_for(&self, purpose: Purpose, more: u64) -> Result<(), NoRoom> {
        let limit = match purpose {
            Purpose::Put => self.limits.capacity - self.limits.kept_back,
            Purpose::Upkeep => self.limits.capacity,
        };
        let fits = |held: u64| held.checked_add(more).filter(|sum| *sum <= limit);
        match self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(before) => {
                self.most.fetch_max(before + more, Ordering::Relaxed);
                Ok(())
            }
            Err(held) => {
                let available = limit.saturating_sub(held);
                Err(NoRoom::Capacity { needed: more, available, capacity: self.limits.capacity })
            }
        }
    }

    /// Counts `more` in without asking.
    pub(crate) fn add(&self, more: u64) {
        self.bytes.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, less: u64) {
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

/// Why there is no slot.
#[derive(Debug)]
pub(crate) enum NoRoom {
    Capacity { needed: u64, available: u64, capacity: u64 },
    Arena(io::Error),
}

/// The arena's slots by class. A class's lock is held for bookkeeping only: bytes are written and read outside it.
pub(crate) struct Pool {
    arena: Arena,
    classes: Classes,
    shelves: Box<[CachePadded<Mutex<Shelf>>]>,
    spare: Mutex<Spare>,
}

/// The slabs of one class, by place. Slots are taken lowest first, so that what is free gathers at the end.
#[derive(Default)]
struct Shelf {
    slabs: Vec<Slab>,
    /// A bit a slab, set if it has a free slot.
    open: Vec<u64>,
}

/// What compaction could do.
pub(crate) struct Packing {
    /// By class: objects from this byte of the arena on have a place before it.
    pub(crate) ends: Vec<usize>,
    /// Bytes it would give back.
    pub(crate) gain: u64,
}

/// Slabs of no class.
struct Spare {
    /// Those that were used, with the frames that still have memory.
    used: Vec<(u32, u64)>,
    /// The first that never was.
    fresh: u32,
}

/// The most of a capacity that is kept back for upkeep.
const KEPT_BACK: u64 = 256 << 10;

/// So many empty slabs keep their memory until `maintain`, so that a put right after a free doesn't pay for it again.
const WARM_SPARES: usize = 2;

impl Pool {
    pub(crate) fn new(arena: Arena, page_size: usize) -> Self {
        let classes = Classes::new(page_size + object::HEADER, arena.slab_len());
        let shelves = (0..classes.count()).map(|_| CachePadded::default()).collect();
        Self { arena, classes, shelves, spare: Mutex::new(Spare { used: Vec::new(), fresh: 0 }) }
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Bytes the pool itself takes, without slabs.
    pub(crate) fn overhead(&self) -> usize {
        size_of_val(&*self.shelves) + self.classes.count() * size_of::<usize>()
    }

    pub(crate) fn bytes<'a>(&'a self, slot: &'a Slot) -> &'a [u8] {
        self.arena.bytes(slot)
    }

    pub(crate) fn bytes_mut<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        self.arena.bytes_mut(slot)
    }

    /// A slot of at least `bytes`.
    pub(crate) fn take(&self, bytes: usize, held: &Held, purpose: Purpose) -> Result<Slot, NoRoom> {
        let class =
            self.classes.for_size(bytes).ok_or_else(|| NoRoom::Arena(io::ErrorKind::InvalidInput.into()))?;
        let shelf = self.shelf(class).ok_or_else(|| NoRoom::Arena(io::ErrorKind::InvalidInput.into()))?;
        let (slot, slab_start, new) = {
            let mut shelf = shelf.lock();
            let position = match shelf.first_open() {
                Some(position) => position,
                None => {
                    let slab = self.open_slab(class, held)?;
                    shelf.insert(slab)
                }
            };
            // Once a class has several slabs it will need the next frames as well: have them in one call.
            let ahead = (2 * shelf.slabs.len()).min(16) - 1;
            let (slot, slab_start, new) = self.take_from(&mut shelf.slabs[position], ahead, held, purpose)?;
            shelf.note(position);
            (slot, slab_start, new)
        };
        if new.count_ones() > 1 {
            // Not under the lock: under memory pressure it may take long. Trimmed meanwhile, some frames are back uncounted until they
            // are used or the slab closes.
            self.arena.populate(slab_start, new);
        }
        Ok(slot)
    }

    /// Takes a slab's lowest free slot with the frames it needs, and up to `ahead` frames more if there is room for them.
    fn take_from(
        &self,
        slab: &mut Slab,
        ahead: usize,
        held: &Held,
        purpose: Purpose,
    ) -> Result<(Slot, usize, u64), NoRoom> {
        let missing = || NoRoom::Arena(io::Error::other("a slab without the free slot it was said to have"));
        let number = slab.lowest_free().ok_or_else(missing)?;
        let resident = slab.resident();
        let needed = slab.frames_of(number) & !resident;
        let mut new = 0;
        if needed != 0 {
            let frame = self.arena.frame() as u64;
            let next = needed.checked_shl(1).unwrap_or(0);
            let more = (0..ahead).fold(needed, |frames, _| frames | frames << 1 | next) & !resident;
            new = more;
            if held.reserve(u64::from(more.count_ones()) * frame).is_err() {
                held.reserve_for(purpose, u64::from(needed.count_ones()) * frame)?;
                new = needed;
            }
        }
        let slot = slab.take(number).ok_or_else(missing)?;
        slab.set_resident(resident | new);
        Ok((slot, slab.start(), new))
    }

    /// Takes a slot back.
    pub(crate) fn give(&self, slot: Slot, held: &Held) {
        let Some(shelf) = self.classes.for_size(slot.len()).and_then(|class| self.shelf(class)) else {
            return;
        };
        let mut shelf = shelf.lock();
        let Some(position) = shelf.position(&slot) else { return };
        let slab = &mut shelf.slabs[position];
        slab.give(slot);
        if slab.used() == 0 && shelf.slabs.len() > 1 {
            let slab = shelf.remove(position);
            drop(shelf);
            self.close_slab(&slab, WARM_SPARES, held);
        } else {
            shelf.note(position);
        }
    }

    /// Where the objects of each class would end if they were packed: from this byte of the arena on no slot would be taken.
    /// And how many bytes packing and trimming would give back.
    pub(crate) fn packing(&self) -> Packing {
        let mut packing = Packing { ends: Vec::with_capacity(self.shelves.len()), gain: 0 };
        for (class, shelf) in (0..).zip(&self.shelves) {
            let slot_len = self.classes.slot_len(ClassId(class));
            let shelf = shelf.lock();
            let mut left: usize = shelf.slabs.iter().map(|slab| slab.used() as usize).sum();
            let mut end = None;
            for slab in &shelf.slabs {
                let packed = left.min(slab.slots() as usize);
                left -= packed;
                let frames = (packed * slot_len).div_ceil(self.arena.frame());
                let resident = slab.resident().count_ones() as usize;
                packing.gain += (resident.saturating_sub(frames) * self.arena.frame()) as u64;
                if left == 0 && end.is_none() {
                    end = Some(slab.start() + packed * slot_len);
                }
            }
            packing.ends.push(end.unwrap_or(0));
        }
        packing
    }

    /// The class whose slots are as long as `slot`.
    pub(crate) fn class_of(&self, slot: &Slot) -> Option<ClassId> {
        self.classes.for_size(slot.len())
    }

    /// Gives back the memory of frames and slabs without objects; answers how many bytes.
    pub(crate) fn trim(&self, held: &Held) -> u64 {
        let before = held.bytes();
        for shelf in &self.shelves {
            let mut at = 0;
            loop {
                // One slab at a time, so that nobody waits for long.
                let mut shelf = shelf.lock();
                let Some(slab) = shelf.slabs.get_mut(at) else { break };
                if slab.used() == 0 {
                    let slab = shelf.remove(at);
                    drop(shelf);
                    self.close_slab(&slab, 0, held);
                } else {
                    held.release(u64::from(self.arena.trim(slab)) * self.arena.frame() as u64);
                    at += 1;
                }
            }
        }
        let mut spare = self.spare.lock();
        for (number, frames) in &mut spare.used {
            self.cool(*number, frames, held);
        }
        before.saturating_sub(held.bytes())
    }

    /// A slab of this class, with what memory it still has.
    fn open_slab(&self, class: ClassId, held: &Held) -> Result<Slab, NoRoom> {
        let (number, frames) = {
            let mut spare = self.spare.lock();
            let fresh = spare.fresh;
            let warm = spare.used.iter().rposition(|(_, frames)| *frames != 0);
            match warm.or_else(|| spare.used.len().checked_sub(1)) {
                Some(at) => spare.used.swap_remove(at),
                None if fresh < self.arena.slabs() => {
                    spare.fresh += 1;
                    (fresh, 0)
                }
                None => {
                    let capacity = u64::from(self.arena.slabs()) * self.arena.slab_len() as u64;
                    return Err(NoRoom::Capacity {
                        needed: self.arena.slab_len() as u64,
                        available: 0,
                        capacity,
                    });
                }
            }
        };
        match self.arena.open_slab(number, class.0, self.classes.slot_len(class), frames, object::MARK) {
            Ok(slab) => {
                held.add(slab.overhead() as u64);
                Ok(slab)
            }
            Err(error) => {
                self.spare.lock().used.push((number, frames));
                Err(NoRoom::Arena(error))
            }
        }
    }

    /// Makes an empty slab a spare; of these, `warm` at most keep their memory.
    fn close_slab(&self, slab: &Slab, warm: usize, held: &Held) {
        held.release(slab.overhead() as u64);
        let number = u32::try_from(slab.start() / self.arena.slab_len()).unwrap_or(u32::MAX);
        let mut frames = slab.resident();
        let mut spare = self.spare.lock();
        if spare.used.iter().filter(|(_, frames)| *frames != 0).count() >= warm {
            self.cool(number, &mut frames, held);
        }
        spare.used.push((number, frames));
    }

    /// Gives an empty slab's memory back, counted or not.
    fn cool(&self, number: u32, frames: &mut u64, held: &Held) {
        if *frames != 0 && self.arena.punch(number as usize * self.arena.slab_len(), u64::MAX).is_ok() {
            held.release(u64::from(frames.count_ones()) * self.arena.frame() as u64);
            *frames = 0;
        }
    }

    fn shelf(&self, class: ClassId) -> Option<&Mutex<Shelf>> {
        self.shelves.get(usize::from(class.0)).map(|shelf| &**shelf)
    }

    /// Fills an empty pool with what a found arena holds. `live` is given each slot that
    /// may have an object, and gives those back that haven't.
    pub(crate) fn refill(
        &self,
        held: &Held,
        mut live: impl FnMut(&Arena, Slot) -> Option<Slot>,
    ) -> io::Result<()> {
        let mut found = Vec::new();
        self.arena.for_resident(|number, frames| found.push((number, frames)))?;
        let mut spare = self.spare.lock();
        let mut next = 0;
        for (number, frames) in found {
            spare.used.extend((next..number).map(|skipped| (skipped, 0)));
            next = number + 1;
            held.add(u64::from(frames.count_ones()) * self.arena.frame() as u64);
            let class = self.arena.class_of(number)?.map(ClassId);
            let Some((class, shelf)) = class.and_then(|class| Some((class, self.shelf(class)?))) else {
                spare.used.push((number, frames));
                continue;
            };
            let mut slab = self.arena.reopen_slab(number, self.classes.slot_len(class), frames);
            let mut kept = frames;
            for slot in 0..slab.slots() as usize {
                // The mark is in this frame: without memory there is no object, and looking would make some.
                if frames & slab.frame_bit(slot, object::MARK.start) != 0
                    && let Some(taken) = slab.take(slot)
                {
                    match live(&self.arena, taken) {
                        Some(unwanted) => slab.give(unwanted),
                        None => kept |= slab.frames_of(slot),
                    }
                }
            }
            slab.set_resident(kept);
            held.add(u64::from((kept & !frames).count_ones()) * self.arena.frame() as u64);
            held.add(slab.overhead() as u64);
            shelf.lock().insert(slab);
        }
        spare.fresh = next;
        Ok(())
    }
}

impl Shelf {
    /// The lowest slab with a free slot.
    fn first_open(&self) -> Option<usize> {
        let word = self.open.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.open[word].trailing_zeros() as usize)
    }

    /// Brings the slab's bit up to date.
    fn note(&mut self, position: usize) {
        let bit = 1 << (position % 64);
        if self.slabs[position].is_full() {
            self.open[position / 64] &= !bit;
        } else {
            self.open[position / 64] |= bit;
        }
    }

    fn position(&self, slot: &Slot) -> Option<usize> {
        self.slabs.partition_point(|slab| slab.start() <= slot.offset()).checked_sub(1)
    }

    fn insert(&mut self, slab: Slab) -> usize {
        let position = self.slabs.partition_point(|other| other.start() < slab.start());
        self.slabs.insert(position, slab);
        self.renumber(position);
        position
    }

    fn remove(&mut self, position: usize) -> Slab {
        let slab = self.slabs.remove(position);
        self.renumber(position);
        slab
    }

    /// Recomputes the bits from `position` on.
    fn renumber(&mut self, position: usize) {
        self.open.resize(self.slabs.len().div_ceil(64), 0);
        if let Some(last) = self.open.last_mut()
            && !self.slabs.len().is_multiple_of(64)
        {
            *last &= (1 << (self.slabs.len() % 64)) - 1;
        }
        (position..self.slabs.len()).for_each(|at| self.note(at));
    }
}
