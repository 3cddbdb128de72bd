//! Making a [`Ram`], new or from what a dead process left behind.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use userswap_store::{Capabilities, Durability, Handle, Integrity, PageKey, StoreError};

use super::arena::{Arena, Slot};
use super::dictionaries::{Dictionaries, Settings};
use super::index::{Cursor, Index};
use super::object::{self, Form};
use super::pool::{Held, Limits, NoRoom, Pool};
use super::same::Same;
use super::writeback::Back;
use super::{Codec, DICTIONARY_FROM, Ram, Recompress, Writeback};
use crate::calls::Count;
use crate::clock::{self, Clock};

/// Makes a [`Ram`].
#[derive(Clone)]
pub struct Builder {
    codec: Codec,
    page_size: usize,
    capacity: Option<u64>,
    recoverable: bool,
    dictionary: Option<usize>,
    dictionary_from: u64,
    /// `None`: as is usual for the codec.
    dense: Option<Option<Recompress>>,
    writeback: Option<Writeback>,
    deduplicate: bool,
    clock: Option<Clock>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (codec, capacity) = (&self.codec, &self.capacity);
        f.debug_struct("Builder").field("codec", codec).field("capacity", capacity).finish_non_exhaustive()
    }
}

/// The arena's size where the store has no limit of its own: address space, not memory.
const UNLIMITED_ARENA: usize = 1 << 38;

