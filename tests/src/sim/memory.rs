//! The simulated machine behind the engine's seam.

use super::machine::{Machine, ReadAhead, SENTINEL, SLOTS, Told, page_at, span_of};
use super::page::{Entry, Frame, Pte};
use parking_lot::Mutex;
use std::sync::Arc;
use userswap_engine::memory::{Batch, Event, Fault, Memory, MemoryError, Moved, Order};
use userswap_uffd::{Outcome, Span, Stop, page_size};

/// The simulated machine, shared by its address spaces.
pub type Shared = Arc<Mutex<Machine>>;

/// One process's address space.
pub struct SimMemory {
    machine: Shared,
    proc: usize,
}

const GONE: Outcome = Outcome { done: 0, stop: Some(Stop::Gone) };
const BUSY: Outcome = Outcome { done: 0, stop: Some(Stop::Busy) };

impl SimMemory {
    /// Of process number `proc`.
    pub fn new(machine: &Shared, proc: usize) -> Arc<Self> {
        Arc::new(Self { machine: Arc::clone(machine), proc })
    }

    /// Whose it is.
    pub fn proc(&self) -> usize {
        self.proc
    }

    /// Registers the page that stays registered for life.
    pub fn watch_sentinel(&self) {
        self.machine.lock().entry(self.proc, SENTINEL).registered = true;
    }

    /// The checks every ioctl that fills pages begins with: the pages, or why not.
    fn target(&self, machine: &mut Machine, dst: u64, pages: u32) -> Result<u32, Outcome> {
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(GONE);
        }
        if machine.procs[self.proc].changing > 0 {
            return Err(BUSY);
        }
        if machine.quirk(1, 256) {
            return Err(Outcome { done: 0, stop: Some(Stop::NoMemory) });
        }
        let first = page_at(dst);
        let watched = |all: &[Entry]| {
            all.first().is_some_and(|entry| entry.is_mapped())
                && all.iter().all(|entry| entry.registered && entry.vma == all[0].vma)
        };
        match machine.range(self.proc, first, pages) {
            Some(all) if watched(all) => Ok(first),
            _ => Err(Outcome { done: 0, stop: Some(Stop::Unmapped) }),
        }
    }

    fn fill(&self, dst: u64, bytes: &[u8], wake: bool) -> Outcome {
        let machine = &mut *self.machine.lock();
        let pages = u32::try_from(bytes.len() / page_size()).unwrap_or(0);
        let first = match self.target(machine, dst, pages) {
            Ok(first) => first,
            Err(outcome) => {
                machine.note(|| {
                    format!("COPY to {}+{pages} of {}: {:?}", page_at(dst), self.proc, outcome.stop)
                });
                return outcome;
            }
        };
        let cut = if pages > 1 && machine.quirk(1, 32) { machine.rng.below(pages) } else { pages };
        let mut done = 0;
        let mut stop = (cut < pages).then_some(Stop::Busy);
        for at in 0..cut {
            let Some(token) = token_of(&bytes[at as usize * page_size()..][..page_size()]) else {
                machine.fail(|| format!("COPY of a torn page to {}", first + at));
                break;
            };
            let entry = machine.entry(self.proc, first + at);
            if matches!(entry.pte, Pte::Present(_)) {
                stop = Some(if at == 0 { Stop::Present } else { Stop::Busy });
                break;
            }
            entry.pte = Pte::Present(Frame::own(token));
            entry.away = false;
            done += 1;
        }
        if wake {
            machine.wake(self.proc, first, done);
        }
        machine.note(|| format!("COPY to {first}+{pages} of {}: {done} done, {stop:?}", self.proc));
        Outcome { done: u64::from(done) * page_size() as u64, stop }
    }

    fn mark(&self, span: Span, pte: Pte, wake: bool, what: &str) -> Outcome {
        let machine = &mut *self.machine.lock();
        let (_, pages) = Self::pages(span);
        let outcome = match self.target(machine, span.start(), pages) {
            Err(outcome) => outcome,
            Ok(first) => {
                let mut done = 0;
                while done < pages && machine.entry(self.proc, first + done).pte == Pte::None {
                    let entry = machine.entry(self.proc, first + done);
                    entry.pte = pte;
                    entry.away &= pte == Pte::Poison;
                    done += 1;
                }
                if wake {
                    machine.wake(self.proc, first, done);
                }
                let stop = match done {
                    _ if done == pages => None,
                    0 => Some(Stop::Present),
                    _ => Some(Stop::Busy),
                };
                Outcome { done: u64::from(done) * page_size() as u64, stop }
            }
        };
        machine.note(|| format!("{what} at {}+{pages} of {}: {outcome:?}", page_at(span.start()), self.proc));
        outcome
    }

    fn pages(span: Span) -> (u32, u32) {
        (page_at(span.start()), u32::try_from(span.pages()).unwrap_or(0))
    }

    fn refused(doing: &'static str, span: Span) -> MemoryError {
        MemoryError::Refused { doing, span, reason: "nothing is mapped there".into() }
    }

    fn take_over(&self, read: ReadAhead, machine: &mut Machine, batch: &mut Batch) {
        for (page, write, thread) in read.faults {
            let addr = super::machine::addr_of(page);
            batch.faults.push(Fault { addr, write, thread: u32::try_from(thread).ok() });
        }
        machine.procs[self.proc].ring.clone_from(&read.events);
        read.events.into_iter().for_each(|told| self.tell(told, machine, batch));
        batch.more = read.more;
    }

    /// An event as the engine hears it.
    pub(super) fn tell(&self, told: Told, machine: &mut Machine, batch: &mut Batch) {
        let event = match told {
            Told::Fork(child) => {
                machine.handed.push(child);
                Some(Event::Fork(Self::new(&self.machine, child)))
            }
            Told::Remap(from, to, pages) => span_of(from, pages).map(|span| Event::Remap {
                from: span.start(),
                to: super::machine::addr_of(to),
                len: span.len(),
            }),
            Told::Remove(first, pages) => span_of(first, pages).map(Event::Remove),
            Told::Unmap(first, pages) => span_of(first, pages).map(Event::Unmap),
        };
        batch.events.extend(event);
    }
}

