//! The fault path. **Start reading here.**
//!
//! ```text
//!             gate shared              nothing held            gate shared
//!  fault ──▶  begin ── Load ─────────▶ load ─────────────────▶ install ─▶ record ─▶ … ─▶ end ──▶ thread runs
//!               │ Zero  ─▶ zero page, record, done               ▲ confirms that the page is still the one
//!               │ InFlight: whoever is on it wakes the thread    │ it loaded, where it is mapped now
//!               └ Wait: parked until something changes           └ Busy: parked, decided anew
//! ```
//!
//! [`FaultWork`] is that path cut into steps. Each step is one decision, one load, or one system call with the
//! record of its outcome; [`FaultWork::run`] goes through them on a thread, the simulator goes through those of many
//! threads in any order it likes. All buffers are made once: serving a fault from a store in memory allocates nothing.

use crate::core::{Decision, Flight, Install, Lost, PageIndex, Segment, Transition, Zeroed};
use crate::directory::{Directory, Region, bytes_of};
use crate::memory::Fault;
use crate::slots::{Phase, Slot};
use crate::space::{CalledOff, Errand, Space};
use crate::stages::{Stage, Stopwatch};
use std::sync::Arc;
use std::time::Instant;
use userswap_store::{Fetch, Handle, OwnerId, PageKey, StoreError, Waiter, Wanted};
use userswap_uffd::{Outcome, Span, Stop, page_size};

/// One thread's means of serving faults, and the fault it is serving.
pub struct FaultWork {
    fault: Fault,
    region: Option<Arc<Region>>,
    page: PageIndex,
    flight: Flight,
    /// The bytes of the flight's pages, in order.
    bytes: Vec<u8>,
    wanted: Vec<Wanted>,
    results: Vec<Result<Fetch, StoreError>>,
    lost: Lost,
    /// Where in the flight to look for the next segment.
    at: u32,
    /// What was asked of the kernel, until its answer is recorded.
    asked: Option<(Segment, Outcome)>,
    /// Pages to install at once, at most: fewer where the program's mappings are.
    reach: u32,
    /// The kernel refused: the demanded page, if not yet in place, has to wait.
    refused: bool,
    /// Where the demanded page went in.
    installed_at: Option<u64>,
    /// What went in and has waiters to be woken, from and to.
    asleep: Option<(u64, u64)>,
    waiter: Waiter,
    /// How often a fetch that fails late is tried again.
    tries: u32,
    /// What a stream will want next is brought in before it is asked for.
    goes_ahead: bool,
    why: Why,
    /// What was decided for this fault no longer held.
    again: bool,
    /// When the fault's message was read, if the time it takes is to be told.
    read_at: Option<Instant>,
}

/// Why a page is brought in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// A thread waits for it.
    Fault,
    /// A stream will want it.
    Ahead,
    /// It and those behind it, so many in all, are to come back.
    All(u32),
}

/// How often a store that says "try again" is tried again before the page is given up.
const RETRIES: u32 = 3;

/// What comes next for a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// [`FaultWork::zero`], under the same hold of the gate.
    Zero,
    /// [`FaultWork::load`], the gate let go.
    Load,
    /// [`FaultWork::install`], the gate held, until it answers [`Next::End`].
    Install,
    /// [`FaultWork::record`], under the same hold of the gate.
    Record,
    /// [`FaultWork::end`].
    End,
    /// Nothing: served, or in another's hands, or parked.
    Done,
    /// [`FaultWork::begin`]: what was decided no longer holds.
    Again,
}

impl FaultWork {
    /// Means to serve faults with at most `around` pages brought in together.
    pub fn new(around: u32) -> Self {
        let around = around.max(1) as usize;
        let key = PageKey { owner: OwnerId(0), page: 0, generation: 0 };
        Self {
            fault: Fault { addr: 0, write: false, thread: None },
            region: None,
            page: PageIndex(0),
            flight: Flight::with_capacity(around),
            bytes: vec![0; around * page_size()],
            wanted: vec![Wanted { handle: Handle::MIN, key }; around],
            results: (0..around).map(|_| Ok(Fetch::Ready)).collect(),
            lost: Lost::with_capacity(around),
            at: 0,
            asked: None,
            reach: u32::MAX,
            refused: false,
            installed_at: None,
            asleep: None,
            waiter: Waiter::none(),
            tries: RETRIES,
            goes_ahead: false,
            why: Why::Fault,
            again: false,
            read_at: None,
        }
    }

    /// Says when the message of the fault that comes next was read.
    pub fn read_at(&mut self, now: Instant) {
        self.read_at = Some(now);
    }

