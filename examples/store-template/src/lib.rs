//! A store to start one's own from: pages in a map, as they came, but for those that are one word repeated.
//!
//! `cargo test` runs the laws of the conformance kit on it. `cargo build --release` makes `libstore_template.so`, which is used as
//! `userswap run --store 'plugin:/path/to/libstore_template.so?capacity=1G'`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use userswap_store::plugin::Config;
use userswap_store::{
    Capabilities, Fetch, Handle, Page, PageKey, Stats, Store, StoreError, Waiter, check_put,
};

userswap_store::export_store!(c"template", open);

/// What `plugin:/path.so?…` opens. Options are refused: there are none yet.
fn open(config: &Config<'_>) -> Result<Arc<dyn Store>, StoreError> {
    if let Some((key, _)) = config.each().next() {
        let source = std::io::Error::other(format!("there is no option {key}"));
        return Err(StoreError::Io { doing: "reading the options", source });
    }
    Ok(Arc::new(Template::new(config.page_size, config.capacity)))
}

/// The store. Its methods are called by several threads at once: one lock holds all of it together.
pub struct Template {
    page_size: usize,
    capacity: Option<u64>,
    /// Beside the lock, which fetches share.
    fetches: AtomicU64,
    fetch_errors: AtomicU64,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    objects: HashMap<Handle, Object>,
    /// Handles count up and are never used again, so a stale one names nothing.
    last: u64,
    stats: Stats,
}

/// A stored page. Its key is kept beside it: whoever asks for another page under this handle gets none.
struct Object {
    key: PageKey,
    bytes: Bytes,
}

enum Bytes {
    /// The word that the page is made of.
    Filled([u8; 8]),
    Whole(Box<[u8]>),
}

/// Memory for an object without its page: its place in the map, of which about half are free, and what an allocation takes beside.
const HEAD: u64 = 128;

impl Template {
    /// A store that holds at most `capacity` bytes.
    pub fn new(page_size: usize, capacity: Option<u64>) -> Self {
        Self {
            page_size,
            capacity,
            fetches: AtomicU64::new(0),
            fetch_errors: AtomicU64::new(0),
            state: RwLock::default(),
        }
    }

    fn pack(&self, page: &[u8]) -> Bytes {
        match page.first_chunk::<8>() {
            Some(word) if page.chunks(8).all(|chunk| chunk == word) => Bytes::Filled(*word),
            _ => Bytes::Whole(page.into()),
        }
    }

    fn object_size(&self, bytes: &Bytes) -> u64 {
        match bytes {
            Bytes::Filled(_) => HEAD,
            Bytes::Whole(page) => HEAD + page.len() as u64,
        }
    }
}

impl Store for Template {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("template", self.page_size);
        capabilities.capacity = self.capacity;
        capabilities.detects_same_filled = true;
        capabilities
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities(), pages, handles)?;
        // All or nothing: what it takes is known before anything is changed.
        let packed: Vec<Bytes> = pages.iter().map(|page| self.pack(page.bytes)).collect();
        let needed: u64 = packed.iter().map(|bytes| self.object_size(bytes)).sum();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(capacity) = self.capacity {
            let available = capacity.saturating_sub(state.stats.memory_bytes);
            if needed > available {
                state.stats.full += 1;
                return Err(StoreError::Full { needed, available, capacity });
            }
        }
        for ((page, bytes), handle) in pages.iter().zip(packed).zip(handles) {
            state.last += 1;
            let name = Handle::from_raw(state.last).ok_or(StoreError::Closed)?;
            state.count(&bytes, self.object_size(&bytes), 1);
            state.stats.puts += 1;
            state.objects.insert(name, Object { key: page.key, bytes });
            *handle = Some(name);
        }
        Ok(())
    }

    fn fetch(&self, handle: Handle, key: PageKey, out: &mut [u8], _: &Waiter) -> Result<Fetch, StoreError> {
        if out.len() != self.page_size {
            return Err(StoreError::Unsupported { what: "a buffer that isn't page_size long" });
        }
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match state.objects.get(&handle).filter(|object| object.key == key) {
            Some(Object { bytes: Bytes::Filled(word), .. }) => {
                for chunk in out.chunks_mut(8) {
                    chunk.copy_from_slice(&word[..chunk.len()]);
                }
            }
            Some(Object { bytes: Bytes::Whole(page), .. }) => out.copy_from_slice(page),
            None => {
                self.fetch_errors.fetch_add(1, Ordering::Relaxed);
                return Err(StoreError::NotFound { key });
            }
        }
        Ok(Fetch::Ready)
    }

    fn free(&self, handles: &[Handle]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for handle in handles {
            match state.objects.remove(handle) {
                Some(object) => {
                    state.count(&object.bytes, self.object_size(&object.bytes), -1);
                    state.stats.frees += 1;
                }
                None => state.stats.bad_frees += 1,
            }
        }
    }

    fn stats(&self) -> Stats {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut stats = state.stats;
        stats.pages = state.objects.len() as u64;
        stats.raw_bytes = stats.pages * self.page_size as u64;
        stats.stored_bytes = stats.memory_bytes;
        stats.fetches = self.fetches.load(Ordering::Relaxed);
        stats.fetch_errors = self.fetch_errors.load(Ordering::Relaxed);
        stats
    }
}

impl State {
    /// Counts an object in or out.
    fn count(&mut self, bytes: &Bytes, size: u64, by: i64) {
        let pages = match bytes {
            Bytes::Filled(_) => &mut self.stats.same_filled_pages,
            Bytes::Whole(_) => &mut self.stats.incompressible_pages,
        };
        *pages = pages.saturating_add_signed(by);
        let memory = &mut self.stats.memory_bytes;
        *memory = if by > 0 { *memory + size } else { memory.saturating_sub(size) };
    }
}
