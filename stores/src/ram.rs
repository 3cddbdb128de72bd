//! Compressed pages in memory.
//!
//! A page is compressed on the calling thread, outside any lock, and copied into a slot of a size-classed pool in a sparse memfd. A fetch
//! decompresses from the slot straight into the caller's buffer. Pages that repeat four bytes live in their handle and take no memory.
//! Each object carries its key and a checksum, so a fetch finds out if the bytes aren't the page's, and a
//! successor of a dead process finds every object in the memfd ([`Builder::rebuild`]).
//!
//! With zstd, each owner of many pages gets a **dictionary**: trained by [`maintain`](Store::maintain) on some of its pages, kept in the memfd beside
//! them as long as an object needs it, and used for what the owner puts from then on. Pages put before are compressed again,
//! also by `maintain`, and so are all that stay, once, at a level that is too slow for putting.
//!
//! What a store holds is in [`Stats::memory_bytes`]: pages of the memfd with anything in them or kept warm, slabs' and index's
//! bookkeeping, dictionaries and zstd's tables for them. Not in it: each thread's codec state, used by all stores of the process (about 13 KiB for lz4; zstd's own contexts).

mod arena;
mod builder;
mod classes;
pub(crate) mod codec;
mod compact;
mod densify;
mod dictionaries;
#[cfg_attr(
    not(feature = "ram-zstd"),
    allow(
        dead_code,
        unused_variables,
        unused_mut,
        unreachable_code,
        reason = "without zstd no dictionary is ever made"
    )
)]
mod dictionary;
pub(crate) mod filled;
pub(crate) mod index;
pub(crate) mod object;
mod pool;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use userswap_store::{
    Budget, Capabilities, Fetch, Handle, Maintained, Page, PageKey, Stats, Store, StoreError, Waiter, Wanted,
    check_put, check_run,
};

use arena::Slot;
pub use builder::Builder;
pub use codec::Codec;
use codec::{Scratch, decode_plainly, with_scratch};
use densify::Sweep;
use dictionaries::Dictionaries;
use dictionary::Dictionary;
use index::{Cursor, EntryId, Index, Named, filled_handle, filled_is_of, named};
use object::Form;
use pool::{Held, NoRoom, Pool};

/// A store of compressed pages in memory.
///
/// ```
/// # #[cfg(feature = "ram-lz4")] {
/// use userswap_store::{OwnerId, Page, PageKey, Store, Waiter};
/// use userswap_stores::ram::Ram;
///
/// let store = Ram::builder().capacity(64 << 20).build()?;
/// let key = PageKey { owner: OwnerId(1), page: 0x7f00, generation: 1 };
/// let text = "All happy families are alike. ".repeat(137);
/// let bytes = &text.as_bytes()[..4096];
/// let mut handle = [None];
/// store.put(&[Page { key, bytes }], &mut handle)?;
///
/// let mut back = [0; 4096];
/// if let Some(handle) = handle[0] {
///     store.fetch(handle, key, &mut back, &Waiter::none())?;
/// }
/// assert_eq!(bytes, back);
/// assert!(store.stats().stored_bytes < 200);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ram {
    codec: Codec,
    recoverable: bool,
    capabilities: Capabilities,
    pool: Pool,
    index: Index,
    held: Held,
    /// Same-filled pages that live in their handles.
    in_handles: AtomicU64,
    filled_puts: AtomicU64,
    filled_fetches: AtomicU64,
    full: AtomicU64,
    fetch_errors: AtomicU64,
    bad_frees: AtomicU64,
    cursor: Mutex<Cursor>,
    dictionaries: Dictionaries,
    /// The level at which what stays is compressed again.
    dense: Option<i32>,
    sweep: Mutex<Sweep>,
}

/// So many pages an owner has before it may get a dictionary, if it isn't said.
const DICTIONARY_FROM: u64 = 4096;

impl Ram {
    /// A builder with the defaults: lz4, 4096-byte pages, no capacity limit.
    #[cfg(feature = "ram-lz4")]
    pub fn builder() -> Builder {
        Self::with_codec(Codec::Lz4)
    }

    /// A builder for this codec, with the other defaults.
    pub fn with_codec(codec: Codec) -> Builder {
        Builder::new(codec)
    }

    /// The memfd the objects are in: for a keeper that outlives this process, or for mapping read-only elsewhere.
    ///
    /// Nobody may write to it while this store lives.
    pub fn arena_file(&self) -> &File {
        self.pool.arena().file()
    }

    fn put_one(&self, scratch: &mut Scratch, page: &Page<'_>) -> Result<Handle, NoRoom> {
        let word = filled::repeated_word(page.bytes);
        let owner = match word {
            Some(_) => None,
            None => self.dictionaries.owner(page.key.owner, &self.held),
        };
        let dictionary = owner.as_ref().and_then(|owner| owner.current());
        let result = self.put_with(scratch, page, word, dictionary.as_ref());
        if let Some(dictionary) = &dictionary {
            self.dictionaries.release(dictionary, &self.pool, &self.held);
        }
        let (handle, form, len) = result?;
        if let Some(owner) = owner.filter(|_| form.is_zstd()) {
            owner.note(handle, page.key, len, &self.held);
        }
        Ok(handle)
    }

