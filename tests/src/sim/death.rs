//! Who serves dies, between any two things it does to the machine or the store, and a successor takes up what it has left.
//!
//! A [`Mortal`] memory and a [`MortalStore`] stand between the engine and the simulated machine. Each call is two points at which its life may end: before it
//! took effect, and after. What stands in the ledgers at that point is copied, and the engine unwinds; whatever it says on the way is heard by nobody.

use super::defect::Defect;
use super::machine::{Machine, SLOTS, Told, span_of};
use super::memory::{Shared, SimMemory};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use userswap_engine::ledger::{Ledger, Roster};
use userswap_engine::memory::{Batch, Event, Memory, MemoryError, Moved, Order};
use userswap_store::{Capabilities, Fetch, Handle, Page, PageKey, Stats, Store, StoreError, Waiter};
use userswap_uffd::{Outcome, Span, Stop};

/// What a death unwinds with.
pub(super) struct Death;

/// How long one life lasts.
pub(super) struct Fate {
    machine: Shared,
    pub(super) roster: Arc<Roster>,
    defect: Option<Defect>,
    life: Mutex<Life>,
}

#[derive(Default)]
struct Life {
    /// Points until it ends; it doesn't if there is no number.
    left: Option<u32>,
    is_over: bool,
    /// Whose ledger each descriptor is.
    ledgers: HashMap<RawFd, (usize, Weak<Ledger>)>,
    estate: Vec<Left>,
}

/// The books of one address space as a death left them.
pub(super) struct Left {
    pub(super) proc: usize,
    pub(super) ledger: OwnedFd,
}

impl Fate {
    /// A life that isn't about to end.
    pub(super) fn new(machine: &Shared, roster: &Arc<Roster>, defect: Option<Defect>) -> Arc<Self> {
        let (machine, roster) = (Arc::clone(machine), Arc::clone(roster));
        Arc::new(Self { machine, roster, defect, life: Mutex::default() })
    }

    /// It ends after so many points, or not.
    pub(super) fn decide(&self, left: Option<u32>) {
        self.life.lock().left = left;
    }

    /// What it has left, once.
    pub(super) fn estate(&self) -> Vec<Left> {
        std::mem::take(&mut self.life.lock().estate)
    }

    /// A point at which it may end. `false` if it has: nothing that is done has any effect.
    fn goes_on(&self) -> bool {
        let mut life = self.life.lock();
        if life.is_over {
            return false;
        }
        let Some(left) = &mut life.left else { return true };
        if *left > 0 {
            *left -= 1;
            return true;
        }
        life.is_over = true;
        match life.leave(&self.roster) {
            Ok(estate) => life.estate = estate,
            Err(error) => self.machine.lock().fail(|| format!("what is left can't be copied: {error}")),
        }
        drop(life);
        self.machine.lock().note(|| "who serves dies".into());
        std::panic::resume_unwind(Box::new(Death));
    }

    /// One call: whether it has any effect, and what it says.
    fn call<T>(&self, dead: T, call: impl FnOnce() -> T) -> T {
        if !self.goes_on() {
            return dead;
        }
        let said = call();
        self.goes_on();
        said
    }
}

impl Life {
    fn leave(&self, roster: &Roster) -> io::Result<Vec<Left>> {
        let listed = roster.ledgers().into_iter().map(|number| {
            let found = self.ledgers.get(&number).and_then(|(proc, ledger)| Some((*proc, ledger.upgrade()?)));
            let (proc, ledger) =
                found.ok_or_else(|| io::Error::other("a ledger that is listed is closed"))?;
            Ok(Left { proc, ledger: copy(&ledger)? })
        });
        listed.collect()
    }
}

/// A copy of sparse memory.
fn copy(of: &Ledger) -> io::Result<OwnedFd> {
    use rustix::fs::SeekFrom;
    let from = std::fs::File::from(of.as_fd().try_clone_to_owned()?);
    let to = std::fs::File::from(rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC)?);
    to.set_len(from.metadata()?.len())?;
    let (mut at, mut bytes) = (0, Vec::new());
    // Ends where there is nothing more.
    while let Ok(data) = rustix::fs::seek(&from, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&from, SeekFrom::Hole(data))?;
        bytes.resize(usize::try_from(hole - data).map_err(io::Error::other)?, 0);
        from.read_exact_at(&mut bytes, data)?;
        to.write_all_at(&bytes, data)?;
        at = hole;
    }
    Ok(to.into())
}

/// An address space in one life.
pub(super) struct Mortal {
    inner: Arc<SimMemory>,
    machine: Shared,
    fate: Arc<Fate>,
    ledger: Arc<Ledger>,
}

const GONE: Outcome = Outcome { done: 0, stop: Some(Stop::Gone) };

impl Mortal {
    /// With these books.
    pub(super) fn new(machine: &Shared, proc: usize, ledger: Arc<Ledger>, fate: &Arc<Fate>) -> Arc<Self> {
        let whose = (proc, Arc::downgrade(&ledger));
        fate.life.lock().ledgers.insert(ledger.as_fd().as_raw_fd(), whose);
        Arc::new(Self {
            inner: SimMemory::new(machine, proc),
            machine: Arc::clone(machine),
            fate: Arc::clone(fate),
            ledger,
        })
    }

    /// With new books.
    pub(super) fn kept(machine: &Shared, proc: usize, fate: &Arc<Fate>) -> io::Result<Arc<Self>> {
        Ok(Self::new(machine, proc, Ledger::create(&fate.roster)?, fate))
    }

