//! A plain store that keeps the laws, and can be made to break them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Ask;
use crate::{
    Budget, Capabilities, Fetch, FetchKind, Handle, Maintained, Page, PageKey, Stats, Store, StoreError,
    Waiter, Wanted, check_put, check_run,
};

const PAGE_SIZE: usize = 4096;

/// Pages in a map, uncompressed, under one lock: what a store does, with nothing in the way of reading it.
pub struct Reference {
    capacity: Option<u64>,
    defect: Option<Defect>,
    late: bool,
    state: Mutex<State>,
}

/// A way to be wrong, one for each kind of mistake stores make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// A handle is used again at once, and its old holder gets the new page.
    WrongPage,
    /// The key isn't looked at.
    KeyIgnored,
    /// The last byte is lost.
    LostByte,
    /// Pages are stored when they are first fetched, not when they are put.
    KeptReference,
    /// A batch that fails leaves its first pages behind.
    TornBatch,
    /// A run ends at the first page that fails.
    RunStopsAtError,
    /// Freed memory isn't used again.
    LeakedSlot,
    /// A free takes effect at the next one.
    LateFree,
    /// A full store says the page was put.
    LostError,
    /// Maintenance drops a page.
    CompactionLoss,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<Handle, (PageKey, Vec<u8>)>,
    last_handle: u64,
    freed: Vec<Handle>,
    leaked: u64,
    stats: Stats,
    first_batch_seen: HashMap<PageKey, usize>,
}

impl Reference {
    /// A store of 4096-byte pages with this capacity, and perhaps a defect.
    pub fn new(ask: &Ask, defect: Option<Defect>) -> Self {
        Self { capacity: ask.capacity, defect, late: false, state: Mutex::default() }
    }

    /// The same, but every second fetch is answered later, by another thread.
    #[must_use]
    pub fn answering_late(self) -> Self {
        Self { late: true, ..self }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_one(&self, state: &mut State, page: &Page<'_>) -> Result<Handle, StoreError> {
        let available = self.capacity.unwrap_or(u64::MAX).saturating_sub(state.memory());
        if available < PAGE_SIZE as u64 {
            state.stats.full += 1;
            if !self.has(Defect::LostError) {
                let capacity = self.capacity.unwrap_or(u64::MAX);
                return Err(StoreError::Full { needed: PAGE_SIZE as u64, available, capacity });
            }
        }
        let reused = if self.has(Defect::WrongPage) { state.freed.pop() } else { None };
        let fresh = Handle::from_raw(state.last_handle + 1).unwrap_or(Handle::MIN);
        let handle = reused.unwrap_or(fresh);
        state.last_handle = state.last_handle.max(handle.into_raw());
        let mut bytes = page.bytes.to_vec();
        if self.has(Defect::LostByte)
            && let Some(last) = bytes.last_mut()
        {
            *last = 0;
        }
        if self.has(Defect::KeptReference) {
            state.first_batch_seen.insert(page.key, page.bytes.as_ptr().addr());
        }
        if available >= PAGE_SIZE as u64 {
            state.pages.insert(handle, (page.key, bytes));
        }
        state.stats.puts += 1;
        Ok(handle)
    }

    fn look_up(&self, handle: Handle, key: PageKey) -> Result<Vec<u8>, StoreError> {
        let mut state = self.state();
        state.stats.fetches += 1;
        let found = state.pages.get(&handle).cloned();
        let trusting = self.has(Defect::KeyIgnored) || self.has(Defect::WrongPage);
        match found {
            Some((_, bytes)) if self.has(Defect::KeptReference) => {
                // As if the caller's buffer, written to since, were looked at only now.
                let seen = state.first_batch_seen.get(&key).copied().unwrap_or(0);
                let latest =
                    state.first_batch_seen.iter().filter(|(_, at)| **at == seen).map(|(key, _)| *key).max();
                let newest = latest.and_then(|key| state.pages.values().find(|(of, _)| *of == key));
                Ok(newest.map_or(bytes, |(_, bytes)| bytes.clone()))
            }
            Some((of, bytes)) if of == key || trusting => Ok(bytes),
            _ => {
                state.stats.fetch_errors += 1;
                Err(StoreError::NotFound { key })
            }
        }
    }
}

impl State {
    fn memory(&self) -> u64 {
        (self.pages.len() as u64 + self.leaked) * PAGE_SIZE as u64
    }

    fn remove(&mut self, handle: Handle) {
        if self.pages.remove(&handle).is_some() {
            self.stats.frees += 1;
            self.freed.push(handle);
        } else {
            self.stats.bad_frees += 1;
        }
    }
}

impl Store for Reference {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("reference", PAGE_SIZE);
        capabilities.capacity = self.capacity;
        capabilities.max_batch = 64;
        capabilities.maintains = true;
        capabilities.fetch = if self.late { FetchKind::Mixed } else { FetchKind::Ready };
        capabilities
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities(), pages, handles)?;
        let mut state = self.state();
        for at in 0..pages.len() {
            match self.put_one(&mut state, &pages[at]) {
                Ok(handle) => handles[at] = Some(handle),
                Err(error) => {
                    for handle in handles.iter_mut().filter_map(Option::take) {
                        if !self.has(Defect::TornBatch) {
                            state.pages.remove(&handle);
                            state.stats.puts -= 1;
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        if out.len() != PAGE_SIZE {
            return Err(StoreError::Unsupported { what: "a buffer that isn't page_size long" });
        }
        let page = self.look_up(handle, key);
        if self.late && key.page.is_multiple_of(2) {
            let waiter = waiter.clone();
            std::thread::spawn(move || match page {
                Ok(page) => waiter.complete(Ok(&page)),
                Err(error) => waiter.complete(Err(error)),
            });
            return Ok(Fetch::Pending);
        }
        out.copy_from_slice(&page?);
        Ok(Fetch::Ready)
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        check_run(PAGE_SIZE, wanted, out, results)?;
        let mut each = waiter.clone();
        let mut stopped = false;
        for ((want, page), result) in wanted.iter().zip(out.chunks_exact_mut(PAGE_SIZE)).zip(results) {
            *result = if stopped {
                Err(StoreError::NotFound { key: want.key })
            } else {
                self.fetch(want.handle, want.key, page, &each)
            };
            stopped = result.is_err() && self.has(Defect::RunStopsAtError);
            each.advance();
        }
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        let mut state = self.state();
        for handle in handles {
            match self.defect {
                Some(Defect::LateFree) => {
                    let late = state.freed.pop();
                    if let Some(late) = late {
                        state.remove(late);
                        state.freed.clear();
                    }
                    state.freed.push(*handle);
                }
                Some(Defect::LeakedSlot) => {
                    state.remove(*handle);
                    state.leaked += 1;
                }
                _ => state.remove(*handle),
            }
        }
    }

    fn stats(&self) -> Stats {
        let state = self.state();
        let pages = state.pages.len() as u64;
        let raw_bytes = pages * PAGE_SIZE as u64;
        let memory_bytes = state.memory();
        Stats {
            pages,
            raw_bytes,
            stored_bytes: raw_bytes,
            memory_bytes,
            incompressible_pages: pages,
            ..state.stats
        }
    }

    fn maintain(&self, _: Budget) -> Maintained {
        let mut state = self.state();
        if self.has(Defect::CompactionLoss) {
            state.pages.pop_first();
        }
        Maintained::default()
    }
}
