//! Sealed pages in a file or on a block device.
//!
//! * **Put**: pages are compressed and sealed on the calling thread and appended to a segment in memory. A full segment is written in one
//!   piece by the ring's thread; its memory is kept until the device has confirmed it, and its pages are read from there as long as that lasts, and
//!   for good if the device refuses. At most four segments wait; then `put` does.
//! * **Fetch**: what is in memory is there at once. Anything else is read by the ring and comes later, on the ring's thread; pages of a run that lie beside
//!   each other come by one read.
//! * **Free** costs no I/O. A segment without live pages is used again; [`maintain`](Store::maintain), and a `put` that finds no room, clean
//!   segments with few: their live records are appended anew, still sealed. Free segments are given back to the file system by `maintain`.
//! * **Unchanged pages.** A page that leaves as it came isn't written again, as long as its record is still there: see `unchanged.rs`.
//! * **Outliving.** A store that is [opened to be kept](File::open_kept) goes on after its process has died: see `book.rs`. It takes 32 bytes of memory a page more.
//! * **The key** is made for the store, lives in locked memory and is never written: what is left in a file after its program was killed
//!   is noise.
//!
//! A record costs 24 bytes beside the page's compressed bytes on the device, and a page 14 bytes of memory. See [`spec`](crate::spec) for what can be set.

mod arrivals;
mod book;
mod buffer;
mod clean;
mod fetch;
mod found;
mod kept;
mod log;
mod place;
mod record;
mod ring;
mod segment;
mod target;
mod unchanged;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use userswap_store::{
    Budget, Capabilities, Fetch, FetchKind, Handle, Integrity, Maintained, Medium, Page, PageKey, Stats,
    Store, StoreError, Waiter, Wanted, check_put, check_run,
};

use crate::calls::{Calls, Count};
use crate::ram::codec::Codec;
use crate::ram::filled;
use crate::ram::index::{Named, filled_handle, named};
use crate::seal::{KEPT, KeptKey, Seal};
use crate::spec::{Compress, FileSpec};
use book::{Book, Shape};
use buffer::Buffer;
use found::FoundPage;
use log::{Log, Write};
use record::{Kind, Records};
pub use ring::{Disturb, Disturbance};
use ring::{Lost, Refused, Ring};
use target::{START, Target};
use unchanged::Unchanged;

/// Segments in memory that aren't written yet, at most, the open one included.
const BUFFERS: usize = 4;

/// A store of pages in a file or on a block device.
///
/// ```no_run
/// use userswap_store::Store;
///
/// let store = userswap_stores::open("file:/var/tmp?size=4G", 4096)?;
/// assert!(store.capabilities().encrypts);
/// # Ok::<(), userswap_stores::SpecError>(())
/// ```
pub struct File {
    capabilities: Capabilities,
    segment_len: usize,
    shared: Arc<Shared>,
    ring: Ring,
    /// One cleans at a time.
    cleaning: Mutex<()>,
}

/// What the ring's answers need.
struct Shared {
    log: Mutex<Log>,
    /// A write ended.
    changed: Condvar,
    records: Records,
    unchanged: Unchanged,
    target: Target,
    page_size: usize,
    counters: Counters,
    /// Why the last write failed.
    trouble: Mutex<Option<(std::io::ErrorKind, Option<i32>)>>,
}

#[derive(Default)]
struct Counters {
    /// Pages that live in their handles.
    in_handles: AtomicU64,
    calls: Calls,
    reads: Count,
    read_bytes: Count,
    writes: Count,
    written_bytes: Count,
    write_errors: Count,
    cleaned_bytes: Count,
    unchanged_pages: Count,
}

impl File {
    /// Opens what `spec` says, for pages of `page_size` bytes: a power of two from 256 to 65536.
    ///
    /// # Errors
    /// [`Unsupported`](StoreError::Unsupported) for another page size, a size too small, or a codec this build hasn't; [`Io`](StoreError::Io) if it can't be opened,
    /// there is something in it already, or there can be no ring or key.
    pub fn open(spec: &FileSpec, page_size: usize) -> Result<Self, StoreError> {
        Self::open_with(spec, page_size, None, Keeping::Not).map(|(store, _)| store)
    }

