//! One address space in care: its gate, its regions, its slots, and the events that change them.

mod events;
pub mod recover;

use crate::brake::Brake;
use crate::core::{
    Counts, Flight, Generation, Lost, Nearby, PageIndex, PageTable, Piece, RegionId, Shard, SlotId,
    Transition,
};
use crate::directory::{Directory, Part, Region, bytes_of, pages_in};
use crate::histogram::Histogram;
use crate::memory::{Batch, Fault, Memory, MemoryError};
use crate::record::{Change, Record};
use crate::shares::Shares;
use crate::slots::{Phase, SlotNames, SlotPool, Standing};
use crate::stages::Stages;
use crate::stalls::Stalls;
use crate::turns::{Spent, Turns};
use crate::writes::Writes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use userswap_policy::strides::Strides;
use userswap_store::{FetchKind, Handle, OwnerId, PageKey, Store, StoreError};
use userswap_uffd::{Span, page_size};

/// An address space: one userfaultfd, one gate.
///
/// # The gate
/// The kernel keeps installs off an address space that is changing only until the event that says so has been *read*.
/// From then until it is in our books nothing but the gate stands between an old decision and the new mapping. So:
/// reading messages and applying their events holds the gate **exclusively** ([`take_messages`](Self::take_messages)); from a
/// decision, over the system call that carries it out, to the record of its outcome it is held **shared**. A decision that was
/// made under an earlier hold is confirmed under the present one before it is acted on. Work in flight (loading bytes)
/// holds nothing.
///
/// Locks nest in one order: mover, gate, region, slot names, shares; none of the last three is held over a system call.
pub struct Space {
    memory: Arc<dyn Memory>,
    store: Arc<dyn Store>,
    may_wait: bool,
    gate: RwLock<Directory>,
    /// One mover at a time: registration and slots change under it.
    pub(crate) mover: Mutex<()>,
    pub(crate) names: Mutex<SlotNames>,
    pub(crate) pool: Arc<SlotPool>,
    parked: Mutex<Vec<Fault>>,
    has_parked: AtomicBool,
    brake: Brake,
    spent: Spent,
    /// Messages were left unread because the gate was held.
    unread: AtomicBool,
    /// Since the last read nothing was changing at some moment.
    still: AtomicBool,
    shares: Arc<Shares>,
    lineage: Arc<Lineage>,
    next_region: AtomicU32,
    key_bases: RwLock<HashMap<RegionId, u64>>,
    counts: Counts,
    service: Histogram,
    stages: OnceLock<Box<Stages>>,
    nearby: Mutex<Nearby>,
    strides: Mutex<Strides>,
    arrivals: Record<(u64, u64)>,
    changes: Record<Change>,
    stalls: Stalls,
    writes: Writes,
    broken_promise: AtomicBool,
    sentinel: AtomicU64,
    /// Ranges that were let go of while others were out, and so are registered still.
    pub(crate) leftover: Mutex<Vec<Span>>,
    troubles: Troubles,
    /// Pages that were on their way back when the process before died.
    arriving: Mutex<Vec<(Arc<Region>, PageIndex)>>,
    /// Gets a handler to look here soon.
    kick: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Gets a worker to do something here.
    workers: OnceLock<Box<dyn Fn(Errand) + Send + Sync>>,
    /// Held shared by who goes ahead, from the look at it on.
    pub(crate) called_off: RwLock<CalledOff>,
}

/// What an address space's own threads can go on without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Errand {
    /// Slots wait to be written out.
    Write,
    /// What is at an address, and behind it, will be wanted soon: unless it is [called off](Space::call_off_ahead).
    Ahead(u64, CalledOff),
}

/// How often going ahead had been called off.
pub(crate) type CalledOff = u32;

/// What a process and its forked descendants have in common: their pages can share objects.
struct Lineage {
    owner: OwnerId,
    generation: AtomicU32,
}