    /// Puts a page that repeats `word`, or is compressed with this dictionary, of which the caller is a user. The form, and
    /// the object's bytes.
    fn put_with(
        &self,
        scratch: &mut Scratch,
        page: &Page<'_>,
        word: Option<u64>,
        dictionary: Option<&Arc<Dictionary>>,
    ) -> Result<(Handle, Form, usize), NoRoom> {
        let (form, object) = match word {
            Some(word) => match filled::repeated_half(word) {
                Some(half) if !self.recoverable => {
                    self.in_handles.fetch_add(1, Ordering::Relaxed);
                    self.filled_puts.fetch_add(1, Ordering::Relaxed);
                    return Ok((filled_handle(page.key, half), Form::Filled, 0));
                }
                _ => (Form::Filled, scratch.plain(&word.to_le_bytes())),
            },
            None => match dictionary {
                Some(dictionary) => {
                    scratch.encode_with(dictionary.prepared().coder(), dictionary.id(), page.bytes)
                }
                None => scratch.encode(self.codec, page.bytes),
            },
        };
        let dictionary = dictionary.filter(|_| form.with_dictionary());
        let mark = object::write_header(page.key, form, object);
        let mut slot = self.pool.take(object.len(), &self.held)?;
        object::commit(self.pool.bytes_mut(&mut slot), object, mark);
        match self.index.insert(page.key, slot, form, object.len(), dictionary, &self.held) {
            Ok(handle) => Ok((handle, form, object.len())),
            Err((slot, error)) => {
                self.drop_object(slot);
                Err(error)
            }
        }
    }

    /// Ends an object that has no entry.
    fn drop_object(&self, mut slot: Slot) {
        object::retire(self.pool.bytes_mut(&mut slot));
        self.pool.give(slot, &self.held);
    }

    /// Puts one page, making room from what lies idle if need be.
    fn put_with_room(&self, scratch: &mut Scratch, page: &Page<'_>) -> Result<Handle, StoreError> {
        let first = self.put_one(scratch, page);
        let result = match first {
            Err(NoRoom::Capacity { .. }) if self.give_back() > 0 => self.put_one(scratch, page),
            other => other,
        };
        result.map_err(|error| match error {
            NoRoom::Capacity { needed, available, capacity } => {
                self.full.fetch_add(1, Ordering::Relaxed);
                StoreError::Full { needed, available, capacity }
            }
            NoRoom::Arena(source) => StoreError::Io { doing: "making room in the arena", source },
        })
    }

