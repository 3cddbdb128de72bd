//! Writing slots out, and so making them free again: by whoever has time.
//!
//! Moving pages into slots is one thread's work, writing the slots out anybody's: compressing takes most of the time that moving out takes. Whoever
//! moves out leaves the slots here, and takes them up again where nobody else does. The engine's workers are called when somebody waits for all of a range to be
//! out. Under a limit handlers help whose faults are being held back, since memory comes faster than it goes: there workers would take the handlers' CPU.

use crate::core::SlotId;
use crate::evict::{EvictError, EvictWork, MovedOut};
use crate::memory::MemoryError;
use crate::slots::Standing;
use crate::space::{Errand, Space};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The slots, oldest first.
#[derive(Default)]
pub(crate) struct Writes {
    waiting: Mutex<VecDeque<(SlotId, Standing)>>,
    /// Being written.
    under_way: AtomicU32,
    /// Pages written.
    written: AtomicU64,
    /// Why a worker couldn't write one, until whoever moves out hears of it.
    failed: Mutex<Option<EvictError>>,
}

/// Slots left to be written out by workers, before whoever moves out writes one.
const AHEAD: usize = 4;

/// Slots that nobody stands in any more are emptied so many at a time: until then their pages count.
const DRAINED: usize = 4;

/// How often the last slots are looked after while others write them.
const ALMOST: Duration = Duration::from_micros(50);

/// How often slots are looked after that nobody stands in and somebody has just read.
const LOOKS: u32 = 200;

impl Writes {
    fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Forgets them; their pages stay where they stand.
    pub(crate) fn clear(&self) {
        self.waiting.lock().clear();
    }
}

impl Space {
    /// Leaves a slot to be written out.
    pub(crate) fn queue_write(&self, id: SlotId, standing: Standing, call: bool) {
        self.writes().waiting.lock().push_back((id, standing));
        if call {
            self.call_worker(Errand::Write);
        }
    }

    /// For whoever moves out: writes what the workers leave behind.
    pub(crate) fn write_ahead(&self, work: &mut EvictWork) -> Result<(), EvictError> {
        let writes = self.writes();
        while writes.len() > AHEAD {
            self.write_next(work)?;
        }
        writes.failed.lock().take().map_or(Ok(()), Err)
    }

    /// Puts what stands in the slot taken up into the store, and lets go of the slot.
    pub(crate) fn write_standing(
        &self,
        work: &mut EvictWork,
        moved: &mut MovedOut,
    ) -> Result<(), EvictError> {
        let written = work.write(self);
        let directory = self.shared();
        work.commit(self, moved);
        drop(directory);
        written
    }

    /// Sees to it that a slot is free: empties drained ones, then writes out what is queued, which nobody else frees, then the
    /// longest-standing.
    pub(crate) fn make_room(&self, work: &mut EvictWork, moved: &mut MovedOut) -> Result<(), EvictError> {
        if self.has_room()? {
            return Ok(());
        }
        while self.write_next(work)? {
            if self.has_room()? {
                return Ok(());
            }
        }
        let ready = self.names.lock().by_age();
        for (id, standing) in ready {
            work.take_up(id, standing);
            self.write_standing(work, moved)?;
            if self.has_room()? {
                return Ok(());
            }
        }
        self.await_writes();
        for _ in 0..LOOKS {
            if self.has_room()? {
                return Ok(());
            }
            if self.names.lock().iter().any(|(_, standing)| standing.slot.is_of(&self.pool)) {
                break;
            }
            // Nobody stands in any: who has just read one lets go of it.
            std::thread::sleep(ALMOST);
        }
        Err(EvictError::NoSlot)
    }

    fn has_room(&self) -> Result<bool, MemoryError> {
        if self.pool.free() == 0 {
            self.reclaim_slots()?;
        }
        Ok(self.pool.free() > 0)
    }

    /// Writes out what stands in slots, longest-standing first, until at least `most` pages are written.
    ///
    /// # Errors
    /// When the store doesn't take it; it stays where it stands.
    pub fn write_out(&self, most: u64) -> Result<MovedOut, EvictError> {
        let _mover = self.mover.lock();
        let mut work = EvictWork::new(self.pool.slot_pages());
        let mut moved = MovedOut::default();
        let ready = self.names.lock().by_age();
        for (id, standing) in ready {
            if moved.stored >= most {
                break;
            }
            work.take_up(id, standing);
            self.write_standing(&mut work, &mut moved)?;
        }
        self.reclaim_slots()?;
        Ok(moved)
    }

    /// Writes one slot out. Whether there was one.
    pub(crate) fn write_next(&self, work: &mut EvictWork) -> Result<bool, EvictError> {
        let writes = self.writes();
        let next = {
            let mut waiting = writes.waiting.lock();
            let next = waiting.pop_front();
            if next.is_some() {
                writes.under_way.fetch_add(1, Ordering::AcqRel);
            }
            next
        };
        let Some((id, standing)) = next else { return Ok(false) };
        let mut moved = MovedOut::default();
        work.take_up(id, standing);
        let done = self.write_standing(work, &mut moved);
        writes.written.fetch_add(moved.stored, Ordering::Relaxed);
        writes.under_way.fetch_sub(1, Ordering::AcqRel);
        done.map(|()| true)
    }

    /// Writes every slot out that is left, and waits for those that others are at. Returns the pages written since the last time.
    pub(crate) fn write_all(&self, work: &mut EvictWork) -> Result<u64, EvictError> {
        let mut done = Ok(true);
        while let Ok(true) = done {
            done = self.write_next(work);
        }
        self.await_writes();
        let writes = self.writes();
        let written = writes.written.swap(0, Ordering::Relaxed);
        let failed = writes.failed.lock().take().map_or(Ok(()), Err);
        done.and(failed).map(|()| written)
    }

    /// Waits for the slots that others are writing.
    pub(crate) fn await_writes(&self) {
        while self.writes().under_way.load(Ordering::Acquire) > 0 {
            std::thread::sleep(ALMOST);
        }
    }

    /// For a worker: writes out all that is queued.
    pub(crate) fn write_for_others(&self, work: &mut Option<EvictWork>) {
        while self.write_one_for_others(work) {}
    }

    /// For a handler whose faults are held back: writes a slot out. Whether there was anything to do.
    pub(crate) fn help_out(&self, work: &mut Option<EvictWork>) -> bool {
        // A store that may take its time isn't for a thread that serves faults.
        !self.may_wait() && self.is_braking() && self.write_one_for_others(work)
    }

    fn write_one_for_others(&self, work: &mut Option<EvictWork>) -> bool {
        if self.writes().len() == 0 {
            return false;
        }
        let work = work.get_or_insert_with(|| EvictWork::new(self.slots().slot_pages()));
        self.write_next(work).unwrap_or_else(|error| {
            self.writes().failed.lock().get_or_insert(error);
            false
        })
    }

    /// Empties slots that nobody stands in any more, if they are many.
    pub(crate) fn reclaim_many(&self) -> Result<(), EvictError> {
        if self.slots().drained() >= DRAINED {
            self.reclaim_slots()?;
        }
        Ok(())
    }
}
