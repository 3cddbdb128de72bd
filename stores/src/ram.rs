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
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use userswap_store::{
    Budget, Capabilities, Durability, Fetch, Handle, Integrity, Maintained, Page, PageKey, Stats, Store,
    StoreError, Waiter, Wanted, check_put, check_run,
};

use arena::{Arena, Slot};
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
        Builder {
            codec,
            page_size: 4096,
            capacity: None,
            recoverable: false,
            dictionary: Some(crate::spec::DICTIONARY),
            dictionary_from: DICTIONARY_FROM,
            dense: Some(crate::spec::DENSE),
        }
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
        if out.len() != self.capabilities.page_size {
            return Err(StoreError::Unsupported { what: "a buffer that isn't page_size long" });
        }
        with_scratch(|scratch| self.fetch_one(scratch, handle, key, out))
    }

    fn fetch_in_handler(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Option<Result<(), StoreError>> {
        if out.len() != self.capabilities.page_size {
            return Some(Err(StoreError::Unsupported { what: "a buffer that isn't page_size long" }));
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

/// Makes a [`Ram`].
#[derive(Clone, Debug)]
pub struct Builder {
    codec: Codec,
    page_size: usize,
    capacity: Option<u64>,
    recoverable: bool,
    dictionary: Option<usize>,
    dictionary_from: u64,
    dense: Option<i32>,
}

/// The arena's size where the store has no limit of its own: address space, not memory.
const UNLIMITED_ARENA: usize = 1 << 38;

impl Builder {
    /// How pages are compressed.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// The most memory the store may hold, in bytes.
    #[must_use]
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Bytes a page has: a power of two from 256 to 65536.
    #[must_use]
    pub fn page_size(mut self, bytes: usize) -> Self {
        self.page_size = bytes;
        self
    }

    /// Same-filled pages get an object of 32 bytes instead of living in their handles, so that
    /// [`rebuild`](Self::rebuild) finds them too.
    #[must_use]
    pub fn recoverable(mut self, yes: bool) -> Self {
        self.recoverable = yes;
        self
    }

    /// The most bytes of a dictionary, from 1 KiB to 1 MiB, or `None` for no dictionaries. 15 KiB if it isn't said. Only zstd has any.
    #[must_use]
    pub fn dictionary(mut self, bytes: Option<usize>) -> Self {
        self.dictionary = bytes;
        self
    }

    /// How many compressed pages an owner has before it may get a dictionary: 4096 if it isn't said. A dictionary takes some 120 KiB of memory
    /// (215 KiB from level 1 on), and isn't made if it saves less than that.
    #[must_use]
    pub fn dictionary_from(mut self, pages: u64) -> Self {
        self.dictionary_from = pages;
        self
    }

    /// The zstd level at which pages that stay are compressed again in the background, from −7 to 19, or `None` to leave them as they came:
    /// 6 if it isn't said. It takes several times as long as the default level to compress, and up to twice as long to decompress.
    /// Below the level pages come at it means nothing. Only zstd has it.
    #[must_use]
    pub fn dense(mut self, level: Option<i32>) -> Self {
        self.dense = level;
        self
    }

    /// The store, empty.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] for an impossible page size, level or size of a dictionary; [`StoreError::Io`] if there can be no arena.
    pub fn build(self) -> Result<Ram, StoreError> {
        self.check()?;
        // Twice the capacity, and two slabs a class: address space that fragmentation can't exhaust.
        let bytes = match self.capacity {
            Some(bytes) => {
                usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(2).saturating_add(128 << 20)
            }
            None => UNLIMITED_ARENA,
        };
        let arena = Arena::create(self.page_size, bytes)
            .map_err(|source| StoreError::Io { doing: "making an arena", source })?;
        Ok(self.over(arena))
    }

    /// The store whose objects are in a memfd a dead process left behind ([`Ram::arena_file`]), with the handle of each, sorted by key.
    ///
    /// Objects that aren't whole are dropped, as are those whose dictionary isn't, and the second of two under one key. Pages are read with whatever codec wrote them,
    /// if its feature is on; this builder's codec is for what is put from now on. The page size is the arena's.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file isn't an arena, or its process is still alive;
    /// [`StoreError::Full`] if the index doesn't fit the capacity.
    pub fn rebuild(mut self, arena: File) -> Result<(Ram, Vec<(PageKey, Handle)>), StoreError> {
        let failed = |source: io::Error| StoreError::Io { doing: "reading an arena", source };
        let (arena, page_size) = Arena::adopt(arena).map_err(failed)?;
        self.page_size = page_size;
        self.check()?;
        let store = self.over(arena);
        let mut found: Vec<(PageKey, Slot, Form, usize)> = Vec::new();
        let mut pieces: Vec<(PageKey, Slot)> = Vec::new();
        let keep = |arena: &Arena, slot: Slot| {
            let Some(object) = object::verified(arena.bytes(&slot)) else { return Some(slot) };
            let (key, form, len) = (object.key, object.form, object::HEADER + object.payload.len());
            match form {
                Form::Dictionary => pieces.push((key, slot)),
                _ => found.push((key, slot, form, len)),
            }
            None
        };
        store.pool.refill(&store.held, keep).map_err(failed)?;
        let full = |error: NoRoom| match error {
            NoRoom::Capacity { needed, available, capacity } => {
                StoreError::Full { needed, available, capacity }
            }
            NoRoom::Arena(source) => failed(source),
        };
        let dictionaries = store.find_dictionaries(pieces).map_err(full)?;
        found.sort_by_key(|(key, ..)| *key);
        let mut handles: Vec<(PageKey, Handle)> = Vec::with_capacity(found.len());
        for (key, slot, form, len) in found {
            let needed = object::parse(store.pool.bytes(&slot)).and_then(|(object, _)| object.dictionary());
            let dictionary = needed.and_then(|id| dictionaries.iter().find(|found| found.id() == id));
            let unreadable = form.with_dictionary() && dictionary.is_none();
            if unreadable || handles.last().is_some_and(|(last, _)| *last == key) {
                store.drop_object(slot);
                continue;
            }
            let inserted = store.index.insert(key, slot, form, len, dictionary, &store.held);
            handles.push((key, inserted.map_err(|(_, error)| full(error))?));
        }
        // Those that no object needs end here.
        for dictionary in &dictionaries {
            store.dictionaries.release(dictionary, &store.pool, &store.held);
        }
        Ok((store, handles))
    }

    fn check(&self) -> Result<(), StoreError> {
        if !self.page_size.is_power_of_two() || !(256..=65536).contains(&self.page_size) {
            return Err(StoreError::Unsupported {
                what: "page sizes other than powers of two from 256 to 65536",
            });
        }
        #[cfg(feature = "ram-zstd")]
        if let Codec::Zstd { level } = self.codec
            && ![Some(level), self.dense].iter().flatten().all(|level| (-7..=19).contains(level))
        {
            return Err(StoreError::Unsupported { what: "zstd levels other than -7 to 19" });
        }
        if self.dictionary.is_some_and(|bytes| !(1 << 10..=1 << 20).contains(&bytes)) {
            return Err(StoreError::Unsupported {
                what: "dictionaries of less than 1 KiB or more than 1 MiB",
            });
        }
        Ok(())
    }

    fn over(self, arena: Arena) -> Ram {
        let mut capabilities = Capabilities::new(self.codec.name(), self.page_size);
        capabilities.capacity = self.capacity;
        capabilities.durability = Durability::Memory;
        capabilities.integrity = Integrity::Checksum;
        capabilities.detects_same_filled = true;
        capabilities.maintains = true;
        #[cfg(feature = "ram-lz4")]
        {
            capabilities.fetches_in_handlers = self.codec == Codec::Lz4;
        }
        let settings = match self.codec {
            #[cfg(feature = "ram-zstd")]
            Codec::Zstd { level } => self.dictionary.map(|size| dictionaries::Settings {
                size,
                from_pages: self.dictionary_from,
                level,
            }),
            #[cfg(feature = "ram-lz4")]
            Codec::Lz4 => None,
        };
        let dense = match self.codec {
            #[cfg(feature = "ram-zstd")]
            Codec::Zstd { level } => self.dense.filter(|dense| *dense > level),
            #[cfg(feature = "ram-lz4")]
            Codec::Lz4 => None,
        };
        let held = Held::new(self.capacity);
        let (pool, index) = (Pool::new(arena, self.page_size), Index::new());
        held.add((size_of::<Ram>() + pool.overhead() + index.overhead()) as u64);
        Ram {
            codec: self.codec,
            recoverable: self.recoverable,
            capabilities,
            pool,
            index,
            held,
            in_handles: AtomicU64::new(0),
            filled_puts: AtomicU64::new(0),
            filled_fetches: AtomicU64::new(0),
            full: AtomicU64::new(0),
            fetch_errors: AtomicU64::new(0),
            bad_frees: AtomicU64::new(0),
            cursor: Mutex::new(Cursor::default()),
            dictionaries: Dictionaries::new(settings),
            dense,
            sweep: Mutex::default(),
        }
    }
}
