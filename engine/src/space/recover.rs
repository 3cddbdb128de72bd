//! Taking up what a dead process has left: its address spaces from their ledgers, their pages from the store.
//!
//! In this order, since each step needs what is before it: whose slots there are → each space's directory, pages and names → how
//! many name each object, and which nobody does → the events that were read and aren't in the books → what had arrived unrecorded →
//! everybody is woken. Nothing is served before all of it is done.

use super::{Books, Lineage, Space, pool_of};
use crate::core::{Counts, Found, Lost, PageIndex, PageState, RegionId, Shard, SlotId, SlotPage};
use crate::directory::{Directory, Region};
use crate::ledger::{Ledger, SlotRecord};
use crate::memory::{Batch, Memory, MemoryError};
use crate::shares::Shares;
use crate::slots::{Phase, Run, Slot, SlotNames, SlotPool, Standing};
use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use userswap_store::{Handle, OwnerId, PageKey, Store};
use userswap_uffd::{Span, page_size};

/// What was taken up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Address spaces.
    pub spaces: usize,
    /// Pages in the store.
    pub stored: u64,
    /// Pages standing in slots.
    pub standing: u64,
    /// Pages whose bytes were nowhere to be found.
    pub lost: u64,
    /// Objects that nobody named; they are gone.
    pub unnamed: u64,
}

/// The objects that were found in the store, and how many pages name each.
struct Objects {
    found: Vec<(PageKey, Handle)>,
    names: Vec<u32>,
}

impl Objects {
    fn new(mut found: Vec<(PageKey, Handle)>) -> Self {
        found.sort_unstable_by_key(|(key, _)| *key);
        Self { names: vec![0; found.len()], found }
    }

    fn name(&mut self, key: PageKey) -> Option<Handle> {
        let at = self.found.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        self.names[at] += 1;
        Some(self.found[at].1)
    }

    fn named(&self) -> impl Iterator<Item = (Handle, u32)> + '_ {
        self.found.iter().zip(&self.names).map(|((_, handle), names)| (*handle, *names))
    }
}

type Pool = (Arc<SlotPool>, Option<Arc<dyn Memory>>);

/// The slots that somebody stands in, whosever they are.
struct Slots {
    /// Of whom, and how he is reached; not at all if he is gone.
    pools: HashMap<u64, Pool>,
    slots: HashMap<(u64, u64), Arc<Slot>>,
    slot_pages: u32,
}

impl Slots {
    /// The slot that a record names. Those of a process that is gone can't be read: each child of it that stands there, or forks one that does, has a copy.
    fn find(&mut self, record: &SlotRecord) -> Arc<Slot> {
        let pages = self.slot_pages;
        let (pool, host) = self
            .pools
            .entry(record.owner)
            .or_insert_with(|| (SlotPool::new(record.owner, None, pages, page_size() as u64), None));
        let slot = self.slots.entry((record.owner, record.span.start()));
        Arc::clone(slot.or_insert_with(|| pool.found(record.span, host.as_ref())))
    }
}

/// Pages that name slots, of each slot by their places there.
#[derive(Default)]
struct Names {
    by_slot: HashMap<SlotId, BTreeMap<u32, Named>>,
}

struct Named {
    region: Arc<Region>,
    page: PageIndex,
    /// Whether it isn't known that it moved there.
    ordered: bool,
}

impl Names {
    /// A page names a slot. `false` if another one has that place already, which can't be.
    fn add(&mut self, region: &Arc<Region>, page: PageIndex, at: SlotPage, ordered: bool) -> bool {
        let named = Named { region: Arc::clone(region), page, ordered };
        match self.by_slot.entry(at.slot).or_default().entry(at.offset) {
            Entry::Vacant(place) => {
                place.insert(named);
                true
            }
            Entry::Occupied(_) => false,
        }
    }
}

/// The runs of pages that name a slot.
fn runs_of(named: &BTreeMap<u32, Named>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (&offset, Named { region, page, .. }) in named {
        match runs.last_mut() {
            Some(run)
                if run.end() == offset
                    && Arc::ptr_eq(&run.region, region)
                    && run.first.plus(run.pages) == *page =>
            {
                run.pages += 1;
            }
            _ => runs.push(Run { region: Arc::clone(region), first: *page, offset, pages: 1 }),
        }
    }
    runs
}

