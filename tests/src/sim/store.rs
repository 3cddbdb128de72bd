//! A store that forgets nothing anybody does to it, and behaves as badly as a store may.

use super::memory::{Shared, token_of, write_token};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use userswap_store::{
    Capabilities, Fetch, FetchKind, Handle, Page, PageKey, Stats, Store, StoreError, Waiter, check_put,
};
use userswap_uffd::page_size;

/// How badly it behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Answers later, this often in 8 fetches.
    pub late: u32,
    /// Fails for good, this often in 256 fetches.
    pub fails: u32,
    /// Fails for the moment, this often in 32 fetches.
    pub falters: u32,
    /// Is full, this often in 16 puts.
    pub full: u32,
}

impl Manners {
    /// The best.
    pub const GOOD: Self = Self { late: 0, fails: 0, falters: 0, full: 0 };
}

/// Pages by handle, as tokens.
pub struct SimStore {
    machine: Shared,
    may_be_late: bool,
    held: Mutex<Held>,
}

struct Held {
    manners: Manners,
    pages: HashMap<Handle, Object>,
    late: Vec<Late>,
    next: u64,
}

struct Object {
    key: PageKey,
    token: u64,
    awaited: u32,
}

/// A fetch that hasn't been answered.
struct Late {
    handle: Handle,
    key: PageKey,
    waiter: Waiter,
}

impl SimStore {
    /// An empty store.
    pub fn new(machine: &Shared, manners: Manners) -> Arc<Self> {
        let held = Held { manners, pages: HashMap::new(), late: Vec::new(), next: 0 };
        Arc::new(Self { machine: Arc::clone(machine), may_be_late: manners.late > 0, held: Mutex::new(held) })
    }

    /// From now on it behaves.
    pub fn behave(&self) {
        self.held.lock().manners = Manners::GOOD;
    }

    /// Pages held.
    pub fn len(&self) -> usize {
        self.held.lock().pages.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fetches not answered yet.
    pub fn awaited(&self) -> usize {
        self.held.lock().late.len()
    }

    /// What it holds, for a successor of whoever it answered: he won't be answered any more, and calls everything by other names.
    pub(super) fn found(&self) -> Vec<(PageKey, Handle)> {
        let mut held = self.held.lock();
        let late = std::mem::take(&mut held.late);
        let mut pages: Vec<Object> = std::mem::take(&mut held.pages).into_values().collect();
        pages.sort_unstable_by_key(|object| object.key);
        let mut found = Vec::with_capacity(pages.len());
        for object in pages {
            held.next += 1;
            if let Some(name) = Handle::from_raw(held.next) {
                found.push((object.key, name));
                held.pages.insert(name, Object { awaited: 0, ..object });
            }
        }
        drop(held);
        drop(late);
        found
    }

    /// Answers one of them.
    pub fn answer_one(&self) {
        let (late, outcome) = {
            let mut held = self.held.lock();
            if held.late.is_empty() {
                return;
            }
            let mut machine = self.machine.lock();
            let at = machine.rng.index(held.late.len());
            let late = held.late.swap_remove(at);
            let fails = machine.rng.chance(held.manners.fails, 256);
            let Some(object) = held.pages.get_mut(&late.handle) else {
                machine.fail(|| format!("{:?} was freed while a fetch of it was under way", late.handle));
                return;
            };
            object.awaited -= 1;
            let outcome = if fails { Err(object.token) } else { Ok(object.token) };
            if fails {
                machine.lost.insert(object.token);
            }
            machine.note(|| format!("the store answers for {}: {outcome:?}", late.key));
            (late, outcome)
        };
        let mut page = vec![0; page_size()];
        match outcome {
            Ok(token) => {
                write_token(&mut page, token);
                late.waiter.complete(Ok(&page));
            }
            Err(_) => late.waiter.complete(Err(StoreError::Corrupt { key: late.key, what: "simulated" })),
        }
    }
}

impl Store for SimStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("sim", page_size());
        capabilities.fetch = if self.may_be_late { FetchKind::Mixed } else { FetchKind::Ready };
        capabilities
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities(), pages, handles)?;
        let mut held = self.held.lock();
        let mut machine = self.machine.lock();
        if machine.rng.chance(held.manners.full, 16) {
            return Err(StoreError::Full { needed: 1, available: 0, capacity: 0 });
        }
        for (page, handle) in pages.iter().zip(handles) {
            held.next += 1;
            let Some(token) = token_of(page.bytes) else {
                machine.fail(|| format!("a torn page was put: {}", page.key));
                return Err(StoreError::Closed);
            };
            *handle = Handle::from_raw(held.next);
            if let Some(name) = *handle {
                held.pages.insert(name, Object { key: page.key, token, awaited: 0 });
                machine.note(|| format!("{name:?} holds {token} for {}", page.key));
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
        let mut held = self.held.lock();
        let Held { manners, pages, late, .. } = &mut *held;
        let mut machine = self.machine.lock();
        let Some(object) = pages.get_mut(&handle).filter(|object| object.key == key) else {
            machine.fail(|| format!("{handle:?} is fetched as {key}, which it isn't"));
            return Err(StoreError::NotFound { key });
        };
        if machine.rng.chance(manners.fails, 256) {
            machine.lost.insert(object.token);
            return Err(StoreError::Corrupt { key, what: "simulated" });
        }
        if machine.rng.chance(manners.falters, 32) {
            // So often that a page may be given up for it.
            machine.lost.insert(object.token);
            return Err(StoreError::Io { doing: "simulating", source: io::ErrorKind::TimedOut.into() });
        }
        if machine.rng.chance(manners.late, 8) {
            object.awaited += 1;
            late.push(Late { handle, key, waiter: waiter.clone() });
            return Ok(Fetch::Pending);
        }
        write_token(out, object.token);
        Ok(Fetch::Ready)
    }

    fn free(&self, handles: &[Handle]) {
        let mut held = self.held.lock();
        let mut machine = self.machine.lock();
        for handle in handles {
            machine.note(|| format!("{handle:?} is freed"));
            match held.pages.remove(handle) {
                None => machine.fail(|| format!("{handle:?} is freed twice")),
                Some(object) if object.awaited > 0 => {
                    machine.fail(|| format!("{handle:?} is freed while a fetch of it is under way"));
                }
                Some(_) => {}
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        stats.pages = self.len() as u64;
        stats
    }
}