    /// Says whether what a stream will want next is brought in meanwhile, by workers.
    pub(crate) fn go_ahead(&mut self, ahead: bool) {
        self.goes_ahead = ahead;
    }

    /// Brings in what is at an address, that nobody waits for, and what goes with it.
    pub(crate) fn bring(&mut self, space: &Arc<Space>, addr: u64, why: Why) {
        self.why = why;
        self.serve(space, Fault { addr, write: false, thread: None });
        self.why = Why::Fault;
    }

    /// Serves one fault from beginning to end.
    pub fn run(&mut self, space: &Arc<Space>, fault: Fault) {
        self.serve(space, fault);
        // The page is in a worker's hands. Meanwhile there is time for what its thread will want after that.
        if let Some((next, called_off)) = self.send_ahead(space, self.around()) {
            self.goes_ahead = false;
            space.bring_ahead(self, next, called_off);
        }
    }

    fn serve(&mut self, space: &Arc<Space>, fault: Fault) {
        let mut next = Next::Again;
        let mut watch = Stopwatch::start(space.stages(), self.read_at);
        while next != Next::Done {
            let directory = space.shared();
            next = self.begin(space, &directory, fault);
            watch.lap(Stage::Lookup);
            let zero = next == Next::Zero;
            if zero {
                next = self.zero(space);
                watch.lap(Stage::Install);
            }
            drop(directory);
            self.settle(space);
            if zero {
                watch.lap(Stage::Wake);
            }
            if next == Next::Load {
                self.send_ahead(space, 0);
                next = self.load(space);
                watch.lap(Stage::Load);
            }
            if next == Next::Install {
                next = self.put_in_place(space, &mut watch);
            }
        }
    }

    /// Has a worker bring in what is `pages` behind the flight of a thread that reads in order. Where that is, without them.
    fn send_ahead(&mut self, space: &Space, pages: u32) -> Option<(u64, CalledOff)> {
        let page = self.flight.take_ahead().filter(|_| self.goes_ahead && !space.is_slowed())?;
        let addr = (self.fault.addr & !(page_size() as u64 - 1)) + bytes_of(page.since(self.page));
        let called_off = *space.called_off.try_read()?;
        space.call_worker(Errand::Ahead(addr + bytes_of(pages), called_off));
        Some((addr, called_off))
    }

    /// From loaded bytes to the end.
    pub(crate) fn put_in_place(&mut self, space: &Space, watch: &mut Stopwatch<'_>) -> Next {
        let directory = space.shared();
        let mut next = Next::Install;
        while next == Next::Install {
            next = self.install(space);
            if next == Next::Record {
                next = self.record(space);
            }
        }
        next = self.end(space);
        drop(directory);
        watch.lap(Stage::Install);
        self.settle(space);
        watch.lap(Stage::Wake);
        next
    }

    /// The page a thread waits for.
    pub(crate) fn fault(&self) -> Fault {
        self.fault
    }

    /// Whether bytes are still to come.
    pub(crate) fn is_waiting(&self) -> bool {
        (0..self.flight.len()).any(|at| self.flight.is_waiting(at))
    }

    /// Bytes that came later, or the news that they won't.
    pub(crate) fn arrived(&mut self, space: &Space, at: u32, page: Result<&[u8], StoreError>) {
        if at >= self.flight.len() || !self.flight.is_waiting(at) {
            return;
        }
        let from = at as usize * page_size();
        let ok = match page {
            Ok(bytes) if bytes.len() == page_size() => {
                self.bytes[from..from + page_size()].copy_from_slice(bytes);
                true
            }
            Ok(_) => {
                let error = StoreError::Corrupt { key: self.wanted[at as usize].key, what: "length" };
                space.note_store_error(self.wanted[at as usize].key, &error);
                false
            }
            Err(error) => {
                space.note_store_error(self.wanted[at as usize].key, &error);
                false
            }
        };
        self.flight.loaded(at, ok);
    }

    /// Whether a fetch that failed late is worth another: the error may pass, and a thread waits for the page.
    pub(crate) fn may_try_again(&self, at: u32, error: &StoreError) -> bool {
        at == self.flight.demand() && at < self.flight.len() && self.tries > 0 && error.is_retryable()
    }

    /// Asks for a page again that failed late with `error`. Completions go to `waiter`.
    pub(crate) fn try_again(&mut self, space: &Space, at: u32, waiter: &Waiter, error: &StoreError) {
        self.tries -= 1;
        let wanted = self.wanted[at as usize];
        let page = &mut self.bytes[at as usize * page_size()..][..page_size()];
        match fetch_again(space, wanted, page, waiter) {
            Some(Fetch::Ready) => self.flight.loaded(at, true),
            Some(Fetch::Pending) => {}
            None => {
                space.note_store_error(wanted.key, error);
                self.flight.loaded(at, false);
            }
        }
    }