/// What an address space starts with.
struct Books {
    directory: Directory,
    names: SlotNames,
    counts: Counts,
    pool: Arc<SlotPool>,
}

fn pool_of(memory: &dyn Memory, slot_pages: u32) -> Arc<SlotPool> {
    let uid = memory.ledger().map_or(0, |ledger| ledger.uid());
    SlotPool::new(uid, memory.slot_area(), slot_pages, page_size() as u64)
}

/// What went wrong so far.
#[derive(Default)]
struct Troubles {
    store_errors: AtomicU64,
    poisoned: AtomicU64,
}

/// How many pages a slot has unless said otherwise: 256 KiB, enough for a move to cost little a page.
pub const SLOT_PAGES: u32 = 64;

/// Ranges that are put into care in one hold of the gate.
const AT_ONCE: usize = 1024;

impl Space {
    /// Takes an address space into care. Nothing in it is touched until a range is [`manage`](Self::manage)d.
    pub fn new(
        memory: Arc<dyn Memory>,
        store: Arc<dyn Store>,
        shares: Arc<Shares>,
        owner: OwnerId,
        slot_pages: u32,
    ) -> Arc<Self> {
        let lineage = Arc::new(Lineage { owner, generation: AtomicU32::new(0) });
        if let Some(ledger) = memory.ledger() {
            ledger.note_owner(owner.0, slot_pages);
        }
        let pool = pool_of(memory.as_ref(), slot_pages);
        let books = Books {
            directory: Directory::default(),
            names: SlotNames::kept(memory.ledger().cloned()),
            counts: Counts::default(),
            pool,
        };
        Self::build(memory, store, shares, lineage, books)
    }

    fn build(
        memory: Arc<dyn Memory>,
        store: Arc<dyn Store>,
        shares: Arc<Shares>,
        lineage: Arc<Lineage>,
        books: Books,
    ) -> Arc<Self> {
        let Books { directory, names, counts, pool } = books;
        Arc::new(Self {
            memory,
            may_wait: store.capabilities().fetch != FetchKind::Ready,
            store,
            gate: RwLock::new(directory),
            mover: Mutex::new(()),
            names: Mutex::new(names),
            pool,
            parked: Mutex::new(Vec::new()),
            has_parked: AtomicBool::new(false),
            brake: Brake::default(),
            spent: Spent::default(),
            unread: AtomicBool::new(false),
            still: AtomicBool::new(false),
            shares,
            lineage,
            next_region: AtomicU32::new(0),
            key_bases: RwLock::new(HashMap::new()),
            counts,
            service: Histogram::default(),
            stages: OnceLock::new(),
            nearby: Mutex::default(),
            strides: Mutex::default(),
            arrivals: Record::default(),
            changes: Record::default(),
            stalls: Stalls::default(),
            writes: Writes::default(),
            broken_promise: AtomicBool::new(false),
            sentinel: AtomicU64::new(0),
            leftover: Mutex::new(Vec::new()),
            troubles: Troubles::default(),
            arriving: Mutex::default(),
            kick: OnceLock::new(),
            workers: OnceLock::new(),
            called_off: RwLock::new(0),
        })
    }

    /// How its memory is reached.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Where its pages go.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Whether the store may answer later rather than at once.
    pub fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// Its slots.
    pub fn slots(&self) -> &Arc<SlotPool> {
        &self.pool
    }

    /// The slots that can be written out, longest-standing first.
    pub fn ready_slots(&self) -> Vec<(SlotId, Standing)> {
        self.names.lock().by_age()
    }

    /// How often each transition was taken.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How long its faults were in a handler's hands: from the moment the message was read until the page is in place and its
    /// thread about to be woken. The way to the handler and the thread's own waking are not in it; nor are faults that were
    /// another's to serve, or the time a fault lay parked.
    pub fn service(&self) -> &Histogram {
        &self.service
    }

