//! The book of a file store: which record is whose and where, in memory that outlives the process.
//!
//! ```text
//! words  0..8      what it is for, and counts
//!        8..72     segments that a dead process may still have been writing to, + 1
//!       72..80     of which segment each buffer is, + 1; in the upper half: which it was before it was moved
//! byte 4096        buffers, each as long as a segment: what isn't on the device yet
//! behind them      entries, 32 bytes each, by their numbers: owner | page | generation, and that it is sealed under | place
//! ```
//! An entry's place is written last and taken away first, as one word; a buffer is its segment's before there is an entry for anything in it, and until the device
//! has confirmed all of it. So whoever finds the book after a death finds each record where it is, whole.
//!
//! An entry costs 32 bytes of memory, as a header does in a store in memory.
#![allow(unsafe_code, reason = "memory that is shared with who comes after")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use userswap_store::{OwnerId, PageKey};

use super::place::Place;
use crate::seal::Number;

const MAGIC: u64 = u64::from_le_bytes(*b"uswbook\x01");

#[derive(Clone, Copy)]
enum Head {
    Magic,
    PageSize,
    SegmentLen,
    Segments,
    /// Entries from here on were never used.
    Entries,
    /// Numbers that records were given.
    Numbers,
    Encrypts,
}

const SUSPECTS: std::ops::Range<usize> = 8..72;
const OWNERS: std::ops::Range<usize> = 72..80;
const BUFFERS: usize = OWNERS.end - OWNERS.start;
const HEAD: usize = 4096;
/// Words of an entry.
const ENTRY: usize = 4;
/// No more pages than these are kept: a terabyte.
const MOST: usize = 1 << 28;
/// The shortest record.
const SHORTEST: usize = 32;

/// The book, and what it is mapped as.
pub(super) struct Book {
    file: File,
    raw: MmapRaw,
    segment_len: usize,
    entries: usize,
    /// Which buffers nobody has.
    free: Mutex<Vec<usize>>,
}

/// What a book is for; who takes it up must want the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) page_size: usize,
    pub(super) segment_len: usize,
    pub(super) segments: usize,
    pub(super) encrypts: bool,
}

/// An entry, as it is found.
pub(super) struct Noted {
    pub(super) entry: usize,
    pub(super) key: PageKey,
    /// The generation that its record is sealed under.
    pub(super) sealed: u32,
    pub(super) place: Place,
}

/// A buffer that a dead process has left: of which segment it is, and which that was before it was moved.
pub(super) struct LeftBuffer {
    pub(super) segment: u32,
    pub(super) before: Option<u32>,
    pub(super) area: Area,
    pub(super) bytes: MmapMut,
}

/// The right to one of the book's buffers.
pub(super) struct Area {
    book: Arc<Book>,
    number: usize,
}

