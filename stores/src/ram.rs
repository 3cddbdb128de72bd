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
//! A store may be told to compress only what lies idle again, or what is large ([`Recompress`]), and to put what stays into another store ([`Writeback`]):
//! so is [`zram`](crate::zram) made.
//!
//! What a store holds is in [`Stats::memory_bytes`]: pages of the memfd with anything in them or kept warm, slabs' and index's
//! bookkeeping, dictionaries and zstd's tables for them. Not in it: each thread's codec state, used by all stores of the process (about 13 KiB for lz4; zstd's own contexts).

mod arena;
mod builder;
mod classes;
pub(crate) mod codec;
mod compact;
mod counts;
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
mod fetching;
pub(crate) mod filled;
pub(crate) mod index;
mod kinds;
pub(crate) mod object;
mod pool;
mod putting;
mod same;
mod writeback;

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use userswap_store::{
    Budget, Capabilities, Fetch, Handle, Maintained, Page, PageKey, Stats, Store, StoreError, Waiter, Wanted,
    check_put, check_run,
};

use crate::calls::Count;
use crate::clock::{self, Clock};
pub use builder::Builder;
pub use codec::Codec;
use codec::with_scratch;
pub use densify::Recompress;
use densify::Sweep;
use dictionaries::Dictionaries;
use fetching::Got;
use index::{Cursor, EntryId, Index, Named, filled_is_of, named};
pub use kinds::Kinds;
use object::Form;
use pool::{Held, Pool};
use same::Same;
use writeback::Back;
pub use writeback::Writeback;

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
    /// How what stays is compressed again.
    dense: Option<Recompress>,
    sweep: Mutex<Sweep>,
    /// Equal pages are stored once.
    same: Option<Same>,
    /// Where what stays goes.
    back: Option<Back>,
    clock: Clock,
    recompressed: Count,
    compacted_bytes: Count,
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
        // Only a whole object says for sure which dictionary it needs, or where it is; that of a damaged one stays as long as the store.
        let needs =
            form.is_some_and(|form| form.with_dictionary() || matches!(form, Form::Elsewhere | Form::Same));
        let object = if needs { object::verified(bytes) } else { None };
        let (dictionary, elsewhere, same) = object
            .map_or((None, None, None), |object| (object.dictionary(), object.elsewhere(), object.same_as()));
        object::retire(bytes);
        let Some(slot) = shard.remove(id, form, len, undo) else { return false };
        let released = dictionary.and_then(|id| shard.let_go(id));
        drop(shard);
        self.pool.give(slot, &self.held);
        if let Some(dictionary) = released {
            self.dictionaries.release(&dictionary, &self.pool, &self.held);
        }
        if let Some(handle) = elsewhere {
            self.free_elsewhere(handle);
        }
        if let Some(bytes) = same {
            self.free_same(bytes);
        }
        true
    }

    /// What is put from now on is as old as now.
    fn look_at_clock(&self) {
        if self.index.keeps_ages() {
            self.index.set_now(clock::second((self.clock)()));
        }
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
        self.look_at_clock();
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

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.capabilities.check_buffer(out)?;
        match with_scratch(|scratch| self.fetch_one(scratch, handle, key, out))? {
            Got::Ready => Ok(Fetch::Ready),
            Got::Elsewhere(want) => {
                let mut results = [Ok(Fetch::Ready)];
                self.fetch_elsewhere(&[(0, want)], out, &mut results, waiter);
                let [result] = results;
                result
            }
        }
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
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        let page_size = self.capabilities.page_size;
        check_run(page_size, wanted, out, results)?;
        let mut elsewhere = Vec::new();
        with_scratch(|scratch| {
            let pages = out.chunks_exact_mut(page_size).zip(results.iter_mut());
            for (place, (want, (page, result))) in wanted.iter().zip(pages).enumerate() {
                let got = self.fetch_one(scratch, want.handle, want.key, page);
                if let Ok(Got::Elsewhere(want)) = got {
                    elsewhere.push((place, want));
                }
                *result = got.map(|_| Fetch::Ready);
            }
        });
        self.fetch_elsewhere(&elsewhere, out, results, waiter);
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        for handle in handles {
            self.free_one(*handle, false);
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.own_stats(&self.index.counts());
        if let Some(back) = &self.back {
            let there = back.settings.store.stats();
            stats.stored_bytes += there.stored_bytes;
            stats.memory_bytes += there.memory_bytes;
            stats.device_bytes += there.device_bytes;
            stats.incompressible_pages += there.incompressible_pages;
            stats.fetch_errors += there.fetch_errors;
        }
        stats
    }

    fn stored_len(&self, handle: Handle) -> Option<usize> {
        match named(handle)? {
            Named::Filled { .. } => Some(0),
            Named::Entry(id) => {
                let shard = self.index.look(id)?;
                shard.slot(id).map(|slot| object::stored_len(self.pool.bytes(slot)).0)
            }
        }
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        if let Some(same) = &self.same {
            tell("deduplicated_pages", self.index.counts().same);
            tell("deduplicated_objects", same.made.get().saturating_sub(same.ended.get()));
        }
        if self.dense.is_some() {
            tell("recompressed_pages", self.recompressed.get());
        }
        if let Some(back) = &self.back {
            if let Some(bytes) = back.allowance(self.index.now()) {
                tell("writeback_allowance_bytes", bytes);
            }
            back.settings.store.figures(&mut |name, figure| tell(&format!("backing_{name}"), figure));
        }
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        self.look_at_clock();
        let mut done = Maintained::default();
        let mut add = |part: Maintained| {
            done.moved_bytes = done.moved_bytes.saturating_add(part.moved_bytes);
            done.released_bytes += part.released_bytes;
            done.more |= part.more;
            Budget::bytes(budget.bytes.saturating_sub(done.moved_bytes))
        };
        let left = add(self.densify(budget));
        let left = add(self.write_back(left));
        self.forget_gone(self.index.counts().pages);
        let left = add(self.compact(left));
        if let Some(back) = &self.back {
            add(back.settings.store.maintain(left));
        }
        done
    }
}
