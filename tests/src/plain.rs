//! A store that does nothing clever: pages in a map, every misuse noted.

use parking_lot::Mutex;
use std::collections::HashMap;
use userswap_store::{
    Capabilities, Fetch, Handle, Page, PageKey, Stats, Store, StoreError, Waiter, check_put,
};

/// Pages by handle, with the keys they were put under.
#[derive(Default)]
pub struct PlainStore {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    pages: HashMap<Handle, (PageKey, Vec<u8>)>,
    next: u64,
    freed_twice: u64,
}

impl PlainStore {
    /// Handles freed that named nothing.
    pub fn freed_twice(&self) -> u64 {
        self.held.lock().freed_twice
    }

    /// Pages held.
    pub fn len(&self) -> usize {
        self.held.lock().pages.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Store for PlainStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new("plain", userswap_uffd::page_size())
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities(), pages, handles)?;
        let mut held = self.held.lock();
        for (page, handle) in pages.iter().zip(handles) {
            held.next += 1;
            let Some(name) = Handle::from_raw(held.next) else { return Err(StoreError::Closed) };
            held.pages.insert(name, (page.key, page.bytes.to_vec()));
            *handle = Some(name);
        }
        Ok(())
    }

    fn fetch(&self, handle: Handle, key: PageKey, out: &mut [u8], _: &Waiter) -> Result<Fetch, StoreError> {
        match self.held.lock().pages.get(&handle) {
            Some((put_under, bytes)) if *put_under == key => {
                out.copy_from_slice(bytes);
                Ok(Fetch::Ready)
            }
            _ => Err(StoreError::NotFound { key }),
        }
    }

    fn free(&self, handles: &[Handle]) {
        let mut held = self.held.lock();
        for handle in handles {
            if held.pages.remove(handle).is_none() {
                held.freed_twice += 1;
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        stats.pages = self.len() as u64;
        stats
    }
}