impl Book {
    pub(super) fn create(shape: &Shape) -> io::Result<Arc<Self>> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("userswap-book", flags)?);
        file.set_len(length(shape))?;
        // Nobody can shrink it under the mapping, so no access to it can raise SIGBUS for that.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let book = Self::over(file, shape)?;
        for (word, value) in [
            (Head::PageSize, shape.page_size as u64),
            (Head::SegmentLen, shape.segment_len as u64),
            (Head::Segments, shape.segments as u64),
            (Head::Encrypts, shape.encrypts.into()),
            (Head::Magic, MAGIC),
        ] {
            book.head(word).store(value, Ordering::Release);
        }
        Ok(book)
    }

    /// The book that a dead process has left.
    pub(super) fn adopt(book: OwnedFd, shape: &Shape) -> io::Result<Arc<Self>> {
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let file = File::from(book);
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        if !sealed || file.metadata()?.len() != length(shape) {
            return Err(invalid("no book of such a store"));
        }
        let book = Self::over(file, shape)?;
        let is = |word, value: usize| book.head(word).load(Ordering::Acquire) == value as u64;
        let same = is(Head::PageSize, shape.page_size)
            && is(Head::SegmentLen, shape.segment_len)
            && is(Head::Segments, shape.segments)
            && is(Head::Encrypts, shape.encrypts.into())
            && book.head(Head::Magic).load(Ordering::Acquire) == MAGIC;
        if same { Ok(book) } else { Err(invalid("the book of another store")) }
    }

    fn over(file: File, shape: &Shape) -> io::Result<Arc<Self>> {
        let raw = MmapOptions::new().no_reserve_swap().map_raw(&file)?;
        let free = Mutex::new((0..BUFFERS).collect());
        Ok(Arc::new(Self { file, raw, segment_len: shape.segment_len, entries: entries(shape), free }))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How many pages it has room for.
    pub(super) fn room(&self) -> usize {
        self.entries
    }

    /// Memory it takes, buffers aside.
    pub(super) fn bytes(&self) -> u64 {
        HEAD as u64 + self.head(Head::Entries).load(Ordering::Relaxed) * (ENTRY * 8) as u64
    }

    /// A number that no record of the store had before, whichever process wrote it.
    pub(super) fn next_number(&self) -> Number {
        Number(self.head(Head::Numbers).fetch_add(1, Ordering::Relaxed))
    }

    fn head(&self, word: Head) -> &AtomicU64 {
        &self.words(0, HEAD / 8)[word as usize]
    }

    fn entry(&self, entry: usize) -> &[AtomicU64] {
        let at = HEAD + BUFFERS * self.segment_len + entry.min(self.entries - 1) * ENTRY * 8;
        self.words(at, ENTRY)
    }

    fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
        assert!(at.is_multiple_of(8) && at.saturating_add(count * 8) <= self.raw.len());
        // SAFETY: needed because memory that two processes have, one after the other, is looked at as words. It is within the mapping, which lives as long as
        // `self` and whose file can't shrink; aligned; any bytes are words; and these are only ever changed as atomic words: buffers lie elsewhere.
        unsafe { std::slice::from_raw_parts(self.raw.as_mut_ptr().add(at).cast::<AtomicU64>(), count) }
    }

    /// A page's record is at this place. What it says must be there already.
    pub(super) fn enter(&self, entry: u32, key: PageKey, sealed: u32, place: Place) {
        let entry = entry as usize;
        let words = self.entry(entry);
        words[0].store(key.owner.0, Ordering::Relaxed);
        words[1].store(key.page, Ordering::Relaxed);
        words[2].store(u64::from(key.generation) | u64::from(sealed) << 32, Ordering::Relaxed);
        self.head(Head::Entries).fetch_max(entry as u64 + 1, Ordering::Relaxed);
        words[3].store(place.to_word(), Ordering::Release);
    }

    /// It is at another place.
    pub(super) fn moved(&self, entry: u32, place: Place) {
        self.entry(entry as usize)[3].store(place.to_word(), Ordering::Release);
    }

    /// It is nowhere any more.
    pub(super) fn remove(&self, entry: usize) {
        self.entry(entry)[3].store(0, Ordering::Release);
    }

    /// All that is entered, in order.
    pub(super) fn noted(&self) -> impl Iterator<Item = Noted> + '_ {
        let used = usize::try_from(self.head(Head::Entries).load(Ordering::Acquire)).unwrap_or(0);
        (0..used.min(self.entries)).filter_map(|entry| {
            let words = self.entry(entry);
            let word = |at: usize| words[at].load(Ordering::Acquire);
            let place = Place::from_word(word(3))?;
            #[allow(clippy::cast_possible_truncation, reason = "two halves")]
            let (generation, sealed) = (word(2) as u32, (word(2) >> 32) as u32);
            let key = PageKey { owner: OwnerId(word(0)), page: word(1), generation };
            Some(Noted { entry, key, sealed, place })
        })
    }

    /// Gives memory back of entries from `entries` on, which have no place.
    pub(super) fn shrink(&self, entries: usize) {
        let used = self.head(Head::Entries).load(Ordering::Acquire);
        let at = |entry: u64| (HEAD + BUFFERS * self.segment_len) as u64 + entry * (ENTRY * 8) as u64;
        let (from, to) = (at(entries as u64).next_multiple_of(4096), at(used).next_multiple_of(4096));
        if from < to {
            self.head(Head::Entries).store(entries as u64, Ordering::Release);
            let _ = self.punch(from, to - from);
        }
    }

    /// Segments that a dead process may still have been writing to.
    pub(super) fn suspects(&self) -> Vec<u32> {
        let words = self.words(0, HEAD / 8)[SUSPECTS].iter();
        words.filter_map(|word| u32::try_from(word.load(Ordering::Acquire).checked_sub(1)?).ok()).collect()
    }

    /// Writes one down. Where too many are, the one that has been there longest isn't any more.
    pub(super) fn suspect(&self, segment: u32) {
        let words = &self.words(0, HEAD / 8)[SUSPECTS];
        if self.suspects().contains(&segment) {
            return;
        }
        let free = words.iter().position(|word| word.load(Ordering::Acquire) == 0).unwrap_or_else(|| {
            for at in 1..words.len() {
                words[at - 1].store(words[at].load(Ordering::Acquire), Ordering::Release);
            }
            words.len() - 1
        });
        words[free].store(u64::from(segment) + 1, Ordering::Release);
    }

    /// Nobody writes to it any more.
    pub(super) fn absolve(&self, segment: u32) {
        let words = &self.words(0, HEAD / 8)[SUSPECTS];
        for word in words.iter().filter(|word| word.load(Ordering::Acquire) == u64::from(segment) + 1) {
            word.store(0, Ordering::Release);
        }
    }

    /// A buffer that nobody has, all zeros.
    pub(super) fn buffer(self: &Arc<Self>) -> io::Result<(Area, MmapMut)> {
        let number = self.free.lock().pop();
        let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let area = Area { book: Arc::clone(self), number };
        let bytes = area.map()?;
        Ok((area, bytes))
    }

    /// The buffers that a dead process has left. Those of no segment are emptied.
    pub(super) fn buffers_left(self: &Arc<Self>) -> io::Result<Vec<LeftBuffer>> {
        let mut left = Vec::new();
        let numbers = std::mem::take(&mut *self.free.lock());
        for number in numbers {
            let area = Area { book: Arc::clone(self), number };
            let word = area.owner().load(Ordering::Acquire);
            let half = |word: u64| u32::try_from((word & 0xffff_ffff).checked_sub(1)?).ok();
            // Of no segment: dropped, and so empty and free.
            let Some(segment) = half(word) else { continue };
            let bytes = match area.map() {
                Ok(bytes) => bytes,
                Err(error) => {
                    std::mem::forget(area);
                    return Err(error);
                }
            };
            left.push(LeftBuffer { segment, before: half(word >> 32), area, bytes });
        }
        Ok(left)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, at, len)?)
    }
}