impl Memory for SimMemory {
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        let read = match machine.procs[self.proc].read_ahead.take() {
            Some(read) => read,
            None => {
                let room = machine.rng.between(1, 8) as usize;
                machine.read(self.proc, room)
            }
        };
        self.take_over(read, machine, batch);
        Ok(())
    }

    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.fill(dst, bytes, true)
    }

    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.fill(dst, bytes, false)
    }

    fn zero(&self, span: Span) -> Outcome {
        self.mark(span, Pte::Present(Frame::own(0)), true, "ZEROPAGE")
    }

    fn zero_asleep(&self, span: Span) -> Outcome {
        self.mark(span, Pte::Present(Frame::own(0)), false, "ZEROPAGE")
    }

    fn poison(&self, span: Span) -> Outcome {
        self.mark(span, Pte::Poison, true, "POISON")
    }

    fn wake(&self, span: Span) {
        let machine = &mut *self.machine.lock();
        machine.event();
        let (first, pages) = Self::pages(span);
        machine.note(|| format!("WAKE {first}+{pages} of {}", self.proc));
        machine.wake(self.proc, first, pages);
    }

    fn wake_all(&self) {
        let machine = &mut *self.machine.lock();
        machine.event();
        machine.note(|| format!("WAKE everybody of {}", self.proc));
        machine.wake(self.proc, 0, u32::MAX);
    }

    fn register(&self, span: Span) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        let (first, pages) = Self::pages(span);
        machine.note(|| format!("REGISTER {first}+{pages} of {}", self.proc));
        let mut any = false;
        for page in first..first + pages {
            let entry = machine.entry(self.proc, page);
            if entry.is_mapped() {
                entry.registered = true;
                any = true;
            }
        }
        if any { Ok(()) } else { Err(Self::refused("registering", span)) }
    }

    fn unregister(&self, span: Span) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        let (first, pages) = Self::pages(span);
        machine.note(|| format!("UNREGISTER {first}+{pages} of {}", self.proc));
        let mut any = false;
        for page in first..first + pages {
            let entry = machine.entry(self.proc, page);
            any |= entry.is_mapped();
            entry.registered = false;
        }
        machine.wake(self.proc, first, pages);
        if any { Ok(()) } else { Err(Self::refused("unregistering", span)) }
    }

    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        let (first, pages) = Self::pages(span);
        present.clear();
        let all = machine.range(self.proc, first, pages).unwrap_or_default();
        present.extend(all.iter().map(|entry| matches!(entry.pte, Pte::Present(_))));
        Ok(())
    }

    fn slot_area(&self) -> Option<Span> {
        // A child inherits its parent's, which is its own only once it says so.
        if self.proc == 0 { span_of(SLOTS, self.machine.lock().setup.slot_area) } else { None }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn is_gone(&self) -> bool {
        !self.machine.lock().procs[self.proc].alive
    }

    fn most_orders(&self) -> usize {
        if self.machine.lock().setup.ordered { 1 } else { 3 }
    }

    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError> {
        let machine = &mut *self.machine.lock();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        if machine.setup.ordered {
            machine.procs[self.proc].orders.extend(orders);
            return Ok(Moved::Ordered);
        }
        let (to, pages) = Self::pages(Order::destination(orders)?);
        for page in to..to + pages {
            machine.entry(self.proc, page).registered = true;
        }
        for order in orders {
            let (from, pages) = Self::pages(order.from);
            let to = page_at(order.to);
            let outcome = move_pages(machine, self.proc, from, to, pages);
            machine.note(|| format!("MOVE {from}+{pages} of {} to slot page {to}: {outcome:?}", self.proc));
            outcomes.push(outcome);
        }
        Ok(Moved::Now)
    }

    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError> {
        self.unregister(slot)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        for (page, bytes) in (page_at(addr)..).zip(out.chunks_exact_mut(page_size())) {
            let entry = *machine.entry(self.proc, page);
            if entry.pte == Pte::None && entry.registered {
                machine.fail(|| format!("reading the hole at slot page {page} would wait for a fault"));
            }
            write_token(bytes, if let Pte::Present(frame) = entry.pte { frame.token } else { 0 });
        }
        Ok(())
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], _thread: Option<u32>) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        for (page, bytes) in (page_at(addr)..).zip(out.chunks_exact_mut(page_size())) {
            let pte = machine.entry(self.proc, page).pte;
            write_token(bytes, if let Pte::Present(frame) = pte { frame.token } else { 0 });
        }
        Ok(())
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        let machine = &mut *self.machine.lock();
        machine.event();
        if !machine.procs[self.proc].alive {
            return Err(MemoryError::Gone);
        }
        for slot in slots {
            let (first, pages) = Self::pages(*slot);
            for page in first..first + pages {
                if machine.entry(self.proc, page).registered {
                    machine.fail(|| format!("emptying slot page {page} raises an event"));
                }
                machine.clear(self.proc, page);
            }
        }
        Ok(())
    }
}