    /// The same, for a store that goes on after this process has died. `left` are the [descriptors](Self::descriptors) of the one that it is to go on as, if there was one; `keys` is
    /// memory that outlives the process, where at `at` its key is, or will be: [`KEY`](Self::KEY) bytes, zeros at first. With the store comes all that it was found to hold.
    ///
    /// Where there was one, an error leaves all as it is, for another try.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`Io`](StoreError::Io) if what is left makes no sense.
    pub fn open_kept(
        spec: &FileSpec,
        page_size: usize,
        left: Option<[BorrowedFd<'_>; 2]>,
        keys: BorrowedFd<'_>,
        at: u64,
    ) -> Result<(Self, Vec<(PageKey, Handle)>), StoreError> {
        let twice = |fd: BorrowedFd<'_>| {
            let failed = |source| StoreError::Io { doing: "duplicating a descriptor", source };
            fd.try_clone_to_owned().map_err(failed)
        };
        let key = KeptKey { file: twice(keys)?.into(), at };
        let keeping = match left {
            None => Keeping::New(key),
            Some([book, file]) => Keeping::Left { key, book: twice(book)?, file: twice(file)? },
        };
        Self::open_with(spec, page_size, None, keeping)
    }

    /// Bytes of a key where it is kept.
    pub const KEY: u64 = KEPT;