/// Takes up the address spaces that `memories` reach, each with a ledger. What the store was found to hold and nobody names is freed.
/// They are complete but for [`Space::replay`]; [`Engine::recover`](crate::Engine::recover) does both.
///
/// One that can't be told from its ledger is left out.
pub fn take_up(
    store: &Arc<dyn Store>,
    shares: &Arc<Shares>,
    found: Vec<(PageKey, Handle)>,
    memories: &[Arc<dyn Memory>],
) -> (Vec<Option<Arc<Space>>>, Recovered) {
    let mut objects = Objects::new(found);
    let mut report = Recovered { spaces: memories.len(), ..Recovered::default() };
    let mut slots = Slots { pools: HashMap::new(), slots: HashMap::new(), slot_pages: 1 };
    let mut lineages: HashMap<u64, Arc<Lineage>> = HashMap::new();
    for memory in memories {
        let Some(ledger) = memory.ledger() else { continue };
        let pool = if ledger.has_inherited() {
            let pool = SlotPool::new(ledger.uid(), None, ledger.slot_pages(), page_size() as u64);
            if let Some(area) = memory.slot_area() {
                pool.inherit(area, page_size() as u64);
            }
            pool
        } else {
            pool_of(memory.as_ref(), ledger.slot_pages())
        };
        slots.pools.insert(ledger.uid(), (pool, Some(Arc::clone(memory))));
        if ledger.owner() == 0 {
            ledger.note_owner(ledger.roster().next_owner(), ledger.slot_pages());
        }
        let lineage = lineages.entry(ledger.owner()).or_insert_with(|| {
            Arc::new(Lineage { owner: OwnerId(ledger.owner()), generation: AtomicU32::new(0) })
        });
        // What was written down last may not be the latest that was given out.
        lineage.generation.fetch_max(ledger.generation().wrapping_add(GENERATIONS), Ordering::Relaxed);
    }
    let mut spaces = Vec::with_capacity(memories.len());
    for memory in memories {
        let space = memory.ledger().and_then(|ledger| {
            let lineage = lineages.get(&ledger.owner())?;
            let pool = Arc::clone(&slots.pools.get(&ledger.uid())?.0);
            slots.slot_pages = ledger.slot_pages();
            let found = find_space(memory, ledger, lineage, &pool, &mut objects, &mut slots, &mut report)?;
            Some(found.build(memory, store, shares, lineage, pool))
        });
        spaces.push(space);
    }
    let mut unnamed = Vec::new();
    for (handle, names) in objects.named() {
        match names {
            0 => unnamed.push(handle),
            1 => {}
            more => (1..more).for_each(|_| shares.add(handle)),
        }
    }
    report.unnamed = unnamed.len() as u64;
    store.free(&unnamed);
    mark_shared(&spaces, &objects);
    for space in spaces.iter().flatten() {
        if !space.memory.ledger().is_some_and(|ledger| ledger.has_inherited()) {
            space.pool.distrust_free(space.memory.as_ref());
        }
    }
    (spaces, report)
}

/// Generations that threads may have been given beyond what was written down.
const GENERATIONS: u32 = 1 << 12;

/// One address space, out of its ledger.
struct FoundSpace {
    directory: Directory,
    leftover: Vec<Span>,
    names: SlotNames,
    key_bases: HashMap<RegionId, u64>,
    /// Pages that were on their way back.
    arrived: Vec<(Arc<Region>, PageIndex)>,
}

