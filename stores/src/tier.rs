//! Stores in a stack, the fastest first: pages are put at the top and sink with age.
//!
//! * **Put**: into the first tier that has room; a tier that can't take a batch leaves it to the next. What takes more than [`admit`](Settings::admit) of a page there is handed on to
//!   the next tier at once, and so on to the last: in a tier of memory it saves none.
//! * **Down**: [`maintain`](Store::maintain) moves pages that nobody fetched for [`age`](Settings::age) a tier down, sooner where a tier is over nine tenths full, and
//!   at most [`rate`](Settings::rate) bytes a second. Only from tiers that answer at once: what is late may be under way when it would move.
//! * **Up**: a page that is fetched comes back to its program. What becomes of it when it leaves again depends on how long it had stayed: less than [`age`](Settings::age), and it
//!   goes to the top, however large it is, and down only after four times as long; longer, and it goes to the second tier, if that answers at once, for it would have gone there
//!   anyway. A page that stays stored though it is fetched (shared by a fork, say) is young again and stays where it is.
//! * **Fetches** go to whatever tier has the page. They wait for no move: the old copy stays until no fetch can be looking at it.
//!
//! A page costs 42 bytes of memory here, beside what its tier takes, and what came back is remembered in 256 KiB.

mod ages;
mod entry;
mod grace;
mod putting;
mod returns;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use userswap_store::{
    Budget, Capabilities, Durability, Fetch, FetchKind, Handle, Integrity, Maintained, Page, PageKey, Stats,
    Store, StoreError, Waiter, Wanted, check_put, check_run,
};

use crate::calls::Calls;
use crate::clock::{self, Clock};
use crate::slab::Table;
use ages::Ages;
use entry::Entry;
use grace::Grace;
use returns::Returns;
use sink::Sinking;

/// How pages go down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// What wasn't put or fetched for so long goes a tier down.
    pub age: Duration,
    /// So many bytes of pages a second go down at most; `None`: as many as there are.
    pub rate: Option<u64>,
    /// What takes more than this share of a page in a tier is put into the next; `None`, or 1: anything stays.
    pub admit: Option<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { age: Duration::from_secs(60), rate: Some(64 << 20), admit: Some(0.9) }
    }
}

/// A stack of stores.
pub struct Tier {
    tiers: Vec<Level>,
    table: Table<Entry>,
    /// Held by whoever looks up a page and asks its tier for it; waited for between moving pages and freeing their old copies.
    moves: Grace,
    returns: Returns,
    ages: Ages,
    settings: Settings,
    capabilities: Capabilities,
    clock: Clock,
    sinking: Mutex<Sinking>,
    calls: Calls,
}

struct Level {
    store: Arc<dyn Store>,
    /// It answers at once, so pages can go down from it.
    ready: bool,
    capacity: Option<u64>,
    /// For stores that answer at once.
    nobody: Waiter,
    hits: AtomicU64,
    /// Pages that went down from it, and puts that it left to the next.
    sunk: AtomicU64,
    passed: AtomicU64,
    /// Pages too large for it, that came straight to it, that came back soon and were put again.
    large: AtomicU64,
    straight: AtomicU64,
    kept: AtomicU64,
}

impl Tier {
    /// A stack of these, fastest first.
    ///
    /// # Errors
    /// [`Unsupported`](StoreError::Unsupported) if there are none, more than 255, or their pages differ in size.
    pub fn new(stores: Vec<Arc<dyn Store>>, settings: Settings) -> Result<Self, StoreError> {
        Self::with_clock(stores, settings, clock::from_now())
    }