/// UFFDIO_MOVE, gone on with where it stopped half-way, holes allowed.
fn move_pages(machine: &mut Machine, proc: usize, from: u32, to: u32, pages: u32) -> Outcome {
    machine.event();
    let stopped = |done: u32, stop| Outcome { done: u64::from(done) * page_size() as u64, stop: Some(stop) };
    if machine.procs[proc].changing > 0 || machine.quirk(1, 64) {
        return BUSY;
    }
    let source = machine.range(proc, from, pages).unwrap_or_default();
    if source.iter().any(|entry| !entry.is_mapped()) {
        return stopped(0, Stop::Hole);
    }
    if source.iter().any(|entry| entry.vma != source[0].vma) {
        return stopped(0, Stop::Invalid);
    }
    for at in 0..pages {
        let source = *machine.entry(proc, from + at);
        let frame = match source.pte {
            Pte::None => None,
            Pte::Poison => return stopped(at, Stop::Fault),
            Pte::Present(frame) => Some(frame),
        };
        if let Some(frame) = frame {
            if frame.pinned {
                return stopped(at, Stop::Pinned);
            }
            if frame.group != 0 {
                if machine.quirk(1, 2) {
                    return stopped(at, Stop::Pinned);
                }
                machine.unshare(proc, from + at);
            }
            if machine.entry(proc, to + at).pte != Pte::None {
                machine.fail(|| format!("a slot page {} is moved into twice", to + at));
                return stopped(at, Stop::Present);
            }
            let moved = Frame { group: 0, ..frame };
            machine.entry(proc, to + at).pte = Pte::Present(moved);
            machine.entry(proc, from + at).pte = Pte::None;
        }
        machine.entry(proc, from + at).away = true;
    }
    Outcome { done: u64::from(pages) * page_size() as u64, stop: None }
}

/// Writes a page that is one token.
pub fn write_token(page: &mut [u8], token: u64) {
    page.fill(0);
    let end = page.len() - 8;
    page[..8].copy_from_slice(&token.to_ne_bytes());
    page[end..].copy_from_slice(&token.to_ne_bytes());
}

/// The token a page is; `None` if its ends don't agree.
pub fn token_of(page: &[u8]) -> Option<u64> {
    let (head, tail) = (page.first_chunk::<8>()?, page.last_chunk::<8>()?);
    (head == tail).then(|| u64::from_ne_bytes(*head))
}