fn find_space(
    memory: &Arc<dyn Memory>,
    ledger: &Arc<Ledger>,
    lineage: &Lineage,
    pool: &Arc<SlotPool>,
    objects: &mut Objects,
    slots: &mut Slots,
    report: &mut Recovered,
) -> Option<FoundSpace> {
    let counts = Counts::default();
    let mut key_bases = HashMap::new();
    let mut regions: Vec<(Arc<Region>, u64)> = Vec::new();
    let words = ledger.directory();
    let word = words.iter().map(|word| word.load(Ordering::Acquire));
    let read = Directory::from_words(word, |number, pieces| {
        let (record, table) = ledger.found_region(number)?;
        if pieces.iter().any(|piece| u64::from(piece.first.0) + u64::from(piece.pages) > record.pages.into())
        {
            return None;
        }
        let mut shard = Shard::over(record.id, table, pieces.to_vec(), page_size() as u64, counts.clone());
        shard.recount();
        // Whether it is isn't known, and to say so of one that isn't costs a call that changes nothing.
        shard.set_registered(true);
        key_bases.insert(record.id, record.key_base);
        let region = Region::new(shard);
        regions.push((Arc::clone(&region), record.key_base));
        Some(region)
    });
    let Some((directory, leftover)) = read else {
        tracing::error!(?ledger, "a ledger's directory is none");
        return None;
    };
    // Regions that are mapped nowhere any more, or weren't yet.
    let mapped: Vec<u32> = regions
        .iter()
        .filter_map(|(region, _)| region.lock().table().home().map(crate::ledger::Home::index))
        .collect();
    for number in ledger.found_regions() {
        if !mapped.contains(&number) {
            drop(ledger.found_region(number));
        }
    }

    let records = ledger.slots();
    let record_of = |id: SlotId| records.get(id.0 as usize).copied().flatten();
    let (mut names, mut arrived) = (Names::default(), Vec::new());
    for (region, key_base) in &regions {
        let len = region.lock().len();
        for page in (0..len).map(PageIndex) {
            let mut shard = region.lock();
            if shard.is_on_its_way(page) {
                arrived.push((Arc::clone(region), page));
            }
            let find = |generation: crate::core::Generation| {
                let number = key_base + u64::from(page.0);
                objects.name(PageKey { owner: lineage.owner, page: number, generation: generation.get() })
            };
            let renew = || lineage.next();
            let stands = match shard.take_up(page, find, renew) {
                Found::Settled => {
                    report.stored += u64::from(matches!(shard.state(page), PageState::Stored(_)));
                    continue;
                }
                Found::Missing => false,
                Found::Standing(at) => {
                    report.standing += 1;
                    record_of(at.slot).is_some() && names.add(region, page, at, false)
                }
                Found::Ordered(at) => record_of(at.slot).is_some() && names.add(region, page, at, true),
            };
            if !stands {
                shard.lose(page);
                report.lost += 1;
                tracing::error!(?ledger, ?page, "what a page held isn't there any more");
            }
        }
    }
    ledger.note_generation(lineage.generation.load(Ordering::Relaxed));

    let mut named: Vec<Option<Standing>> = records.iter().map(|_| None).collect();
    for (id, found) in names.by_slot {
        let Some(record) = record_of(id) else { continue };
        let slot = slots.find(&record);
        let mut count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        if found.values().any(|named| named.ordered) {
            count -= match record.ordered {
                true => settle_order(memory.as_ref(), &slot, &found, lineage, report),
                false => never_ordered(&found),
            };
        }
        if count > 0 {
            let runs = runs_of(&found);
            named[id.0 as usize] = Some(Standing { slot, runs, count, serial: record.serial });
        }
    }
    for standing in named.iter().flatten().filter(|standing| standing.slot.is_of(pool)) {
        // Moved into and not yet let go of, perhaps: who reads a hole in it would wait for us.
        if standing.slot.phase() == Phase::Ready
            && let Err(error) = memory.settle_slot(standing.slot.span())
        {
            tracing::debug!(%error, "a slot stays registered");
        }
    }
    let names = SlotNames::found(Arc::clone(ledger), named);
    Some(FoundSpace { directory, leftover, names, key_bases, arrived })
}

/// The order to move pages into a slot wasn't given: nobody had seen yet whether they are watched. They are where they were, before any event is applied:
/// a child's that was told of since would wait for them, perhaps in a range that isn't watched. Returns how many they are.
fn never_ordered(named: &BTreeMap<u32, Named>) -> u32 {
    let ordered = named.values().filter(|named| named.ordered);
    ordered.map(|Named { region, page, .. }| region.lock().not_moved(*page, 1)).map(|()| 1).sum()
}

/// Finds out what became of orders to move pages into a slot. Returns how many of them don't stand there.
fn settle_order(
    memory: &dyn Memory,
    slot: &Slot,
    named: &BTreeMap<u32, Named>,
    lineage: &Lineage,
    report: &mut Recovered,
) -> u32 {
    let ordered = named.iter().filter(|(_, named)| named.ordered);
    let mut lost = Lost::default();
    let mut away = 0;
    match memory.moved_into(slot.span()) {
        Ok(Some(present)) => {
            for (offset, Named { region, page, .. }) in ordered {
                let mut shard = region.lock();
                if present.get(*offset as usize).copied().unwrap_or(false) {
                    shard.moved(*page, 1, || lineage.next(), &mut lost);
                    report.standing += 1;
                } else {
                    shard.not_moved(*page, 1);
                    away += 1;
                }
            }
        }
        // The order's own event will say, or that there was none will be noticed.
        Ok(None) => slot.settle(Phase::Filling),
        Err(error) => {
            tracing::error!(%error, "what became of a move isn't known");
            for (_, Named { region, page, .. }) in ordered {
                region.lock().lose(*page);
                report.lost += 1;
                away += 1;
            }
        }
    }
    // One for each page that isn't there, or is there for nobody.
    away + u32::try_from(lost.slots.len()).unwrap_or(0)
}