    /// What a process that goes on as this store needs, if it was opened to be kept.
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let book = self.shared.records.book.as_ref()?;
        Some([book.file().as_fd(), self.shared.target.file.as_fd()])
    }

    /// The same, with what goes wrong on the way to the device: for tests of what is around the store.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_disturbed(
        spec: &FileSpec,
        page_size: usize,
        disturb: Arc<dyn Disturb>,
    ) -> Result<Self, StoreError> {
        Self::open_with(spec, page_size, Some(disturb), Keeping::Not).map(|(store, _)| store)
    }

    fn open_with(
        spec: &FileSpec,
        page_size: usize,
        disturb: Option<Arc<dyn Disturb>>,
        keeping: Keeping,
    ) -> Result<(Self, Vec<(PageKey, Handle)>), StoreError> {
        if !page_size.is_power_of_two() || !(256..=65536).contains(&page_size) {
            let what = "page sizes other than powers of two from 256 to 65536";
            return Err(StoreError::Unsupported { what });
        }
        let codec = match spec.compress {
            Compress::Off => None,
            Compress::Lz4 => Some(Codec::Lz4),
            #[cfg(feature = "ram-zstd")]
            Compress::Zstd => Some(Codec::Zstd { level: -1 }),
            #[cfg(not(feature = "ram-zstd"))]
            Compress::Zstd => {
                return Err(StoreError::Unsupported { what: "zstd, which this build is without" });
            }
        };
        let (key, left) = match keeping {
            Keeping::Not => (None, None),
            Keeping::New(key) => (Some(key), None),
            Keeping::Left { key, book, file } => (Some(key), Some((book, file))),
        };
        let kept = key.is_some();
        let seal = match key {
            None => Seal::new(spec.encrypt)?,
            Some(key) => Seal::kept(spec.encrypt, key)?,
        };
        let taking_up = |source| StoreError::Io { doing: "taking up what a store has left", source };
        let (target, left) = match left {
            None => (Target::open(spec)?, None),
            Some((book, file)) => (Target::adopt(file, spec).map_err(taking_up)?, Some(book)),
        };
        let size = target.size(spec.size)?;
        let (segment_len, most) = segments(page_size, size)?;
        let shape = Shape { page_size, segment_len, segments: most, encrypts: spec.encrypt };
        let (log, found) = match left {
            None => {
                let book = kept.then(|| Book::create(&shape)).transpose();
                let doing = "making a book of where pages are";
                let book = book.map_err(|source| StoreError::Io { doing, source })?;
                (Log::new(segment_len, most, book), Vec::new())
            }
            Some(book) => {
                let book = Book::adopt(book, &shape).map_err(taking_up)?;
                let reaches = target.reaches(segment_len).map_err(taking_up)?;
                Log::adopt(segment_len, most, &book, reaches).map_err(taking_up)?
            }
        };
        let records = Records { seal, codec, book: log.book.clone() };
        let io_file = target.file.try_clone();
        let io_file =
            io_file.map_err(|source| StoreError::Io { doing: "opening the store's file twice", source })?;
        let mut capabilities = Capabilities::new("file", page_size);
        capabilities.capacity = size;
        capabilities.medium = Medium::Device;
        capabilities.fetch = FetchKind::Mixed;
        capabilities.integrity = Integrity::Authenticated;
        capabilities.encrypts = spec.encrypt;
        capabilities.detects_same_filled = true;
        capabilities.groups_pages = true;
        capabilities.maintains = true;
        let shared = Arc::new(Shared {
            log: Mutex::new(log),
            changed: Condvar::new(),
            records,
            unchanged: Unchanged::new()?,
            target,
            page_size,
            counters: Counters::default(),
            trouble: Mutex::new(None),
        });
        let ring = Ring::start(io_file, disturb)?;
        shared.target.is_had();
        let store = Self { capabilities, segment_len, shared, ring, cleaning: Mutex::new(()) };
        let found = store.name(found);
        store.write_again();
        Ok((store, found))
    }

    /// What was found, by key. Of two pages under one key the second goes: nobody could ask for it.
    fn name(&self, mut found: Vec<FoundPage>) -> Vec<(PageKey, Handle)> {
        found.sort_unstable_by_key(|page| page.key);
        let mut named: Vec<(PageKey, Handle)> = Vec::with_capacity(found.len());
        for FoundPage { key, handle, sealed } in found {
            if named.last().is_some_and(|(last, _)| *last == key) {
                self.shared.log.lock().free(handle);
                continue;
            }
            self.shared.unchanged.found(handle, key.generation, sealed);
            named.push((key, handle));
        }
        named
    }

    /// Bytes taken of the file system, or accounted for, whichever is more.
    ///
    /// # Errors
    /// If the file can't be asked.
    pub fn usage(&self) -> std::io::Result<u64> {
        let accounted = self.shared.log.lock().counts.live_bytes;
        Ok(self.shared.target.taken()?.max(accounted))
    }

    /// Whether reads and writes go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.target.direct
    }

    /// Forgets the key: what is stored is unreadable from now on, for everybody, and nothing more can be put.
    pub fn forget_key(&self) {
        self.shared.records.seal.forget_key();
        self.shared.unchanged.forget(|_| false);
    }

    /// Puts a page's record into the log, waiting for room if need be.
    fn append(
        &self,
        log: &mut MutexGuard<'_, Log>,
        key: PageKey,
        record: &[u8],
        kind: Kind,
    ) -> Result<Handle, StoreError> {
        if !log.has_names() {
            return Err(self.full(log));
        }
        loop {
            if let Some(handle) = log.append(key, record, kind) {
                return Ok(handle);
            }
            match self.open_segment(log, false) {
                Err(StoreError::Full { .. }) => {
                    if !MutexGuard::unlocked(log, || self.make_room())? {
                        return Err(self.full(log));
                    }
                }
                opened => opened?,
            }
        }
    }

    /// Closes the open segment and opens another: [`Full`](StoreError::Full) if there is none.
    fn open_segment(&self, log: &mut MutexGuard<'_, Log>, cleaning: bool) -> Result<(), StoreError> {
        let room = MutexGuard::unlocked(log, || self.shared.target.room());
        // Asked before the open one is closed: nothing is gained by writing it half full.
        if !log.can_open(cleaning, room) {
            return Err(self.full(log));
        }
        if let Some(write) = log.close() {
            // A ring that refuses it takes the lock.
            MutexGuard::unlocked(log, || self.write(write));
        }
        while log.spares.is_empty() && log.counts.buffers >= BUFFERS {
            if log.counts.writing == 0 {
                return Err(self.write_error());
            }
            self.shared.changed.wait(log);
        }
        let buffer = match log.spares.pop() {
            Some(buffer) => buffer,
            None => match &log.book {
                Some(book) => Buffer::of_book(book),
                None => Buffer::new(self.segment_len),
            }
            .map_err(|source| StoreError::Io { doing: "getting memory for a segment", source })?,
        };
        // Others may have opened one, or taken the last, while this one waited.
        if log.is_open() {
            log.spares.push(buffer);
        } else if log.can_open(cleaning, u64::MAX) {
            log.open(buffer);
        } else {
            log.spares.push(buffer);
            return Err(self.full(log));
        }
        Ok(())
    }

    fn write(&self, write: Write) {
        let shared = Arc::clone(&self.shared);
        let (segment, len) = (write.segment, write.len);
        let then = move |result: Result<&mut [u8], Lost>| {
            match &result {
                Ok(_) => {
                    shared.counters.writes.add(1);
                    shared.counters.written_bytes.add(len as u64);
                }
                Err(why) => {
                    shared.counters.write_errors.add(1);
                    *shared.trouble.lock() = match why {
                        Lost::Io(error) => Some((error.kind(), error.raw_os_error())),
                        Lost::Short | Lost::Died => Some((std::io::ErrorKind::Interrupted, None)),
                        Lost::Closed => None,
                    };
                }
            }
            shared.log.lock().written(segment, result.is_ok());
            shared.changed.notify_all();
        };
        let asked = self.ring.write(self.offset(segment), write.bytes, len, Box::new(then));
        if let Err(Refused) = asked {
            *self.shared.trouble.lock() = None;
            self.shared.log.lock().written(segment, false);
            self.shared.changed.notify_all();
        }
    }

    /// Segments that couldn't be written are tried again: in the same place if there was no room, elsewhere if the place was bad.
    fn write_again(&self) {
        use std::io::ErrorKind::{Interrupted, QuotaExceeded, StorageFull};
        let kind = self.shared.trouble.lock().map(|(kind, _)| kind);
        let bad_place = kind.is_some_and(|kind| !matches!(kind, StorageFull | QuotaExceeded | Interrupted));
        let mut log = self.shared.log.lock();
        let writes = if log.counts.failed == 0 { Vec::new() } else { log.again(bad_place) };
        drop(log);
        writes.into_iter().for_each(|write| self.write(write));
    }

    fn write_error(&self) -> StoreError {
        match *self.shared.trouble.lock() {
            None => StoreError::Closed,
            Some((kind, number)) => {
                let source = number.map_or_else(|| kind.into(), std::io::Error::from_raw_os_error);
                StoreError::Io { doing: "writing a segment of pages", source }
            }
        }
    }

    fn full(&self, log: &Log) -> StoreError {
        let capacity = self.capabilities.capacity.unwrap_or(u64::MAX);
        let available = capacity.saturating_sub(self.device_bytes(log));
        StoreError::Full { needed: self.segment_len as u64, available, capacity }
    }

    fn device_bytes(&self, log: &Log) -> u64 {
        log.counts.allocated as u64 * self.segment_len as u64
    }

    fn offset(&self, segment: u32) -> u64 {
        START + u64::from(segment) * self.segment_len as u64
    }

    /// Makes what is to be stored of a page.
    fn make(&self, page: &Page<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        // What lives in its handle isn't found by who comes after this process.
        let half = filled::repeated_word(page.bytes).and_then(filled::repeated_half);
        let half = half.filter(|_| self.shared.records.book.is_none());
        batch.pages.push(if let Some(half) = half {
            Made::Filled(filled_handle(page.key, half))
        } else if let Some(handle) = self.again(page) {
            Made::Again(handle)
        } else {
            let from = batch.bytes.len();
            let kind = self.shared.records.write(page.key, page.bytes, &mut batch.bytes)?;
            Made::Record(page.key, kind, from..batch.bytes.len())
        });
        Ok(())
    }

    /// A page that leaves as it came, by its record of then, if that is there still.
    fn again(&self, page: &Page<'_>) -> Option<Handle> {
        let unchanged = &self.shared.unchanged;
        let came = unchanged.leaves(page.key, page.bytes)?;
        let handle = self.shared.log.lock().revive(&came.trace, page.key, came.generation)?;
        unchanged.lives(handle, page.key, &came);
        Some(handle)
    }

    /// Puts the records; on an error the log has those whose handles are there.
    fn put_records(&self, batch: &Batch, handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        let mut log = self.shared.log.lock();
        for (made, handle) in batch.pages.iter().zip(handles) {
            *handle = Some(match made {
                Made::Filled(handle) | Made::Again(handle) => *handle,
                Made::Record(key, kind, range) => {
                    self.append(&mut log, *key, &batch.bytes[range.clone()], *kind)?
                }
            });
        }
        Ok(())
    }
}