    fn fetch_one(
        &self,
        scratch: &mut Scratch,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Result<Fetch, StoreError> {
        let result = match named(handle) {
            Some(Named::Entry(id)) => self.fetch_object(scratch, id, key, out),
            Some(Named::Filled { word, hash }) if filled_is_of(key, hash) => {
                filled::fill(out, u64::from(word) << 32 | u64::from(word));
                self.filled_fetches.fetch_add(1, Ordering::Relaxed);
                Ok(Fetch::Ready)
            }
            Some(Named::Filled { .. }) | None => Err(StoreError::NotFound { key }),
        };
        if result.is_err() {
            self.fetch_errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn fetch_object(
        &self,
        scratch: &mut Scratch,
        id: EntryId,
        key: PageKey,
        out: &mut [u8],
    ) -> Result<Fetch, StoreError> {
        let not_found = StoreError::NotFound { key };
        let Some(shard) = self.index.read(id) else { return Err(not_found) };
        let Some(slot) = shard.slot(id) else { return Err(not_found) };
        let bytes = self.pool.bytes(slot);
        let Some(object) = object::verified(bytes) else {
            return Err(StoreError::Corrupt { key, what: "checksum" });
        };
        if object.key != key {
            return Err(not_found);
        }
        let decoded = match object.dictionary() {
            Some(id) => match shard.dictionary(id) {
                Some(dictionary) => scratch.decode_with(dictionary.prepared(), object.payload, out),
                None => Err("dictionary"),
            },
            None => scratch.decode(object.form, object.payload, out),
        };
        decoded.map_err(|what| StoreError::Corrupt { key, what })?;
        Ok(Fetch::Ready)
    }

    /// As [`fetch_object`](Self::fetch_object), where it takes no scratch and the lock is to be had at once.
    fn decode_object(&self, id: EntryId, key: PageKey, out: &mut [u8]) -> Option<Result<(), StoreError>> {
        let not_found = StoreError::NotFound { key };
        let shard = match self.index.try_read(id) {
            Ok(shard) => shard?,
            Err(_) => return Some(Err(not_found)),
        };
        let Some(slot) = shard.slot(id) else { return Some(Err(not_found)) };
        let Some(object) = object::verified(self.pool.bytes(slot)) else {
            return Some(Err(StoreError::Corrupt { key, what: "checksum" }));
        };
        if object.key != key {
            return Some(Err(not_found));
        }
        let decoded = decode_plainly(object.form, object.payload, out)?;
        Some(decoded.map_err(|what| StoreError::Corrupt { key, what }))
    }

    fn free_one(&self, handle: Handle, undo: bool) {
        let freed = match named(handle) {
            Some(Named::Entry(id)) => self.free_object(id, undo),
            Some(Named::Filled { .. }) => {
                let one_less = |pages: u64| pages.checked_sub(1);
                let counted =
                    self.in_handles.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
                if counted && undo {
                    self.filled_puts.fetch_sub(1, Ordering::Relaxed);
                }
                counted
            }
            None => false,
        };
        if !freed {
            self.bad_frees.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn free_object(&self, id: EntryId, undo: bool) -> bool {
        let Some(mut shard) = self.index.write(id) else { return false };
        let Some(slot) = shard.slot_mut(id) else { return false };
        let bytes = self.pool.bytes_mut(slot);
        let (len, form) = object::stored_len(bytes);
        // Only a whole object says for sure which dictionary it needs; that of a damaged one stays as long as the store.
        let dictionary = if form.is_some_and(Form::with_dictionary) {
            object::verified(bytes).and_then(|object| object.dictionary())
        } else {
            None
        };
        object::retire(bytes);
        let Some(slot) = shard.remove(id, form, len, undo) else { return false };
        let released = dictionary.and_then(|id| shard.let_go(id));
        drop(shard);
        self.pool.give(slot, &self.held);
        if let Some(dictionary) = released {
            self.dictionaries.release(&dictionary, &self.pool, &self.held);
        }
        true
    }

    /// Gives idle memory back; answers how many bytes.
    fn give_back(&self) -> u64 {
        let before = self.held.bytes();
        self.pool.trim(&self.held);
        self.index.trim(&self.held);
        before.saturating_sub(self.held.bytes())
    }
}

impl Store for Ram {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities, pages, handles)?;
        if pages.iter().any(|page| page.key.page >= PageKey::PAGE_LIMIT) {
            return Err(StoreError::Unsupported { what: "a page number of more than 44 bits" });
        }
        with_scratch(|scratch| {
            for (page, handle) in pages.iter().zip(handles.iter_mut()) {
                *handle = Some(self.put_with_room(scratch, page)?);
            }
            Ok(())
        })
        .inspect_err(|_| {
            // Nobody was told these handles, so taking them back leaves no trace.
            for handle in handles.iter_mut().filter_map(Option::take) {
                self.free_one(handle, true);
            }
        })
    }

    fn fetch(&self, handle: Handle, key: PageKey, out: &mut [u8], _: &Waiter) -> Result<Fetch, StoreError> {
        self.capabilities.check_buffer(out)?;
        with_scratch(|scratch| self.fetch_one(scratch, handle, key, out))
    }

    fn fetch_in_handler(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Option<Result<(), StoreError>> {
        if let Err(error) = self.capabilities.check_buffer(out) {
            return Some(Err(error));
        }
        let result = match named(handle) {
            Some(Named::Entry(id)) => self.decode_object(id, key, out)?,
            Some(Named::Filled { word, hash }) if filled_is_of(key, hash) => {
                filled::fill(out, u64::from(word) << 32 | u64::from(word));
                self.filled_fetches.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Some(Named::Filled { .. }) | None => Err(StoreError::NotFound { key }),
        };
        if result.is_err() {
            self.fetch_errors.fetch_add(1, Ordering::Relaxed);
        }
        Some(result)
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        _: &Waiter,
    ) -> Result<(), StoreError> {
        let page_size = self.capabilities.page_size;
        check_run(page_size, wanted, out, results)?;
        with_scratch(|scratch| {
            for ((want, page), result) in wanted.iter().zip(out.chunks_exact_mut(page_size)).zip(results) {
                *result = self.fetch_one(scratch, want.handle, want.key, page);
            }
        });
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        for handle in handles {
            self.free_one(*handle, false);
        }
    }

    fn stats(&self) -> Stats {
        let counts = self.index.counts();
        let in_handles = self.in_handles.load(Ordering::Relaxed);
        let filled_puts = self.filled_puts.load(Ordering::Relaxed);
        let mut stats = Stats::default();
        stats.pages = counts.pages + in_handles;
        stats.raw_bytes = stats.pages * self.capabilities.page_size as u64;
        stats.stored_bytes = counts.stored_bytes + self.dictionaries.stored_bytes();
        stats.memory_bytes = self.held.bytes();
        stats.same_filled_pages = counts.filled + in_handles;
        stats.incompressible_pages = counts.raw;
        stats.puts = counts.puts + filled_puts;
        stats.fetches = counts.fetches + self.filled_fetches.load(Ordering::Relaxed);
        stats.frees = counts.frees + filled_puts.saturating_sub(in_handles);
        stats.full = self.full.load(Ordering::Relaxed);
        stats.fetch_errors = self.fetch_errors.load(Ordering::Relaxed);
        stats.bad_frees = self.bad_frees.load(Ordering::Relaxed);
        stats
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        let densified = self.densify(budget);
        let left = Budget::bytes(budget.bytes.saturating_sub(densified.moved_bytes));
        let mut done = self.compact(left);
        done.moved_bytes += densified.moved_bytes;
        done.more |= densified.more;
        done
    }
}