    /// Where completions go, and the pages brought in together at most.
    pub(crate) fn set_waiter(&mut self, waiter: Waiter) {
        self.waiter = waiter;
    }

    pub(crate) fn around(&self) -> u32 {
        u32::try_from(self.wanted.len()).unwrap_or(u32::MAX)
    }

    /// Looks the fault up and decides. The gate is held.
    pub fn begin(&mut self, space: &Space, directory: &Directory, fault: Fault) -> Next {
        self.fault = fault;
        self.at = 0;
        self.asked = None;
        self.reach = u32::MAX;
        self.refused = false;
        self.installed_at = None;
        self.tries = RETRIES;
        if directory.is_closed() {
            // A message that outlived its address space. What is mapped there now may be another's: one userfaultfd can fill
            // what another one of the same process has registered.
            self.region = None;
            return Next::Done;
        }
        let Some((region, page)) = directory.find(fault.addr) else {
            space.counts().hit(Transition::FaultOutside);
            self.region = None;
            return Next::Zero;
        };
        let most = u32::try_from(self.wanted.len()).unwrap_or(u32::MAX);
        let again = std::mem::take(&mut self.again);
        let decision = {
            let mut shard = region.lock();
            match self.why {
                // What comes along was decided with the first: a stream that asks for a page twice would seem to end.
                Why::Fault if again => shard.decide_all(page, 1, &mut self.flight),
                Why::Fault => {
                    let away = shard.state(page).is_away();
                    let lot = if away { space.worth(shard.id(), page, most) } else { 1 };
                    let decision = shard.decide(page, most, lot, &mut self.flight);
                    if decision == Decision::Load && !space.is_slowed() {
                        space.take_along(&mut shard, most, &mut self.flight);
                    }
                    decision
                }
                Why::Ahead => shard.decide_ahead(page, most, &mut self.flight),
                Why::All(pages) => shard.decide_all(page, pages.min(most), &mut self.flight),
            }
        };
        self.page = page;
        self.region = Some(Arc::clone(region));
        match decision {
            Decision::InFlight => Next::Done,
            Decision::Wait => {
                space.park(fault);
                Next::Done
            }
            Decision::Zero => Next::Zero,
            Decision::Load => Next::Load,
            Decision::Poison => {
                self.poison(space, region, fault.addr & !(page_size() as u64 - 1));
                Next::Done
            }
        }
    }

    /// Installs a zero page and records it. Same hold of the gate as [`begin`](Self::begin): between decision and record
    /// nobody may move the page out, or a second zero page would take its place.
    pub fn zero(&mut self, space: &Space) -> Next {
        let Some(span) = page_span(self.fault.addr) else { return Next::Done };
        let outcome = space.memory().zero_asleep(span);
        let zeroed = match outcome.stop {
            None => Zeroed::Installed,
            Some(Stop::Present) => Zeroed::Present,
            Some(Stop::Unmapped) => Zeroed::Unmapped,
            Some(_) => Zeroed::Refused,
        };
        if matches!(zeroed, Zeroed::Installed | Zeroed::Present) {
            space.saw_still();
        }
        if let Some(region) = &self.region {
            region.lock().zeroed(self.page, zeroed);
        }
        match outcome.stop {
            None => {
                self.asleep = Some((span.start(), span.end()));
                space.note_arrival(span.start(), span.end());
            }
            Some(Stop::Gone) => {}
            Some(Stop::Busy | Stop::NoMemory) => self.busy(space),
            // A page is there, or no mapping of ours any more: the thread finds out by itself.
            Some(_) => self.wake(space),
        }
        Next::Done
    }

    /// Gets the bytes. Nothing is held.
    pub fn load(&mut self, space: &Arc<Space>) -> Next {
        if self.flight.slot().is_none() && space.may_wait() {
            return crate::pending::load(self, space);
        }
        self.load_now(space)
    }