impl Area {
    fn owner(&self) -> &AtomicU64 {
        &self.book.words(0, HEAD / 8)[OWNERS.start + self.number]
    }

    /// Says of which segment it is, if of any, and which that was if it is being moved.
    pub(super) fn is_of(&self, segment: Option<u32>, before: Option<u32>) {
        let half = |number: Option<u32>| number.map_or(0, |number| u64::from(number) + 1);
        self.owner().store(half(segment) | half(before) << 32, Ordering::Release);
    }

    fn at(&self) -> u64 {
        (HEAD + self.number * self.book.segment_len) as u64
    }

    fn map(&self) -> io::Result<MmapMut> {
        let mut options = MmapOptions::new();
        options.offset(self.at()).len(self.book.segment_len);
        // SAFETY: needed because the memory is a file's, which somebody could change. Nobody has this one but this process and, after its death, the next; and
        // of each part there is one mapping at a time that is written to: who has the `Area` has the only name of it.
        unsafe { options.map_mut(&self.book.file) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        self.is_of(None, None);
        // The kernel may be writing it out still for a dead process: it keeps the pages it has, and the next to use the buffer gets others.
        let _ = self.book.punch(self.at(), self.book.segment_len as u64);
        self.book.free.lock().push(self.number);
    }
}

fn entries(shape: &Shape) -> usize {
    (shape.segments.saturating_mul(shape.segment_len) / SHORTEST).min(MOST)
}

fn length(shape: &Shape) -> u64 {
    (HEAD + BUFFERS * shape.segment_len + entries(shape) * ENTRY * 8).next_multiple_of(HEAD) as u64
}
