//! Swap slots: where moved pages stand until they are written out.
//!
//! A [`SlotPool`] owns the area of one address space and hands out [`Slot`]s, last freed first. A slot lives as long as
//! somebody holds it: a page standing in it (here or in a forked child), a writer, a reader. When the last lets go, its
//! range is noted as drained, and the pool's owner empties it and puts it back.

use crate::core::{PageIndex, SlotId, SlotPage};
use crate::directory::Region;
use crate::ledger::{Ledger, SlotRecord};
use crate::memory::{Memory, MemoryError};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;
use userswap_uffd::Span;

/// The slots of one address space.
pub struct SlotPool {
    /// That of its address space's ledger, 0 if there is none.
    uid: u64,
    slot_pages: u32,
    ranges: Mutex<Ranges>,
    /// Whoever is emptying slots: what is neither drained nor free yet is waited for by it.
    emptying: Mutex<()>,
}

#[derive(Default)]
struct Ranges {
    free: Vec<Span>,
    drained: Vec<Span>,
    /// Those of an area that was inherited with pages in it, until nobody stands in the slot there any more.
    inherited: Vec<Span>,
    in_use: u32,
}

impl SlotPool {
    /// Cuts `area` into slots of `slot_pages` pages. A trailing part too small for one is left out.
    pub fn new(uid: u64, area: Option<Span>, slot_pages: u32, page_bytes: u64) -> Arc<Self> {
        let pool = Self { uid, slot_pages, ranges: Mutex::new(Ranges::default()), emptying: Mutex::new(()) };
        if let Some(area) = area {
            pool.ranges.lock().free.extend(pool.cut(area, page_bytes));
        }
        Arc::new(pool)
    }

    /// Cuts more slots, from an area that a forked child has inherited: with copies of what stood there.
    pub fn inherit(&self, area: Span, page_bytes: u64) {
        self.ranges.lock().inherited.extend(self.cut(area, page_bytes));
    }

    /// The slot at `span` as one that pages stand in: a dead process has left it so. Without a host its address space is gone.
    pub(crate) fn found(self: &Arc<Self>, span: Span, host: Option<&Arc<dyn Memory>>) -> Arc<Slot> {
        let mut ranges = self.ranges.lock();
        ranges.free.retain(|other| !other.overlaps(&span));
        ranges.inherited.retain(|other| !other.overlaps(&span));
        ranges.in_use += 1;
        Arc::new(self.slot(span, host, Phase::Ready))
    }

    /// What may be in the slots that nobody stands in isn't known: they are to be emptied, and need no watching until then.
    pub(crate) fn distrust_free(&self, host: &dyn Memory) {
        let mut ranges = self.ranges.lock();
        let free = std::mem::take(&mut ranges.free);
        ranges.in_use += u32::try_from(free.len()).unwrap_or(0);
        ranges.drained.extend(&free);
        for slot in free {
            // Of a process that is gone none will be used again.
            if let Err(error) = host.settle_slot(slot) {
                tracing::debug!(%error, "a slot stays registered");
            }
        }
    }

    fn cut(&self, area: Span, page_bytes: u64) -> impl Iterator<Item = Span> + use<> {
        let slot_bytes = u64::from(self.slot_pages) * page_bytes;
        // Last in, first out: the lowest is handed out first.
        (0..area.len() / slot_bytes)
            .rev()
            .filter_map(move |n| Span::new(area.start() + n * slot_bytes, slot_bytes).ok())
    }

    /// Takes the inherited slots that no page needs any more; `needed` says of which that can't be said.
    fn take_inherited(&self, needed: impl Fn(&Span) -> bool) -> Vec<Span> {
        let mut ranges = self.ranges.lock();
        let (kept, taken) = std::mem::take(&mut ranges.inherited).into_iter().partition(needed);
        ranges.inherited = kept;
        taken
    }

    /// Pages a slot has room for.
    pub fn slot_pages(&self) -> u32 {
        self.slot_pages
    }

    /// Slots that hold pages or wait to be emptied.
    pub fn in_use(&self) -> u32 {
        self.ranges.lock().in_use
    }

    /// Slots that can be moved into at once.
    pub fn free(&self) -> usize {
        self.ranges.lock().free.len()
    }

    /// Slots that nobody stands in any more and that aren't empty yet.
    pub fn drained(&self) -> usize {
        self.ranges.lock().drained.len()
    }

    /// A free slot of the address space that `host` reaches.
    pub fn take(self: &Arc<Self>, host: &Arc<dyn Memory>) -> Option<Arc<Slot>> {
        let mut ranges = self.ranges.lock();
        let span = ranges.free.pop()?;
        ranges.in_use += 1;
        Some(Arc::new(self.slot(span, Some(host), Phase::Filling)))
    }

    fn slot(self: &Arc<Self>, span: Span, host: Option<&Arc<dyn Memory>>, phase: Phase) -> Slot {
        Slot {
            span,
            host: host.map(Arc::clone),
            pool: Arc::clone(self),
            phase: Mutex::new(phase),
            settled: Condvar::new(),
        }
    }