    /// Loads what comes at once, and leaves waiting what doesn't.
    pub(crate) fn load_now(&mut self, space: &Space) -> Next {
        let count = self.flight.len();
        let bytes = &mut self.bytes[..count as usize * page_size()];
        if let Some(at) = self.flight.slot() {
            let slot: Option<Arc<Slot>> =
                space.names.lock().get(at.slot).map(|standing| Arc::clone(&standing.slot));
            if slot.as_ref().is_some_and(|slot| slot.phase() == Phase::Filling) {
                self.refused = true;
                return Next::Install;
            }
            let stands = slot
                .as_ref()
                .is_some_and(|slot| slot.phase() == Phase::Ready && slot.read(at.offset, bytes).is_ok());
            for (page, bytes) in (0..count).zip(bytes.chunks_exact_mut(page_size())) {
                // The process it stood in is gone: a child of that has a copy. One's own slot has no other, and a hole there isn't zeros.
                let ok = stands
                    || slot.as_ref().filter(|slot| !slot.is_of(space.slots())).is_some_and(|slot| {
                        let child = space.memory().as_ref();
                        slot.read_in_child(at.offset + page, bytes, child, self.fault.thread).is_ok()
                    });
                self.flight.loaded(page, ok);
            }
            return Next::Install;
        }
        let Some(region) = &self.region else { return Next::Done };
        let id = region.lock().id();
        let count = count as usize;
        for (at, wanted) in (0..).zip(&mut self.wanted[..count]) {
            if let Some((handle, generation)) = self.flight.source(at) {
                *wanted = Wanted { handle, key: space.key(id, self.flight.page(at), generation) };
            }
        }
        let results = &mut self.results[..count];
        let run = space.store().fetch_run(&self.wanted[..count], bytes, results, &self.waiter);
        for (at, result) in (0..).zip(results) {
            match (&run, result) {
                (Ok(()), Ok(Fetch::Ready)) => self.flight.loaded(at, true),
                (Ok(()), Ok(Fetch::Pending)) => {}
                (Ok(()), Err(error)) => {
                    let wanted = self.wanted[at as usize];
                    let page = &mut bytes[at as usize * page_size()..][..page_size()];
                    let again = at == self.flight.demand() && error.is_retryable();
                    let waiter = self.waiter.for_place(at.into());
                    match again.then(|| fetch_again(space, wanted, page, &waiter)).flatten() {
                        Some(Fetch::Ready) => self.flight.loaded(at, true),
                        Some(Fetch::Pending) => {}
                        None => {
                            space.note_store_error(wanted.key, error);
                            self.flight.loaded(at, false);
                        }
                    }
                }
                (Err(error), _) => {
                    space.note_store_error(self.wanted[at as usize].key, error);
                    self.flight.loaded(at, false);
                }
            }
        }
        Next::Install
    }

    /// Asks the kernel to put the next stretch of pages in place. The gate is held; what was decided before it was is
    /// confirmed by the look at the region.
    pub fn install(&mut self, space: &Space) -> Next {
        let Some(region) = &self.region else { return Next::End };
        if self.refused {
            return Next::End;
        }
        let Some(mut segment) = region.lock().segment(&self.flight, self.at) else { return Next::End };
        segment.pages = segment.pages.min(self.reach);
        let from = segment.at as usize * page_size();
        let bytes = &self.bytes[from..from + segment.pages as usize * page_size()];
        let outcome = space.memory().copy_asleep(segment.addr, bytes);
        self.asked = Some((segment, outcome));
        Next::Record
    }

    /// Records the kernel's answer. Same hold of the gate as the [`install`](Self::install) before it.
    pub fn record(&mut self, space: &Space) -> Next {
        let (Some((segment, outcome)), Some(region)) = (self.asked.take(), &self.region) else {
            return Next::End;
        };
        let done = u32::try_from(outcome.done / page_size() as u64).unwrap_or(segment.pages);
        let mut shard = region.lock();
        shard.landed(&mut self.flight, segment, done, &mut self.lost);
        self.at = segment.at + done;
        if done > 0 {
            space.saw_still();
            let (from, to) = (segment.addr, segment.addr + bytes_of(done));
            self.asleep = joined(self.asleep, from, to);
            space.note_arrival(from, to);
        }
        let holds_demand = |upto: u32| (segment.at..upto).contains(&self.flight.demand());
        if holds_demand(self.at) {
            let within = self.flight.demand() - segment.at;
            self.installed_at = Some(segment.addr + bytes_of(within));
        }
        match outcome.stop {
            None => Next::Install,
            Some(Stop::Present) => {
                shard.present(&mut self.flight, self.at, &mut self.lost);
                drop(shard);
                // Somebody waits for a page that came by another way.
                if let Some(span) = page_span(segment.addr + bytes_of(done)) {
                    space.memory().wake(span);
                }
                self.at += 1;
                Next::Install
            }
            // More than one mapping: the program may divide what is one to us, and nobody is told.
            Some(Stop::Unmapped) if segment.pages > 1 => {
                self.reach = segment.pages / 2;
                Next::Install
            }
            // Not there, or in a mapping of its own; nobody waits for it. It stays out.
            Some(Stop::Unmapped) if !holds_demand(segment.at + 1) => {
                self.at += 1;
                Next::Install
            }
            Some(_) => {
                // Busy: an event stands before us. Unmapped: its event is still to be read. Out of memory: later.
                space.counts().hit(Transition::Busy);
                self.refused = true;
                Next::End
            }
        }
    }