    /// The same, by this clock.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_clock(
        stores: Vec<Arc<dyn Store>>,
        settings: Settings,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let all: Vec<_> = stores.iter().map(|store| store.capabilities()).collect();
        let Some(first) = all.first() else {
            return Err(StoreError::Unsupported { what: "a stack of no stores" });
        };
        if all.len() > usize::from(u8::MAX) {
            return Err(StoreError::Unsupported { what: "a stack of more than 255 stores" });
        }
        if all.iter().any(|capabilities| capabilities.page_size != first.page_size) {
            return Err(StoreError::Unsupported { what: "a stack of stores whose pages differ in size" });
        }
        let names: Vec<_> = all.iter().map(|capabilities| &*capabilities.name).collect();
        let mut capabilities = Capabilities::new(format!("tier:{}", names.join(">")), first.page_size);
        capabilities.max_batch = all.iter().map(|each| each.max_batch).min().unwrap_or(1);
        let late = all.iter().any(|each| each.fetch != FetchKind::Ready);
        capabilities.fetch = if late { FetchKind::Mixed } else { FetchKind::Ready };
        capabilities.durability = Durability::Process;
        capabilities.integrity = all.iter().map(|each| each.integrity).min().unwrap_or(Integrity::None);
        capabilities.encrypts = all.iter().all(|each| each.encrypts);
        capabilities.detects_same_filled = all.iter().all(|each| each.detects_same_filled);
        capabilities.deduplicates = all.iter().any(|each| each.deduplicates);
        capabilities.groups_pages = all.iter().any(|each| each.groups_pages);
        capabilities.maintains = true;
        let level = |(store, can): (Arc<dyn Store>, &Capabilities)| Level {
            store,
            ready: can.fetch == FetchKind::Ready,
            capacity: can.capacity,
            nobody: Waiter::none(),
            hits: AtomicU64::new(0),
            sunk: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            large: AtomicU64::new(0),
            straight: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        };
        let tiers: Vec<_> = stores.into_iter().zip(&all).map(level).collect();
        let ages = Ages::new(tiers.len());
        Ok(Self {
            tiers,
            table: Table::new(),
            moves: Grace::default(),
            returns: Returns::new(),
            ages,
            settings,
            capabilities,
            clock,
            sinking: Mutex::default(),
            calls: Calls::default(),
        })
    }

    /// Names what each of its stores was found to hold, in their order. What was on its way down when its process died is in two of them: the copy below goes.
    pub(crate) fn take_up(&self, found: Vec<Vec<(PageKey, Handle)>>) -> Vec<(PageKey, Handle)> {
        let now = self.second();
        let mut all: Vec<(PageKey, u8, Handle)> = Vec::with_capacity(found.iter().map(Vec::len).sum());
        for (tier, found) in (0..).zip(found) {
            all.extend(found.into_iter().map(|(key, inside)| (key, tier, inside)));
        }
        all.sort_unstable_by_key(|(key, tier, _)| (*key, *tier));
        let mut named: Vec<(PageKey, Handle)> = Vec::with_capacity(all.len());
        for (key, tier, inside) in all {
            if named.last().is_none_or(|(last, _)| *last != key) {
                named.push((key, self.table.insert(Entry::new(key, tier, inside, false, now))));
            } else if let Some(level) = self.tiers.get(usize::from(tier)) {
                level.store.free(&[inside]);
            }
        }
        named
    }

    fn second(&self) -> u32 {
        clock::second((self.clock)())
    }

    /// Puts a batch into the first of the tiers from `from` on that takes it; which one.
    fn put_from(
        &self,
        from: usize,
        pages: &[Page<'_>],
        handles: &mut [Option<Handle>],
    ) -> Result<u8, StoreError> {
        let mut result = Err(StoreError::Unsupported { what: "putting below the last tier" });
        for (number, level) in (0_u8..).zip(&self.tiers).skip(from) {
            result = level.store.put(pages, handles).map(|()| number);
            match &result {
                Ok(_) | Err(StoreError::Unsupported { .. }) => break,
                Err(_) => drop(level.passed.fetch_add(pages.len() as u64, Ordering::Relaxed)),
            }
        }
        result
    }

    /// Which tier has the page, and by which name there. It is young again.
    fn find(&self, want: &Wanted) -> Option<(&Level, Handle)> {
        let second = self.second();
        let (tier, inside) = self.table.with(want.handle, |entry| {
            entry.touch(second);
            (entry.tier, entry.inside)
        })?;
        Some((self.tiers.get(usize::from(tier))?, inside))
    }

    fn fetch_one(&self, want: &Wanted, out: &mut [u8], waiter: &Waiter) -> Result<Fetch, StoreError> {
        let Some((level, inside)) = self.find(want) else {
            return self.counted(Err(StoreError::NotFound { key: want.key }));
        };
        level.hits.fetch_add(1, Ordering::Relaxed);
        let waiter = if level.ready { &level.nobody } else { waiter };
        self.counted(level.store.fetch(inside, want.key, out, waiter))
    }

    fn counted(&self, result: Result<Fetch, StoreError>) -> Result<Fetch, StoreError> {
        let count = if result.is_ok() { &self.calls.fetches } else { &self.calls.fetch_errors };
        count.add(1);
        result
    }

    /// How many pages from the first on lie in the same tier that answers late, and their names there.
    fn late_stretch(&self, wanted: &[Wanted]) -> Option<(&Level, Vec<Wanted>)> {
        let (first, _) = self.find(wanted.first()?).filter(|(level, _)| !level.ready)?;
        let same = |want: &Wanted| {
            let (level, handle) = self.find(want)?;
            std::ptr::eq(level, first).then_some(Wanted { handle, key: want.key })
        };
        Some((first, wanted.iter().map_while(same).collect()))
    }
}

