//! Defects an engine might have, sown between the engine and the simulated machine, so that it can be shown that seeds find them.
//!
//! The engine has none of this. What it says to the kernel and the store, and what these answer, goes through a [`Seam`] or a
//! [`FaultyStore`], which gets one thing wrong, as an engine with that mistake in it would. Two are beside these: `Defect::gate` says who
//! forgets the gate, and `forget_a_share` what isn't counted at a fork.

use super::machine::{Machine, ReadAhead};
use super::memory::{Shared, SimMemory};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use userswap_engine::Space;
use userswap_engine::core::PageState;
use userswap_engine::memory::{Batch, Event, Memory, MemoryError, Moved, Order};
use userswap_engine::shares::Shares;
use userswap_store::{Capabilities, Fetch, Handle, Page, PageKey, Stats, Store, StoreError, Waiter};
use userswap_uffd::{Outcome, Span, Stop};

/// One mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defect {
    /// What was stored of a page that its program removed is kept.
    StaleAfterRemove,
    /// The removal of a page is forgotten if an order to move it is out.
    RemovedWhileMoving,
    /// Events that were read beside faults are applied when those faults have been taken over.
    EventsAfterFaults,
    /// Who installs several pages wakes those who wait for the first alone.
    LostWake,
    /// An install that the kernel refused for a change under way counts as done.
    RefusalDropped,
    /// An install that stopped half-way counts as done.
    PartTakenForWhole,
    /// Handlers install and record without holding the gate.
    GateNotHeldByHandlers,
    /// Movers plan, move and record without holding the gate.
    GateNotHeldByMovers,
    /// A page in a slot is dropped once it was read, not once it is in the books as stored.
    SlotEmptiedEarly,
    /// A page that came late from the store is freed by who answers, and by who waited.
    DoubleFree,
    /// A page is freed once it was read, not once it is in place.
    EarlyFree,
    /// One page of a child isn't counted as shared with its parent.
    MissedShare,
    /// A page that can't be brought back reads as zeros.
    LossGuessed,
    /// A successor doesn't hear of the events that its predecessor had read and not written down.
    EventsForgotten,
    /// A successor takes a move for not made whose answer its predecessor hadn't heard.
    MoveForgotten,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::StaleAfterRemove,
        Self::RemovedWhileMoving,
        Self::EventsAfterFaults,
        Self::LostWake,
        Self::RefusalDropped,
        Self::PartTakenForWhole,
        Self::GateNotHeldByHandlers,
        Self::GateNotHeldByMovers,
        Self::SlotEmptiedEarly,
        Self::DoubleFree,
        Self::EarlyFree,
        Self::MissedShare,
        Self::LossGuessed,
        Self::EventsForgotten,
        Self::MoveForgotten,
    ];

    /// Whether it is one of who takes up what another has left.
    pub(super) fn is_a_successors(self) -> bool {
        matches!(self, Self::EventsForgotten | Self::MoveForgotten)
    }

    /// As `sim --defect` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StaleAfterRemove => "stale-after-remove",
            Self::RemovedWhileMoving => "removed-while-moving",
            Self::EventsAfterFaults => "events-after-faults",
            Self::LostWake => "lost-wake",
            Self::RefusalDropped => "refusal-dropped",
            Self::PartTakenForWhole => "part-taken-for-whole",
            Self::GateNotHeldByHandlers => "gate-not-held-by-handlers",
            Self::GateNotHeldByMovers => "gate-not-held-by-movers",
            Self::SlotEmptiedEarly => "slot-emptied-early",
            Self::DoubleFree => "double-free",
            Self::EarlyFree => "early-free",
            Self::MissedShare => "missed-share",
            Self::LossGuessed => "loss-guessed",
            Self::EventsForgotten => "events-forgotten",
            Self::MoveForgotten => "move-forgotten",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|defect| defect.name() == name)
    }

    /// Whom the gate is to know of: the counter of who holds it, or one that nobody looks at.
    pub(super) fn gate<'a>(
        defect: Option<Self>,
        forgetful: Self,
        gate: &'a mut u32,
        ignored: &'a mut u32,
    ) -> &'a mut u32 {
        if defect == Some(forgetful) { ignored } else { gate }
    }
}

/// Takes back what a fork counted for one stored page of the child, as if it had not been counted.
pub(super) fn forget_a_share(child: &Space, shares: &Shares) {
    for part in child.parts() {
        let shard = part.region.lock();
        let pages = (0..part.piece.pages).map(|at| part.piece.first.plus(at));
        let stored = pages.map(|page| shard.state(page)).find_map(|state| match state {
            PageState::Stored(handle) => Some(handle),
            _ => None,
        });
        if let Some(handle) = stored {
            shares.last(handle);
            return;
        }
    }
}

/// An address space that an engine with a defect works on.
pub struct Seam {
    inner: Arc<dyn Memory>,
    machine: Shared,
    proc: usize,
    defect: Defect,
    /// Events that wait to be applied.
    late: Mutex<Vec<Event>>,
    /// What is ordered to move and hasn't been settled.
    moving: Mutex<Vec<Span>>,
}

impl Seam {
    /// Puts a defect between the engine and an address space.
    pub fn new(inner: Arc<dyn Memory>, machine: &Shared, defect: Defect) -> Arc<Self> {
        let proc = inner.as_any().downcast_ref().map_or(0, SimMemory::proc);
        let machine = Arc::clone(machine);
        Arc::new(Self { inner, machine, proc, defect, late: Mutex::default(), moving: Mutex::default() })
    }