    /// Makes inherited slots usable in which none of the pages in `names` stands. Returns how many.
    ///
    /// # Errors
    /// When the memory can't empty them; they are not used again.
    pub fn reclaim_inherited(
        &self,
        host: &dyn Memory,
        names: &Mutex<SlotNames>,
    ) -> Result<usize, MemoryError> {
        let _emptying = self.emptying.lock();
        if self.ranges.lock().inherited.is_empty() {
            return Ok(0);
        }
        let standing: Vec<Span> = {
            let names = names.lock();
            names
                .iter()
                .filter(|(_, at)| !std::ptr::eq(&*at.slot.pool, self))
                .map(|(_, at)| at.slot.span)
                .collect()
        };
        let free = self.take_inherited(|span| standing.iter().any(|other| other.overlaps(span)));
        if free.is_empty() {
            return Ok(0);
        }
        for slot in &free {
            // One that was being moved into when the process forked is registered in the child, too.
            host.settle_slot(*slot)?;
        }
        host.empty_slots(&free)?;
        let count = free.len();
        self.ranges.lock().free.extend(free);
        Ok(count)
    }

    /// Empties every slot nobody stands in any more and makes it free again. Returns how many.
    ///
    /// # Errors
    /// When the memory can't empty them; they are not used again.
    pub fn reclaim(&self, host: &dyn Memory) -> Result<usize, MemoryError> {
        let _emptying = self.emptying.lock();
        let drained = std::mem::take(&mut self.ranges.lock().drained);
        if drained.is_empty() {
            return Ok(0);
        }
        host.empty_slots(&drained)?;
        let mut ranges = self.ranges.lock();
        let count = drained.len();
        for span in drained {
            ranges.free.push(span);
            ranges.in_use -= 1;
        }
        Ok(count)
    }
}

/// How far the move into a slot has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The move isn't known to be done.
    Filling,
    /// What was to come is there.
    Ready,
    /// Nothing came.
    Failed,
}

/// One slot, held by whoever needs its bytes.
pub struct Slot {
    span: Span,
    host: Option<Arc<dyn Memory>>,
    pool: Arc<SlotPool>,
    phase: Mutex<Phase>,
    settled: Condvar,
}

impl Slot {
    /// Its range, in the address space it belongs to.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Whether it is one of this pool's.
    pub fn is_of(&self, pool: &Arc<SlotPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// How far the move into it has come.
    pub fn phase(&self) -> Phase {
        *self.phase.lock()
    }

    /// Notes how the move ended.
    pub fn settle(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.settled.notify_all();
    }

    /// Waits until the move has ended, or for `patience`.
    pub fn wait_settled(&self, patience: Duration) -> Phase {
        let mut phase = self.phase.lock();
        self.settled.wait_while_for(&mut phase, |phase| *phase == Phase::Filling, patience);
        *phase
    }

    /// Reads pages standing in it, from the address space it belongs to.
    ///
    /// # Errors
    /// When that address space is gone.
    pub fn read(&self, offset: u32, out: &mut [u8]) -> Result<(), MemoryError> {
        self.host.as_ref().ok_or(MemoryError::Gone)?.read_slot(self.addr(offset), out)
    }

    /// Reads pages that stood in it from the copy of it that a forked child has.
    ///
    /// # Errors
    /// When the child has none.
    pub fn read_in_child(
        &self,
        offset: u32,
        out: &mut [u8],
        child: &dyn Memory,
        thread: Option<u32>,
    ) -> Result<(), MemoryError> {
        child.read_inherited(self.addr(offset), out, thread)
    }

    /// Where one of its pages is.
    pub(crate) fn addr(&self, offset: u32) -> u64 {
        self.span.start() + u64::from(offset) * (self.span.len() / u64::from(self.pool.slot_pages))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.ranges.lock().drained.push(self.span);
    }
}

/// The slots an address space's pages stand in, under names short enough for its page tables. A child's names may
/// stand for slots of its parent.
#[derive(Default)]
pub struct SlotNames {
    named: Vec<Option<Standing>>,
    vacant: Vec<u32>,
    filled: u64,
    /// Where names are written down, if anywhere.
    ledger: Option<Arc<Ledger>>,
}

/// Who stands in a slot.
#[derive(Clone)]
pub struct Standing {
    /// The slot.
    pub slot: Arc<Slot>,
    /// What was ordered there, front to back without gaps.
    pub runs: Vec<Run>,
    /// How many pages are still there.
    pub count: u32,
    /// Orders slots by when they were filled.
    pub serial: u64,
}

/// Neighbouring pages of a region that were ordered into a slot together.
#[derive(Clone)]
pub struct Run {
    /// The region whose pages they are.
    pub region: Arc<Region>,
    /// The page at `offset`; the others follow.
    pub first: PageIndex,
    /// Where in the slot.
    pub offset: u32,
    /// How many.
    pub pages: u32,
}

impl Run {
    /// Where in the slot it ends.
    pub fn end(&self) -> u32 {
        self.offset + self.pages
    }
}

impl Standing {
    /// A slot that nothing was ordered into yet.
    pub fn empty(slot: Arc<Slot>) -> Self {
        Self { slot, runs: Vec::new(), count: 0, serial: 0 }
    }