impl Store for Tier {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities, pages, handles)?;
        self.put_all(pages, handles).inspect_err(|error| {
            self.calls.full.add(matches!(error, StoreError::Full { .. }).into());
        })?;
        self.calls.puts.add(pages.len() as u64);
        Ok(())
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let _no_move_ends = self.moves.hold();
        self.fetch_one(&Wanted { handle, key }, out, waiter)
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        let page_size = self.capabilities.page_size;
        check_run(page_size, wanted, out, results)?;
        let _no_move_ends = self.moves.hold();
        let mut at = 0;
        while at < wanted.len() {
            let each = waiter.for_place(at as u64);
            let stretch = self.late_stretch(&wanted[at..]).filter(|(_, inside)| inside.len() > 1);
            let Some((level, inside)) = stretch else {
                let page = &mut out[at * page_size..(at + 1) * page_size];
                results[at] = self.fetch_one(&wanted[at], page, &each);
                at += 1;
                continue;
            };
            let to = at + inside.len();
            level.hits.fetch_add(inside.len() as u64, Ordering::Relaxed);
            let (bytes, some) = (&mut out[at * page_size..to * page_size], &mut results[at..to]);
            level.store.fetch_run(&inside, bytes, some, &each)?;
            let failed = some.iter().filter(|result| result.is_err()).count() as u64;
            self.calls.fetch_errors.add(failed);
            self.calls.fetches.add(some.len() as u64 - failed);
            at = to;
        }
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        let now = self.second();
        for handle in handles {
            let entry = self.table.remove(*handle);
            let level = entry.as_ref().and_then(|entry| self.tiers.get(usize::from(entry.tier)));
            let count = match (entry.as_ref(), level) {
                (Some(entry), Some(level)) => {
                    level.store.free(&[entry.inside]);
                    if let Some(stay) = entry.stay() {
                        self.returns.note(entry.key(), stay, now);
                    }
                    &self.calls.frees
                }
                _ => &self.calls.bad_frees,
            };
            count.add(1);
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for level in &self.tiers {
            let each = level.store.stats();
            stats.pages += each.pages;
            stats.raw_bytes += each.raw_bytes;
            stats.stored_bytes += each.stored_bytes;
            stats.memory_bytes += each.memory_bytes;
            stats.device_bytes += each.device_bytes;
            stats.same_filled_pages += each.same_filled_pages;
            stats.incompressible_pages += each.incompressible_pages;
        }
        stats.memory_bytes += self.table.bytes() + self.returns.bytes();
        self.calls.tell(&mut stats);
        stats
    }

    fn stored_len(&self, handle: Handle) -> Option<usize> {
        let _no_move_ends = self.moves.hold();
        let (tier, inside) = self.table.with(handle, |entry| (entry.tier, entry.inside))?;
        self.tiers.get(usize::from(tier))?.store.stored_len(inside)
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        for (number, level) in self.tiers.iter().enumerate() {
            let stats = level.store.stats();
            for (what, figure) in [
                ("pages", stats.pages),
                ("stored_bytes", stats.stored_bytes),
                ("memory_bytes", stats.memory_bytes),
                ("device_bytes", stats.device_bytes),
                ("capacity_bytes", level.capacity.unwrap_or(0)),
                ("hits", level.hits.load(Ordering::Relaxed)),
                ("sunk", level.sunk.load(Ordering::Relaxed)),
                ("passed", level.passed.load(Ordering::Relaxed)),
                ("too_large", level.large.load(Ordering::Relaxed)),
                ("put_straight", level.straight.load(Ordering::Relaxed)),
                ("kept", level.kept.load(Ordering::Relaxed)),
            ] {
                tell(&format!("tier{number}_{what}"), figure);
            }
            self.ages.tell(number, tell);
            level.store.figures(&mut |name, figure| tell(&format!("tier{number}_{name}"), figure));
        }
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        let mut done = self.sink(budget);
        for level in &self.tiers {
            let left = Budget::bytes(budget.bytes.saturating_sub(done.moved_bytes));
            let each = level.store.maintain(left);
            done.moved_bytes = done.moved_bytes.saturating_add(each.moved_bytes);
            done.released_bytes += each.released_bytes;
            done.more |= each.more;
        }
        done.released_bytes += self.table.trim();
        done
    }
}