    fn hides(&self, event: &Event) -> bool {
        let Event::Remove(removed) = event else { return false };
        match self.defect {
            Defect::StaleAfterRemove => true,
            Defect::RemovedWhileMoving => self
                .moving
                .lock()
                .iter()
                .any(|span| span.start() < removed.end() && removed.start() < span.end()),
            _ => false,
        }
    }

    /// Has events wait, but for forks: who handed the child over doesn't.
    fn delay(&self, batch: &mut Batch) {
        let mut late = self.late.lock();
        let due = std::mem::take(&mut *late);
        if !batch.faults.is_empty() {
            late.extend(batch.events.extract_if(.., |event| !matches!(event, Event::Fork(_))));
        }
        if !late.is_empty() {
            // There is something to be read again.
            let machine: &mut Machine = &mut self.machine.lock();
            machine.procs[self.proc].read_ahead.get_or_insert_with(ReadAhead::default);
        }
        batch.events.splice(..0, due);
    }

    fn installed(&self, outcome: Outcome, len: u64) -> Outcome {
        let believed = match (self.defect, outcome.stop) {
            (Defect::RefusalDropped, Some(Stop::Busy)) => outcome.done == 0,
            (Defect::PartTakenForWhole, Some(Stop::Busy)) => outcome.done > 0,
            _ => false,
        };
        if believed { Outcome { done: len, stop: None } } else { outcome }
    }
}

impl Memory for Seam {
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        self.inner.read(batch)?;
        batch.events.retain(|event| !self.hides(event));
        if self.defect == Defect::EventsAfterFaults {
            self.delay(batch);
        }
        for event in &mut batch.events {
            if let Event::Fork(child) = event {
                *child = Self::new(Arc::clone(child), &self.machine, self.defect);
            }
        }
        Ok(())
    }

    fn applied(&self) {
        self.inner.applied();
    }

    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.installed(self.inner.copy(dst, bytes), bytes.len() as u64)
    }

    fn zero(&self, span: Span) -> Outcome {
        self.installed(self.inner.zero(span), span.len())
    }

    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.installed(self.inner.copy_asleep(dst, bytes), bytes.len() as u64)
    }

    fn zero_asleep(&self, span: Span) -> Outcome {
        self.installed(self.inner.zero_asleep(span), span.len())
    }

    fn poison(&self, span: Span) -> Outcome {
        self.inner.poison(span)
    }

    fn wake(&self, span: Span) {
        let first = Span::from_pages(span.start(), 1);
        match (self.defect, first) {
            (Defect::LostWake, Ok(first)) => self.inner.wake(first),
            _ => self.inner.wake(span),
        }
    }

    fn wake_all(&self) {
        self.inner.wake_all();
    }

    fn register(&self, span: Span) -> Result<(), MemoryError> {
        self.inner.register(span)
    }

    fn unregister(&self, span: Span) -> Result<(), MemoryError> {
        self.inner.unregister(span)
    }

    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        self.inner.resident(span, present)
    }

    fn slot_area(&self) -> Option<Span> {
        self.inner.slot_area()
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }

    fn most_orders(&self) -> usize {
        self.inner.most_orders()
    }

    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError> {
        let moved = self.inner.move_out(orders, outcomes)?;
        if moved == Moved::Ordered {
            self.moving.lock().extend(orders.iter().map(|order| order.from));
        }
        Ok(moved)
    }

    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError> {
        self.moving.lock().clear();
        self.inner.settle_slot(slot)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read_slot(addr, out)?;
        if self.defect == Defect::SlotEmptiedEarly
            && let Ok(span) = Span::between(addr, addr + out.len() as u64)
        {
            self.inner.empty_slots(&[span])?;
        }
        Ok(())
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        self.inner.read_inherited(addr, out, thread)
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        self.inner.empty_slots(slots)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// A store as an engine with a defect uses it.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    defect: Defect,
    /// Answered late, or already freed.
    marked: Mutex<HashSet<Handle>>,
}

impl FaultyStore {
    /// Puts a defect between the engine and a store.
    pub fn new(inner: Arc<dyn Store>, defect: Defect) -> Arc<Self> {
        Arc::new(Self { inner, defect, marked: Mutex::default() })
    }
}

impl Store for FaultyStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        self.inner.put(pages, handles)
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let fetched = self.inner.fetch(handle, key, out, waiter);
        match (self.defect, &fetched) {
            (Defect::DoubleFree, Ok(Fetch::Pending)) => {
                self.marked.lock().insert(handle);
            }
            (Defect::EarlyFree, Ok(Fetch::Ready)) if self.marked.lock().insert(handle) => {
                self.inner.free(&[handle]);
            }
            (Defect::LossGuessed, Err(_)) => {
                out.fill(0);
                return Ok(Fetch::Ready);
            }
            _ => {}
        }
        fetched
    }

    fn free(&self, handles: &[Handle]) {
        for handle in handles {
            let marked = self.marked.lock().remove(handle);
            match self.defect {
                Defect::EarlyFree if marked => continue,
                Defect::DoubleFree if marked => self.inner.free(&[*handle]),
                _ => {}
            }
            self.inner.free(&[*handle]);
        }
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