/// Pages that were made records.
struct Batch {
    bytes: Vec<u8>,
    pages: Vec<Made>,
}

enum Made {
    /// It lives in its handle.
    Filled(Handle),
    /// It left as it came: its record lives again.
    Again(Handle),
    Record(PageKey, Kind, std::ops::Range<usize>),
}

/// Whether a store outlives its process.
enum Keeping {
    Not,
    /// From now on, with its key there.
    New(KeptKey),
    /// It has: this is what is left.
    Left {
        key: KeptKey,
        book: OwnedFd,
        file: OwnedFd,
    },
}

impl Store for File {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities, pages, handles)?;
        let mut batch = Batch { bytes: Vec::new(), pages: Vec::with_capacity(pages.len()) };
        let made = pages.iter().try_for_each(|page| self.make(page, &mut batch));
        self.write_again();
        let counters = &self.shared.counters;
        match made.and_then(|()| self.put_records(&batch, handles)) {
            Ok(()) => {
                let count = |of: fn(&Made) -> bool| batch.pages.iter().filter(|made| of(made)).count() as u64;
                counters
                    .in_handles
                    .fetch_add(count(|made| matches!(made, Made::Filled(_))), Ordering::Relaxed);
                counters.unchanged_pages.add(count(|made| matches!(made, Made::Again(_))));
                counters.calls.puts.add(pages.len() as u64);
                Ok(())
            }
            Err(error) => {
                // Nobody was told these handles, so taking them back leaves no trace.
                let mut back = Vec::new();
                for (made, handle) in batch.pages.iter().zip(handles) {
                    match (made, handle.take()) {
                        (Made::Again(handle), _) => back.push(*handle),
                        (Made::Record(..), Some(handle)) => back.push(handle),
                        _ => {}
                    }
                }
                self.shared.unchanged.freed(&back);
                let mut log = self.shared.log.lock();
                for handle in back {
                    log.free(handle);
                }
                counters.calls.full.add(matches!(error, StoreError::Full { .. }).into());
                Err(error)
            }
        }
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.capabilities.check_buffer(out)?;
        let mut results = [Ok(Fetch::Ready)];
        self.fetch_run(&[Wanted { handle, key }], out, &mut results, waiter)?;
        let [result] = results;
        result
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        check_run(self.capabilities.page_size, wanted, out, results)?;
        self.fetch_all(wanted, out, results, waiter);
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        self.shared.unchanged.freed(handles);
        let counters = &self.shared.counters;
        let mut log = self.shared.log.lock();
        for handle in handles {
            let freed = match named(*handle) {
                Some(Named::Filled { .. }) => {
                    let less = |pages: u64| pages.checked_sub(1);
                    counters.in_handles.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
                }
                _ => log.free(*handle),
            };
            if freed { &counters.calls.frees } else { &counters.calls.bad_frees }.add(1);
        }
    }

    fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let in_handles = counters.in_handles.load(Ordering::Relaxed);
        let unchanged = self.shared.unchanged.bytes();
        let log = self.shared.log.lock();
        let mut stats = Stats::default();
        stats.pages = log.counts.pages + in_handles;
        stats.raw_bytes = stats.pages * self.capabilities.page_size as u64;
        stats.stored_bytes = log.counts.live_bytes;
        stats.memory_bytes =
            (size_of::<Self>() + size_of::<Shared>()) as u64 + log.bytes() + self.ring.bytes() + unchanged;
        stats.device_bytes = self.device_bytes(&log);
        stats.same_filled_pages = log.counts.filled + in_handles;
        stats.incompressible_pages = log.counts.raw;
        drop(log);
        counters.calls.tell(&mut stats);
        stats
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        let counters = &self.shared.counters;
        for (name, count) in [
            ("reads", &counters.reads),
            ("read_bytes", &counters.read_bytes),
            ("writes", &counters.writes),
            ("written_bytes", &counters.written_bytes),
            ("write_errors", &counters.write_errors),
            ("cleaned_bytes", &counters.cleaned_bytes),
            ("unchanged_pages", &counters.unchanged_pages),
        ] {
            tell(name, count.get());
        }
        tell("unwritten_segments", self.shared.log.lock().counts.buffers as u64);
        tell("ring_restarts", self.ring.restarts());
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        self.write_again();
        {
            let log = self.shared.log.lock();
            self.shared.unchanged.forget(|trace| log.is_there(trace));
        }
        let mut done = self.clean(budget);
        self.give_back(&mut done);
        done
    }
}

/// How long segments are, and how many there may be.
fn segments(page_size: usize, size: Option<u64>) -> Result<(usize, usize), StoreError> {
    const LEAST: usize = 64 << 10;
    const MOST: usize = 1 << 20;
    /// A place has 24 bits for them.
    const COUNT: usize = 1 << 24;
    let least = LEAST.max((4 * (page_size + 2 * record::HEADER)).next_power_of_two());
    let Some(size) = size else { return Ok((MOST, COUNT)) };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let len = (1 << (size / 32).max(1).ilog2()).clamp(least, MOST);
    if size / len < 4 {
        return Err(StoreError::Unsupported {
            what: "so small a size: it takes four segments of 64K or four pages",
        });
    }
    Ok((len, (size / len).min(COUNT)))
}