fn mark_shared(spaces: &[Option<Arc<Space>>], objects: &Objects) {
    let shared: std::collections::HashSet<Handle> =
        objects.named().filter(|(_, names)| *names > 1).map(|(handle, _)| handle).collect();
    if shared.is_empty() {
        return;
    }
    let parts = spaces.iter().flatten().flat_map(|space| space.shared().all_and_overdue());
    for region in parts.map(|part| part.region) {
        let mut shard = region.lock();
        for page in (0..shard.len()).map(PageIndex) {
            if let PageState::Stored(handle) | PageState::Poisoned(Some(handle)) = shard.state(page)
                && shared.contains(&handle)
            {
                shard.note_shared(page);
            }
        }
    }
}

impl Lineage {
    fn next(&self) -> crate::core::Generation {
        crate::core::Generation::from_count(self.generation.fetch_add(1, Ordering::Relaxed))
    }
}

impl FoundSpace {
    fn build(
        self,
        memory: &Arc<dyn Memory>,
        store: &Arc<dyn Store>,
        shares: &Arc<Shares>,
        lineage: &Arc<Lineage>,
        pool: Arc<SlotPool>,
    ) -> Arc<Space> {
        let next = self.key_bases.keys().map(|id| id.0.saturating_add(1)).max().unwrap_or(0);
        let books = Books { directory: self.directory, names: self.names, counts: Counts::default(), pool };
        let (memory, store) = (Arc::clone(memory), Arc::clone(store));
        let space = Space::build(memory, store, Arc::clone(shares), Arc::clone(lineage), books);
        space.next_region.store(next, Ordering::Relaxed);
        *space.key_bases.write() = self.key_bases;
        *space.leftover.lock() = self.leftover;
        *space.arriving.lock() = self.arrived;
        if let Some(ledger) = space.memory.ledger() {
            space.sentinel.store(ledger.sentinel(), Ordering::Release);
        }
        space
    }
}

impl Space {
    /// Applies the events that a dead process has read and not applied, then wakes everybody: who waited for it faults again. Returns
    /// children, to be taken into care. `known` says which children, by the descriptor of their userfaultfd, were taken up already.
    ///
    /// # Errors
    /// When the address space is gone.
    pub fn replay(&self, known: &dyn Fn(RawFd) -> bool) -> Result<Vec<Arc<Self>>, MemoryError> {
        let mut batch = Batch::with_capacity(0);
        let mut children = Vec::new();
        let mut lost = Lost::default();
        let mut directory = self.gate.write();
        let applied = self.memory.ledger().map_or(0, |ledger| ledger.events_applied());
        let first = applied + self.memory.unapplied(known, &mut batch)? + 1;
        for (event, applied) in batch.events.drain(..).zip(first..) {
            self.apply(event, &mut directory, &mut lost, &mut children);
            self.write_down(&directory, applied);
        }
        self.memory.applied();
        self.find_arrived(&mut lost);
        drop(directory);
        self.release(&mut lost);
        // Not where the books say that something is watched: what a program has moved since is watched where it is now, and the event that
        // says where may be unread.
        self.memory.wake_all();
        Ok(children)
    }

    /// Pages that were on their way back when their bringer died may have arrived. What isn't noticed here is when it is next brought.
    fn find_arrived(&self, lost: &mut Lost) {
        let mut present = Vec::new();
        let mut there = Vec::new();
        for (region, page) in self.arriving.lock().drain(..) {
            let addr = region.lock().address(page);
            if let Some((addr, _)) = addr
                && let Ok(span) = Span::page_of(addr)
                && self.memory.resident(span, &mut present).is_ok()
                && present == [true]
            {
                there.push((region, page));
            }
        }
        // If nothing is changing now nothing was while it was looked at, and these are the pages' own addresses.
        if !there.is_empty() && self.memory.is_still() {
            there.into_iter().for_each(|(region, page)| region.lock().arrived(page, lost));
        }
    }

    /// All one-way orders given before are carried out, as far as they ever will be, and their events read: a page that hasn't moved by now won't.
    /// For a successor, which can't know whether an order was still given.
    pub fn orders_are_done(&self) {
        let directory = self.exclusive();
        let filling: Vec<(SlotId, Standing)> = {
            let names = self.names.lock();
            let own = names.iter().filter(|(_, standing)| {
                standing.slot.is_of(&self.pool) && standing.slot.phase() == Phase::Filling
            });
            own.map(|(id, standing)| (id, standing.clone())).collect()
        };
        for (id, standing) in filling {
            for run in &standing.runs {
                run.region.lock().not_moved(run.first, run.pages);
            }
            standing.slot.settle(Phase::Failed);
            self.names.lock().forget(id);
        }
        drop(directory);
        self.kick();
    }
}