    /// Children as this life sees them.
    fn children(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        for event in &mut batch.events {
            if let Event::Fork(child) = event {
                let proc = child.as_any().downcast_ref().map_or(0, SimMemory::proc);
                *child = Self::kept(&self.machine, proc, &self.fate).map_err(|_| MemoryError::Gone)?;
            }
        }
        Ok(())
    }

    fn call<T>(&self, call: impl FnOnce(&SimMemory) -> Result<T, MemoryError>) -> Result<T, MemoryError> {
        self.fate.call(Err(MemoryError::Gone), || call(&self.inner))
    }

    fn fill(&self, call: impl FnOnce(&SimMemory) -> Outcome) -> Outcome {
        self.fate.call(GONE, || call(&self.inner))
    }
}

impl Memory for Mortal {
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        self.call(|inner| inner.read(batch))?;
        self.children(batch)
    }

    fn applied(&self) {
        self.fate.call((), || {
            self.machine.lock().procs[self.inner.proc()].ring.clear();
            self.ledger.ring_cleared();
        });
    }

    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.fill(|inner| inner.copy(dst, bytes))
    }

    fn zero(&self, span: Span) -> Outcome {
        self.fill(|inner| inner.zero(span))
    }

    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.fill(|inner| inner.copy_asleep(dst, bytes))
    }

    fn zero_asleep(&self, span: Span) -> Outcome {
        self.fill(|inner| inner.zero_asleep(span))
    }

    fn poison(&self, span: Span) -> Outcome {
        self.fill(|inner| inner.poison(span))
    }

    fn wake(&self, span: Span) {
        self.fate.call((), || self.inner.wake(span));
    }

    fn wake_all(&self) {
        self.fate.call((), || self.inner.wake_all());
    }

    fn register(&self, span: Span) -> Result<(), MemoryError> {
        self.call(|inner| inner.register(span))
    }

    fn unregister(&self, span: Span) -> Result<(), MemoryError> {
        self.call(|inner| inner.unregister(span))
    }

    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        self.call(|inner| inner.resident(span, present))
    }

    fn slot_area(&self) -> Option<Span> {
        let machine = self.machine.lock();
        // What a child's agent has said its predecessor has written down.
        let pages = machine.setup.slot_area;
        machine.procs[self.inner.proc()].called.then(|| span_of(SLOTS, pages)).flatten()
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }

    fn most_orders(&self) -> usize {
        self.inner.most_orders()
    }

    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError> {
        // Who carries out several does so one after the other, whether or not anybody is there to hear of it.
        self.call(|inner| {
            let mut moved = Moved::Now;
            for (number, order) in orders.iter().enumerate() {
                moved = match number {
                    0 => inner.move_out(std::slice::from_ref(order), outcomes)?,
                    _ => self.call(|inner| inner.move_out(std::slice::from_ref(order), outcomes))?,
                };
            }
            Ok(moved)
        })
    }

    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError> {
        self.call(|inner| inner.settle_slot(slot))
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.call(|inner| inner.read_slot(addr, out))
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        self.call(|inner| inner.read_inherited(addr, out, thread))
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        self.call(|inner| inner.empty_slots(slots))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn ledger(&self) -> Option<&Arc<Ledger>> {
        Some(&self.ledger)
    }

    fn unapplied(&self, known: &dyn Fn(i32) -> bool, batch: &mut Batch) -> Result<u32, MemoryError> {
        let mut left_out = 0;
        let machine: &mut Machine = &mut self.machine.lock();
        let ring = machine.procs[self.inner.proc()].ring.clone();
        let applied = match self.fate.defect {
            Some(Defect::EventsForgotten) => ring.len(),
            _ => usize::try_from(self.ledger.events_applied()).unwrap_or(usize::MAX),
        };
        for told in ring.into_iter().skip(applied) {
            match told {
                Told::Fork(child) if i32::try_from(child).is_ok_and(known) => left_out += 1,
                told => self.inner.tell(told, machine, batch),
            }
        }
        self.children(batch)?;
        Ok(left_out)
    }

    fn moved_into(&self, slot: Span) -> Result<Option<Vec<bool>>, MemoryError> {
        if self.machine.lock().setup.ordered {
            return Ok(None);
        }
        let mut present = Vec::new();
        self.unregister(slot)?;
        self.resident(slot, &mut present)?;
        if self.fate.defect == Some(Defect::MoveForgotten) {
            present.fill(false);
        }
        Ok(Some(present))
    }

    fn is_still(&self) -> bool {
        self.machine.lock().procs[self.inner.proc()].changing == 0
    }
}

/// A store in one life.
pub(super) struct MortalStore {
    inner: Arc<dyn Store>,
    fate: Arc<Fate>,
}

impl MortalStore {
    pub(super) fn new(inner: Arc<dyn Store>, fate: &Arc<Fate>) -> Arc<Self> {
        Arc::new(Self { inner, fate: Arc::clone(fate) })
    }
}

impl Store for MortalStore {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        self.fate.call(Err(StoreError::Closed), || self.inner.put(pages, handles))
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.fate.call(Err(StoreError::Closed), || self.inner.fetch(handle, key, out, waiter))
    }

    fn free(&self, handles: &[Handle]) {
        for handle in handles {
            self.fate.call((), || self.inner.free(&[*handle]));
        }
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