    /// Ends the flight and sees to it that the thread is awake, parked, or decided anew. The gate is held still.
    pub fn end(&mut self, space: &Space) -> Next {
        let Some(region) = self.region.take() else { return Next::Done };
        let (ended, now) = {
            let mut shard = region.lock();
            (shard.end_flight(&mut self.flight, &mut self.lost), shard.address(self.page))
        };
        if let Some((from, to)) = ended.stranded {
            self.asleep = joined(self.asleep, from, to);
        }
        if let (Some((now, _)), true) = (now, ended.demanded != Install::Done)
            && now != self.fault.addr
        {
            // The mapping moved; who touched the page at its new address was told that we are on it.
            self.asleep = joined(self.asleep, now, now + bytes_of(1));
        }
        match ended.demanded {
            Install::Done => {
                // The mapping moved while the bytes were on their way: the thread waits at the old address.
                if self.installed_at.is_some_and(|addr| addr != self.fault.addr) {
                    self.wake(space);
                }
                Next::Done
            }
            Install::Busy => {
                self.busy(space);
                Next::Done
            }
            Install::Vanished => {
                self.again = true;
                Next::Again
            }
            Install::Lost => {
                match now {
                    Some((now, _)) => self.poison(space, &region, now),
                    // It moved, and where to isn't known yet: its toucher will be told there.
                    None => self.wake(space),
                }
                Next::Done
            }
        }
    }

    /// Wakes who waited for what is in place now, and gives up what the flight no longer needs. The gate is let go: the
    /// thread may take this one's CPU, and nothing is held then.
    pub fn settle(&mut self, space: &Space) {
        if let Some((from, to)) = self.asleep.take()
            && let Ok(span) = Span::between(from, to)
        {
            // Before the wake: the thread may take this CPU and keep it.
            if let Some(read_at) = self.read_at.take() {
                let took = read_at.elapsed();
                space.service().record(took);
                // A page that never was anywhere costs its first touch in any case.
                if let (Some(thread), Some(_)) = (self.fault.thread, self.installed_at) {
                    space.stalls().record(thread, took);
                }
            }
            space.memory().wake(span);
        }
        space.release(&mut self.lost);
    }

    fn busy(&self, space: &Space) {
        space.counts().hit(Transition::Busy);
        space.park(self.fault);
    }

    /// Makes touching the page, mapped at `addr` now, a SIGBUS.
    fn poison(&self, space: &Space, region: &Region, addr: u64) {
        let Some(span) = page_span(addr) else { return };
        // Counted first: whoever dies of it may be gone, with all that was counted of it, before the call returns.
        space.count_poison();
        let stop = space.memory().poison(span).stop;
        if stop.is_some() {
            space.uncount_poison();
        }
        match stop {
            None => space.note_poison(Fault { addr, ..self.fault }),
            // Nobody is left who could miss it.
            Some(Stop::Gone) => {}
            Some(Stop::Busy | Stop::NoMemory) => self.busy(space),
            Some(stop) => {
                // Poisoned already, or a page came another way: a child has its own of what moved while it was made.
                let mut present = Vec::new();
                if stop == Stop::Present
                    && space.memory().resident(span, &mut present).is_ok()
                    && present == [true]
                {
                    let mut lost = Lost::default();
                    region.lock().found(self.page, &mut lost);
                    space.release(&mut lost);
                }
                space.memory().wake(span);
                self.wake(space);
            }
        }
    }

    fn wake(&self, space: &Space) {
        if let Some(span) = page_span(self.fault.addr) {
            space.counts().hit(Transition::Woken);
            space.memory().wake(span);
        }
    }
}

/// Tries a fetch again that may succeed later. `None` if it doesn't.
fn fetch_again(space: &Space, wanted: Wanted, page: &mut [u8], waiter: &Waiter) -> Option<Fetch> {
    (0..RETRIES).find_map(|_| space.store().fetch(wanted.handle, wanted.key, page, waiter).ok())
}

/// The smallest range that holds both.
fn joined(range: Option<(u64, u64)>, from: u64, to: u64) -> Option<(u64, u64)> {
    Some(range.map_or((from, to), |(low, high)| (low.min(from), high.max(to))))
}

fn page_span(addr: u64) -> Option<Span> {
    let page = page_size() as u64;
    Span::new(addr & !(page - 1), page).ok()
}
