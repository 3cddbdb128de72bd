//! Slots that are to be written out, by whoever has time.
//!
//! Moving pages into slots is one thread's work, writing the slots out anybody's. Whoever moves out to hold a limit leaves the slots here and
//! takes them up again; handlers whose faults are being held back, since memory comes faster than it goes, help.

use crate::core::SlotId;
use crate::evict::{EvictError, EvictWork, MovedOut};
use crate::slots::Standing;
use crate::space::Space;
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
}

/// How often the last slots are looked after while others write them.
const ALMOST: Duration = Duration::from_micros(50);

impl Writes {
    pub(crate) fn push(&self, id: SlotId, standing: Standing) {
        self.waiting.lock().push_back((id, standing));
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Forgets them; their pages stay where they stand.
    pub(crate) fn clear(&self) {
        self.waiting.lock().clear();
    }
}

impl Space {
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
        while self.write_next(work)? {}
        self.await_writes();
        Ok(self.writes().written.swap(0, Ordering::Relaxed))
    }

    /// Waits for the slots that others are writing.
    pub(crate) fn await_writes(&self) {
        while self.writes().under_way.load(Ordering::Acquire) > 0 {
            std::thread::sleep(ALMOST);
        }
    }

    /// For a handler whose faults are held back: writes a slot out. Whether there was anything to do.
    pub(crate) fn help_out(&self, work: &mut Option<EvictWork>) -> bool {
        // A store that may take its time isn't for a thread that serves faults.
        if self.may_wait() || !self.is_braking() || self.writes().len() == 0 {
            return false;
        }
        let work = work.get_or_insert_with(|| EvictWork::new(self.slots().slot_pages()));
        match self.write_next(work) {
            Ok(done) => done,
            Err(error) => {
                tracing::debug!(%error, "helping to write out");
                false
            }
        }
    }
}