    /// Measures the stages of its faults, too, from now on.
    pub fn time_stages(&self) {
        self.stages.get_or_init(Box::default);
    }

    /// How long the stages of its faults took, if that is [measured](Self::time_stages).
    pub fn stages(&self) -> Option<&Stages> {
        self.stages.get().map(Box::as_ref)
    }

    /// Whether a range was unmapped while a move order covered it, which the receiver of such orders promised not to do.
    pub fn broke_promise(&self) -> bool {
        self.broken_promise.load(Ordering::Relaxed)
    }

    /// The gate, shared: hold it from a decision to the record of its outcome.
    pub fn shared(&self) -> RwLockReadGuard<'_, Directory> {
        self.gate.read()
    }

    /// The gate, exclusive: hold it to change what is mapped where.
    pub(crate) fn exclusive(&self) -> RwLockWriteGuard<'_, Directory> {
        self.gate.write()
    }

    /// Puts a range into care as one region. It isn't registered before something of it moves out.
    ///
    /// # Errors
    /// [`MemoryError::Refused`] if part of it is in care already, [`MemoryError::Gone`] if the address space is closed.
    pub fn manage(&self, span: Span) -> Result<Arc<Region>, MemoryError> {
        let mut directory = self.gate.write();
        if directory.is_closed() {
            return Err(MemoryError::Gone);
        }
        if directory.overlaps(span) {
            return Err(MemoryError::Refused {
                doing: "taking into care",
                span,
                reason: "part of it is in care already".into(),
            });
        }
        let region = self.enter(span, &mut directory);
        self.write_down(&directory, 0);
        Ok(region)
    }

    /// Puts a range that nobody has into the directory, which is to be written down.
    fn enter(&self, span: Span, directory: &mut Directory) -> Arc<Region> {
        let id = RegionId(self.next_region.fetch_add(1, Ordering::Relaxed));
        let pages = pages_in(span.len());
        let piece = Piece { first: PageIndex(0), pages, addr: span.start() };
        let key_base = span.start() / page_size() as u64;
        let table = self.new_table(id, pages, key_base);
        let region =
            Region::new(Shard::over(id, table, vec![piece], page_size() as u64, self.counts.clone()));
        self.key_bases.write().insert(id, key_base);
        if directory.replace_left(span) {
            // Else what a move of it leaves behind would pass for unwatched, and who waits there not be woken by a successor.
            region.lock().set_registered(true);
        }
        directory.insert(&Part { region: Arc::clone(&region), piece });
        for removed in directory.take_removed(span) {
            let first = PageIndex(pages_in(removed.start() - span.start()));
            // A region that is new has nothing to lose.
            region.lock().remove(first, pages_in(removed.len()), &mut Lost::default());
        }
        region
    }

    /// An empty page table, in the ledger if there is one.
    fn new_table(&self, id: RegionId, pages: u32, key_base: u64) -> PageTable {
        match self.memory.ledger() {
            Some(ledger) => ledger.new_table(id, pages, key_base),
            None => PageTable::new(pages),
        }
    }

    /// Writes the directory down, into which so many events of those last read have gone. To be called before the gate, held exclusively, is
    /// let go of by whoever has changed it.
    pub(crate) fn write_down(&self, directory: &Directory, events: u32) {
        if let Some(ledger) = self.memory.ledger() {
            match directory.to_words(&self.leftover.lock()) {
                Some(words) => ledger.write_directory(&words, events),
                None => ledger.overflow("a region without a place"),
            }
        }
    }

    /// Puts into care what of some ranges isn't yet, as regions of their own. Returns the bytes that are new.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] if the address space is closed.
    pub fn manage_new(&self, spans: &[Span]) -> Result<u64, MemoryError> {
        let mut taken = 0;
        // The directory is written down as a whole: once for many ranges, but nobody waits for all of them.
        for some in spans.chunks(AT_ONCE) {
            let mut directory = self.gate.write();
            if directory.is_closed() {
                return Err(MemoryError::Gone);
            }
            let before = taken;
            for span in some {
                let mut from = span.start();
                let held: Vec<Span> = directory.parts(*span).iter().filter_map(Part::span).collect();
                let ends = held.iter().map(|part| (part.start(), part.end()));
                for (start, end) in ends.chain([(span.end(), span.end())]) {
                    if let Ok(gap) = Span::between(from, start) {
                        self.enter(gap, &mut directory);
                        taken += gap.len();
                    }
                    from = end;
                }
            }
            if taken > before {
                self.write_down(&directory, 0);
            }
        }
        Ok(taken)
    }

    /// Has faults at this page reported to the engine's observer. Children inherit it.
    pub fn set_sentinel(&self, addr: u64) {
        self.sentinel.store(addr, Ordering::Release);
        if let Some(ledger) = self.memory.ledger() {
            ledger.note_sentinel(addr);
        }
    }

    /// The page whose faults are reported; 0 if there is none.
    pub fn sentinel(&self) -> u64 {
        self.sentinel.load(Ordering::Acquire)
    }

    /// Slots for an address space that had none before: a child whose agent has called. It may be the area, inherited, that its parent's
    /// slots are in: each can be used once no page stands in its original any more.
    pub fn inherit_slots(&self, area: Span) {
        if let Some(ledger) = self.memory.ledger() {
            ledger.note_inherited();
        }
        self.pool.inherit(area, page_size() as u64);
    }

    /// Empties slots nobody stands in any more. Returns how many.
    ///
    /// # Errors
    /// When the memory can't empty them; they are not used again.
    pub fn reclaim_slots(&self) -> Result<usize, MemoryError> {
        let inherited = self.pool.reclaim_inherited(self.memory().as_ref(), &self.names)?;
        Ok(inherited + self.pool.reclaim(self.memory().as_ref())?)
    }

    /// The identity the bytes of a page are stored under.
    pub(crate) fn key(&self, region: RegionId, page: PageIndex, generation: Generation) -> PageKey {
        let base = self.key_base(region);
        PageKey { owner: self.lineage.owner, page: base + u64::from(page.0), generation: generation.get() }
    }

    fn key_base(&self, region: RegionId) -> u64 {
        self.key_bases.read().get(&region).copied().unwrap_or(0)
    }

    pub(crate) fn next_generation(&self) -> Generation {
        let count = self.lineage.generation.fetch_add(1, Ordering::Relaxed);
        if let Some(ledger) = self.memory.ledger() {
            ledger.note_generation(count.wrapping_add(1));
        }
        Generation::from_count(count)
    }

    /// Gives up claims that ended. Called without a region's lock.
    pub(crate) fn release(&self, lost: &mut Lost) {
        if lost.is_empty() {
            return;
        }
        if !lost.slots.is_empty() {
            let mut names = self.names.lock();
            for page in &lost.slots {
                names.leave(*page);
            }
        }
        for (handle, shared) in &lost.handles {
            self.free(*handle, *shared);
        }
        lost.clear();
    }

    /// Gives a handle back unless a relative still uses it.
    pub(crate) fn free(&self, handle: Handle, shared: bool) {
        if !shared || self.shares.last(handle) {
            self.store.free(&[handle]);
        }
    }

    /// How large a lot is worth bringing in with a page that is out.
    pub(crate) fn worth(&self, region: RegionId, page: PageIndex, most: u32) -> u32 {
        self.nearby.lock().asked(region, page, most)
    }

    /// Has what threads that go through memory at even distances will want next come with a page.
    pub(crate) fn take_along(&self, shard: &mut Shard, most: u32, flight: &mut Flight) {
        if flight.len() == 1 {
            shard.take_along(&mut self.strides.lock(), most, flight);
        }
    }

    /// A range was put in place.
    pub(crate) fn note_arrival(&self, from: u64, to: u64) {
        self.arrivals.note((from, to));
        self.changes.note(Change::Came(from, to));
    }

    /// Exchanges the addresses, from and to, of what was put in place since the last time, in order, for an empty `ranges`. `false`: there
    /// was more than is remembered, or it is the first time anybody asks. Only one may ask: a [`Pacer`](crate::Pacer) does.
    pub fn take_arrivals(&self, ranges: &mut Vec<(u64, u64)>) -> bool {
        self.arrivals.take(ranges)
    }

    /// As [`take_arrivals`](Self::take_arrivals), with what became of ranges: for who keeps an account of what is out. Only one may ask.
    pub fn take_changes(&self, changes: &mut Vec<Change>) -> bool {
        self.changes.take(changes)
    }

    /// How long its threads waited for pages that were out.
    pub fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    pub(crate) fn note_change(&self, change: Change) {
        self.changes.note(change);
    }

    /// What came back lately.
    pub(crate) fn arrivals(&self) -> &Record<(u64, u64)> {
        &self.arrivals
    }

    /// What is to be written out.
    pub(crate) fn writes(&self) -> &Writes {
        &self.writes
    }

    // ---- parked faults ----

    /// Lays a fault aside until something changes: an event is applied, a move recorded, or a moment passed.
    pub(crate) fn park(&self, fault: Fault) {
        let mut parked = self.parked.lock();
        if !parked.iter().any(|other| other.addr == fault.addr) {
            parked.push(fault);
        }
        self.has_parked.store(true, Ordering::Release);
    }

    /// Whether faults are parked: the loop should come back soon.
    pub fn has_parked(&self) -> bool {
        self.has_parked.load(Ordering::Acquire) || self.brake.holds()
    }

    /// Has every fault wait so long, 20 ms at most, before it is served; zero takes the brake off. For memory that comes in faster
    /// than it can be moved out.
    pub fn set_brake(&self, delay: Duration) {
        self.brake.set(delay);
    }

    /// Its part of the engine's time, beside other address spaces that have faults: who takes more than the others, and more than that, waits. With 0, which it
    /// begins with, it waits for nobody, and its time isn't counted.
    pub fn set_weight(&self, weight: u32) {
        self.spent.set_weight(weight);
    }

    /// CPU time spent on it so far, as far as it is counted.
    pub(crate) fn spent(&self) -> &Spent {
        &self.spent
    }

    /// It is to be looked at, as `id` in an engine. Whether others have faults as well; what it has to wait for its own sees to itself.
    pub(crate) fn take_turn(&self, id: u64, turns: &Turns) -> bool {
        let turn = turns.take(id, self.spent.weight(), self.spent.so_far(), Instant::now());
        self.brake.set_turn(turn.wait);
        turn.beside
    }

    /// Whether memory comes faster than it goes: then nothing is brought in that nobody waits for.
    pub(crate) fn is_slowed(&self) -> bool {
        self.brake.is_on()
    }

    pub(crate) fn is_braking(&self) -> bool {
        self.brake.holds()
    }

    /// Takes the parked faults up again, to be decided anew.
    pub fn unpark(&self, batch: &mut Batch) {
        self.brake.release(&mut batch.faults);
        if self.has_parked.load(Ordering::Acquire) {
            let mut parked = self.parked.lock();
            self.has_parked.store(false, Ordering::Release);
            for fault in parked.drain(..) {
                self.counts.hit(Transition::Retried);
                batch.faults.push(fault);
            }
        }
    }

    /// Says how to get a handler to look here; once.
    pub fn set_kick(&self, kick: Box<dyn Fn() + Send + Sync>) {
        let _ = self.kick.set(kick);
    }

    /// Gets a handler to look here soon. Without handlers (in a simulation) nothing happens.
    pub(crate) fn kick(&self) {
        if let Some(kick) = self.kick.get() {
            kick();
        }
    }

    /// Says how to get a worker to do something here; once.
    pub(crate) fn set_workers(&self, call: Box<dyn Fn(Errand) + Send + Sync>) {
        let _ = self.workers.set(call);
    }

    /// Gets a worker to do something, if there are any and they have time.
    pub(crate) fn call_worker(&self, errand: Errand) {
        if let Some(call) = self.workers.get() {
            call(errand);
        }
    }

    /// What was to be brought in ahead isn't any more, and nothing of that is under way: all of a range is to go out, and what somebody read before is no sign
    /// that it is wanted still.
    pub(crate) fn call_off_ahead(&self) {
        *self.called_off.write() += 1;
    }

    // ---- troubles ----

    /// A store could not give a page.
    pub(crate) fn note_store_error(&self, key: PageKey, error: &StoreError) {
        self.troubles.store_errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%key, %error, "a page could not be fetched");
    }

    /// A page is about to be lost.
    pub(crate) fn count_poison(&self) {
        self.troubles.poisoned.fetch_add(1, Ordering::Relaxed);
    }

    /// It wasn't.
    pub(crate) fn uncount_poison(&self) {
        self.troubles.poisoned.fetch_sub(1, Ordering::Relaxed);
    }

    /// A page is lost.
    pub(crate) fn note_poison(&self, fault: Fault) {
        tracing::error!(
            addr = format_args!("{:#x}", fault.addr),
            thread = fault.thread,
            "page poisoned: its bytes are lost"
        );
    }

    /// Fetches that failed, and pages that were poisoned for it.
    pub fn troubles(&self) -> (u64, u64) {
        (self.troubles.store_errors.load(Ordering::Relaxed), self.troubles.poisoned.load(Ordering::Relaxed))
    }

    // ---- the end ----

    /// Gives everything up: the address space is gone, or all of it was brought back.
    pub fn close(&self) {
        // A successor that finds half of it given up would miss the rest.
        if let Some(ledger) = self.memory.ledger() {
            ledger.leave();
        }
        let mut lost = Lost::default();
        let mut directory = self.gate.write();
        directory.close();
        let parts = directory.take_all();
        for part in parts {
            part.region.lock().clear(&mut lost);
        }
        drop(directory);
        // Moves that will never be known to be done: children, and a mover, may be waiting for them.
        for (_, standing) in self.names.lock().iter() {
            if standing.slot.is_of(&self.pool) && standing.slot.phase() == Phase::Filling {
                standing.slot.settle(Phase::Failed);
            }
        }
        self.parked.lock().clear();
        self.brake.clear();
        self.writes.clear();
        self.release(&mut lost);
    }

    /// What is where, in pages.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        let directory = self.shared();
        for part in directory.all() {
            usage.managed += u64::from(part.piece.pages);
        }
        let mut seen = std::collections::HashSet::new();
        for part in directory.all() {
            if seen.insert(Arc::as_ptr(&part.region)) {
                usage.out += u64::from(part.region.lock().out());
            }
        }
        drop(directory);
        usage.standby = self.names.lock().standing();
        usage
    }

    pub(crate) fn live_parts(&self, span: Span) -> Vec<Part> {
        self.shared().parts(span)
    }

    /// The ranges in care.
    pub fn spans(&self) -> Vec<Span> {
        self.parts().iter().filter_map(Part::span).collect()
    }

    /// Where the parts of all regions are.
    pub fn parts(&self) -> Vec<Part> {
        self.shared().all()
    }
}

/// What is where in one address space, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// In care.
    pub managed: u64,
    /// Out: standing in slots, stored, or on the way back.
    pub out: u64,
    /// Of those, standing in slots.
    pub standby: u64,
}

/// Bytes of everything out.
impl Usage {
    /// Bytes in care that are not in memory.
    pub fn out_bytes(&self) -> u64 {
        u32::try_from(self.out).map_or(u64::MAX, bytes_of)
    }
}