    /// Where in the slot there is room.
    pub fn end(&self) -> u32 {
        self.runs.last().map_or(0, Run::end)
    }
}

impl SlotNames {
    /// No names yet; those to come are written down.
    pub(crate) fn kept(ledger: Option<Arc<Ledger>>) -> Self {
        Self { ledger, ..Self::default() }
    }

    /// Those that a dead process has written down, as far as somebody stands there still.
    pub(crate) fn found(ledger: Arc<Ledger>, named: Vec<Option<Standing>>) -> Self {
        let filled = named.iter().flatten().map(|standing| standing.serial).max().unwrap_or(0);
        let unused = (0u32..).zip(&named).filter(|(_, entry)| entry.is_none());
        let vacant: Vec<u32> = unused.map(|(index, _)| index).collect();
        vacant.iter().for_each(|index| ledger.clear_slot(SlotId(*index)));
        Self { named, vacant, filled, ledger: Some(ledger) }
    }

    /// Names a slot.
    pub fn name(&mut self, standing: Standing) -> SlotId {
        let id = match self.vacant.pop() {
            Some(index) => SlotId(index),
            None => {
                self.named.push(None);
                SlotId(u32::try_from(self.named.len() - 1).unwrap_or(u32::MAX))
            }
        };
        self.note(id, &standing);
        self.named[id.0 as usize] = Some(standing);
        id
    }

    fn note(&self, id: SlotId, standing: &Standing) {
        if let Some(ledger) = &self.ledger {
            let slot = &standing.slot;
            let (owner, span, serial) = (slot.pool.uid, slot.span, standing.serial);
            let record = SlotRecord { owner, span, serial, ordered: false };
            ledger.note_slot(id, &record);
        }
    }

    /// Who stands in it.
    pub fn get(&self, id: SlotId) -> Option<&Standing> {
        self.named.get(id.0 as usize)?.as_ref()
    }

    /// Mutably.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Standing> {
        self.named.get_mut(id.0 as usize)?.as_mut()
    }

    /// A page left. The last one takes the name with it.
    pub fn leave(&mut self, page: SlotPage) {
        self.leave_many(page.slot, 1);
    }

    /// `count` pages left.
    pub fn leave_many(&mut self, id: SlotId, count: u32) {
        let Some(entry) = self.named.get_mut(id.0 as usize) else { return };
        let Some(standing) = entry.as_mut() else { return };
        standing.count = standing.count.saturating_sub(count);
        if standing.count == 0 {
            *entry = None;
            self.vacant.push(id.0);
            if let Some(ledger) = &self.ledger {
                ledger.clear_slot(id);
            }
        }
    }

    /// Gives a name up whoever stands there.
    pub fn forget(&mut self, id: SlotId) {
        self.leave_many(id, u32::MAX);
    }

    /// Replaces what stands under a name, as the latest to be filled: all that was ordered.
    pub fn fill(&mut self, id: SlotId, standing: &mut Standing) {
        self.filled += 1;
        standing.serial = self.filled;
        standing.count = standing.end();
        self.note(id, standing);
        if let Some(entry) = self.named.get_mut(id.0 as usize) {
            *entry = Some(standing.clone());
        }
    }

    /// What stands under a name is about to be ordered there.
    pub(crate) fn order(&self, id: SlotId) {
        if let Some(ledger) = &self.ledger {
            ledger.note_order(id);
        }
    }

    /// The slots that can be written out, longest-standing first.
    pub fn by_age(&self) -> Vec<(SlotId, Standing)> {
        let mut ready: Vec<_> = self
            .iter()
            .filter(|(_, standing)| standing.slot.phase() == Phase::Ready)
            .map(|(id, standing)| (id, standing.clone()))
            .collect();
        ready.sort_unstable_by_key(|(_, standing)| standing.serial);
        ready
    }

    /// Every name in use.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &Standing)> + '_ {
        (0u32..).zip(&self.named).filter_map(|(index, entry)| Some((SlotId(index), entry.as_ref()?)))
    }

    /// The slot, being filled, whose range starts at `addr`.
    pub fn filling_at(&self, addr: u64) -> Option<(SlotId, Standing)> {
        self.iter()
            .find(|(_, standing)| {
                standing.slot.span.start() == addr && standing.slot.phase() == Phase::Filling
            })
            .map(|(id, standing)| (id, standing.clone()))
    }

    /// Pages standing in slots.
    pub fn standing(&self) -> u64 {
        self.iter().map(|(_, standing)| u64::from(standing.count)).sum()
    }
}