impl Builder {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            page_size: 4096,
            capacity: None,
            recoverable: false,
            dictionary: Some(crate::spec::DICTIONARY),
            dictionary_from: DICTIONARY_FROM,
            dense: None,
            writeback: None,
            deduplicate: false,
            clock: None,
        }
    }

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
    pub fn dense(self, level: Option<i32>) -> Self {
        self.recompress(level.map(Recompress::all))
    }

    /// As [`dense`](Self::dense), of some pages alone. Here lz4 has it too, where zstd is in the build: what is made denser is zstd then.
    #[must_use]
    pub fn recompress(mut self, how: Option<Recompress>) -> Self {
        self.dense = Some(how);
        self
    }

    /// What stays goes into another store.
    #[must_use]
    pub fn write_back(mut self, to: Option<Writeback>) -> Self {
        self.writeback = to;
        self
    }

    /// Equal pages of one owner are stored once. It costs a look at every byte of a page that is put and some 34 bytes of memory a page; and such a store can't be
    /// [rebuilt](Self::rebuild).
    #[must_use]
    pub fn deduplicate(mut self, yes: bool) -> Self {
        self.deduplicate = yes;
        self
    }

    /// Pages grow older by this clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
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
        let arena = Arena::create(self.page_size, bytes, !self.deduplicate)
            .map_err(|source| StoreError::Io { doing: "making an arena", source })?;
        Ok(self.over(arena))
    }

    /// The store whose objects are in a memfd a dead process left behind ([`Ram::arena_file`]), with the handle of each, sorted by key.
    ///
    /// Objects that aren't whole are dropped, as are those whose dictionary isn't, and the second of two under one key. Pages are read with whatever codec wrote them,
    /// if its feature is on; this builder's codec is for what is put from now on. The page size is the arena's. What was found is kept even where it is more than the capacity:
    /// then puts are refused until it is less.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file isn't an arena, or its process is still alive.
    pub fn rebuild(self, arena: File) -> Result<(Ram, Vec<(PageKey, Handle)>), StoreError> {
        self.rebuild_over(arena, &[])
    }

    /// The same, where the store to write back to has outlived the process as well, and was found to hold `behind`, sorted by key: what is there, and not here, is this store's.
    ///
    /// # Errors
    /// Those of [`rebuild`](Self::rebuild).
    pub fn rebuild_over(
        mut self,
        arena: File,
        behind: &[(PageKey, Handle)],
    ) -> Result<(Ram, Vec<(PageKey, Handle)>), StoreError> {
        let failed = |source: io::Error| StoreError::Io { doing: "reading an arena", source };
        let (arena, page_size) = Arena::adopt(arena).map_err(failed)?;
        self.page_size = page_size;
        self.deduplicate = false;
        self.check()?;
        let mut store = self.over(arena);
        // A store that had been full may take a little more here, as memory of what its process was about to put: it can be given back only by one that is open.
        let limits = store.held.limit(Limits::NONE);
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
        let mut handles: Vec<(PageKey, Handle)> = Vec::with_capacity(found.len() + behind.len());
        let mut elsewhere = Vec::with_capacity(behind.len());
        for (key, slot, form, len) in found {
            let needed = object::parse(store.pool.bytes(&slot)).and_then(|(object, _)| object.dictionary());
            let dictionary = needed.and_then(|id| dictionaries.iter().find(|found| found.id() == id));
            // What the other store called a page it doesn't any more.
            let unreadable = matches!(form, Form::Elsewhere | Form::Same)
                || form.with_dictionary() && dictionary.is_none();
            if unreadable || handles.last().is_some_and(|(last, _)| *last == key) {
                store.drop_object(slot);
                continue;
            }
            let inserted = store.index.insert(key, slot, form, len, dictionary, &store.held);
            handles.push((key, inserted.map_err(|(_, error)| full(error))?));
        }
        for (key, there) in behind {
            // On its way there when the process died, it is in both.
            if handles.binary_search_by_key(key, |(key, _)| *key).is_ok() {
                store.free_elsewhere(*there);
                continue;
            }
            elsewhere.push((*key, store.name_elsewhere(*key, *there).map_err(full)?));
        }
        handles.append(&mut elsewhere);
        handles.sort_unstable_by_key(|(key, _)| *key);
        // Those that no object needs end here.
        for dictionary in &dictionaries {
            store.dictionaries.release(dictionary, &store.pool, &store.held);
        }
        store.held.limit(limits);
        store.give_back();
        Ok((store, handles))
    }

    fn recompressing(&self) -> Option<Recompress> {
        self.dense.unwrap_or_else(|| self.codec.level().map(|_| Recompress::all(crate::spec::DENSE)))
    }

    fn check(&self) -> Result<(), StoreError> {
        if !self.page_size.is_power_of_two() || !(256..=65536).contains(&self.page_size) {
            return Err(StoreError::Unsupported {
                what: "page sizes other than powers of two from 256 to 65536",
            });
        }
        let dense = self.recompressing().map(|dense| dense.level);
        if ![self.codec.level(), dense].iter().flatten().all(|level| (-7..=19).contains(level)) {
            return Err(StoreError::Unsupported { what: "zstd levels other than -7 to 19" });
        }
        if self.deduplicate && self.recoverable {
            return Err(StoreError::Unsupported {
                what: "storing equal pages once where they are to be found again",
            });
        }
        if dense.is_some() && cfg!(not(feature = "ram-zstd")) {
            return Err(StoreError::Unsupported { what: "compressing again, which takes zstd" });
        }
        if let Some(back) = &self.writeback
            && back.store.capabilities().page_size != self.page_size
        {
            return Err(StoreError::Unsupported {
                what: "writing back to a store with pages of another size",
            });
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
        let dense =
            self.recompressing().filter(|dense| self.codec.level().is_none_or(|level| dense.level > level));
        // Dictionaries are for the level pages are first zstd at.
        let settings = self.codec.level().or(dense.map(|dense| dense.level)).and_then(|level| {
            self.dictionary.map(|size| Settings { size, from_pages: self.dictionary_from, level })
        });
        let ages = self.writeback.is_some() || dense.is_some_and(|dense| dense.kinds.ask_for_age());
        if let Some(back) = &self.writeback {
            let there = back.store.capabilities();
            capabilities.max_batch = capabilities.max_batch.min(there.max_batch);
            capabilities.capacity = None;
            capabilities.fetch = there.fetch;
            capabilities.durability = Durability::Process;
            capabilities.integrity = capabilities.integrity.min(there.integrity);
            capabilities.groups_pages = there.groups_pages;
        }
        if self.deduplicate {
            capabilities.deduplicates = true;
            capabilities.durability = Durability::Process;
        }
        let held = Held::new(Limits::new(self.capacity, self.writeback.is_some() || dense.is_some()));
        let (pool, index) = (Pool::new(arena, self.page_size), Index::new(ages));
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
            same: self.deduplicate.then(Same::default),
            back: self.writeback.map(Back::new),
            clock: self.clock.unwrap_or_else(clock::from_now),
            recompressed: Count::default(),
            compacted_bytes: Count::default(),
        }
    }
}
