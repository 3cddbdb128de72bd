//! The index: from handles to slots.
//!
//! Handles name an entry of this table, and the entry names the slot, so that objects can be moved: eight bytes a page buy a pool that
//! can be packed after pages have left it in any order. (Handles that name slots directly would save them, and cost up to half
//! of the pool after a program shrank.)
//!
//! ```text
//! 63 | 62         48 | 47       32 | 31          5 | 4     0
//! 0  | tag (15)      | 0           | entry (27)    | shard        an object
//! 1  | key's hash (31)             | repeated word (32)           a same-filled page, which has no entry
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use userswap_store::{Handle, PageKey};

use super::arena::{Slot, TAG_LIMIT};
use super::counts::Counts;
use super::dictionary::{Dictionary, DictionaryId};
use super::object::Form;
use super::pool::{Held, NoRoom};

const SHARDS: usize = 32;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
const ENTRIES: usize = 256;
/// So many entries are dealt with under one lock by background work: fetches wait for no more than these to be moved.
const GROUP: usize = 8;
const FILLED: u64 = 1 << 63;

/// The table, in shards with a lock each. A fetch reads an object under its shard's lock, shared; the exclusive lock is held for a
/// few instructions, or while background work moves a few objects.
pub(crate) struct Index {
    shards: Box<[CachePadded<Cell>]>,
    /// When pages were last put or fetched is kept, at four bytes each.
    ages: bool,
    /// Second of the store's clock when anybody last looked at that: fetches don't.
    now: AtomicU32,
}

struct Cell {
    shard: RwLock<Shard>,
    fetches: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Shard {
    chunks: Vec<Option<Box<Chunk>>>,
    /// A bit a chunk, set if it has room or isn't there.
    open: Vec<u64>,
    tag: u16,
    counts: Counts,
    /// By their places: the dictionaries that objects here were made with. So a fetch finds its dictionary under the lock it has.
    dictionaries: Vec<Option<Used>>,
}

/// A dictionary, of which the shard is one user, and how many objects need it.
struct Used {
    dictionary: Arc<Dictionary>,
    objects: u32,
}

/// What a dictionary takes of the index.
pub(crate) const BYTES_A_DICTIONARY: usize = SHARDS * size_of::<Option<Used>>();

struct Chunk {
    slots: [Option<Slot>; ENTRIES],
    used: [u64; ENTRIES / 64],
    touched: Option<Box<[AtomicU32; ENTRIES]>>,
}

/// What a handle's value says.
pub(crate) enum Named {
    /// An object, by its entry.
    Entry(EntryId),
    /// The page repeats this word; `hash` is the key's.
    Filled { word: u32, hash: u32 },
}

/// An entry and the tag it must have.
#[derive(Clone, Copy)]
pub(crate) struct EntryId {
    shard: usize,
    entry: usize,
    tag: u16,
}

impl EntryId {
    /// The tag the entry must have.
    pub(crate) fn tag(self) -> u16 {
        self.tag
    }
}

impl Index {
    /// An empty one. `ages`: it is to know when pages were last put or fetched.
    pub(crate) fn new(ages: bool) -> Self {
        let cell = || Cell { shard: RwLock::default(), fetches: AtomicU64::new(0) };
        let shards = (0..SHARDS).map(|_| CachePadded::new(cell())).collect();
        Self { shards, ages, now: AtomicU32::new(0) }
    }

    /// Sets the time by which pages are put and fetched from now on, in seconds.
    pub(crate) fn set_now(&self, second: u32) {
        self.now.store(second, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    /// Ages are kept.
    pub(crate) fn keeps_ages(&self) -> bool {
        self.ages
    }

    /// An entry of this shard was fetched.
    pub(crate) fn touch(&self, shard: &Shard, id: EntryId) {
        if self.ages
            && let Some(touched) = shard.touched(id)
        {
            touched.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Bytes the index itself takes, without chunks.
    pub(crate) fn overhead(&self) -> usize {
        size_of_val(&*self.shards)
    }

    /// Makes an entry for an object of `len` bytes, made with this dictionary, of which the caller is a user. On `Err` the
    /// slot comes back.
    pub(crate) fn insert(
        &self,
        key: PageKey,
        slot: Slot,
        form: Form,
        len: usize,
        dictionary: Option<&Arc<Dictionary>>,
        held: &Held,
    ) -> Result<Handle, (Slot, NoRoom)> {
        let shard_number = hash(key) as usize % SHARDS;
        let mut shard = self.shards[shard_number].write();
        let age = self.ages.then(|| self.now());
        let handle = shard.insert(shard_number, slot, form, len, age, held)?;
        if let Some(dictionary) = dictionary {
            shard.keep(dictionary);
        }
        Ok(handle)
    }

    /// The shard an entry is in, for background work to read.
    pub(crate) fn look(&self, id: EntryId) -> Option<RwLockReadGuard<'_, Shard>> {
        Some(self.shards.get(id.shard)?.shard.read())
    }

    /// The shard a cursor is in, for background work to read. `None` past the end.
    pub(crate) fn look_at(&self, cursor: Cursor) -> Option<RwLockReadGuard<'_, Shard>> {
        Some(self.shards.get(cursor.shard)?.shard.read())
    }

    /// The shard an entry is in, for reading. Counts a fetch.
    pub(crate) fn read(&self, id: EntryId) -> Option<RwLockReadGuard<'_, Shard>> {
        let cell = self.shards.get(id.shard)?;
        cell.fetches.fetch_add(1, Ordering::Relaxed);
        Some(cell.shard.read())
    }

    /// The shard an entry is in, for reading, if nobody writes to it. `Err`: there is no such shard.
    pub(crate) fn try_read(&self, id: EntryId) -> Result<Option<RwLockReadGuard<'_, Shard>>, ()> {
        Ok(self.shards.get(id.shard).ok_or(())?.shard.try_read())
    }

    /// Counts a fetch by way of [`try_read`](Self::try_read).
    pub(crate) fn count_fetch(&self, id: EntryId) {
        if let Some(cell) = self.shards.get(id.shard) {
            cell.fetches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The shard an entry is in, for writing.
    pub(crate) fn write(&self, id: EntryId) -> Option<RwLockWriteGuard<'_, Shard>> {
        Some(self.shards.get(id.shard)?.write())
    }

    /// The shard a cursor is in, for background work. `None` past the end.
    pub(crate) fn at(&self, cursor: Cursor) -> Option<RwLockWriteGuard<'_, Shard>> {
        Some(self.shards.get(cursor.shard)?.write())
    }

    /// The sums over all shards.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for cell in &self.shards {
            let counts = cell.shard.read().counts;
            sum.pages += counts.pages;
            sum.stored_bytes += counts.stored_bytes;
            sum.raw += counts.raw;
            sum.filled += counts.filled;
            sum.elsewhere += counts.elsewhere;
            sum.same += counts.same;
            sum.raw_puts += counts.raw_puts;
            sum.puts += counts.puts;
            sum.frees += counts.frees;
            sum.fetches += cell.fetches.load(Ordering::Relaxed);
        }
        sum
    }

    /// Lets go of chunks without entries.
    pub(crate) fn trim(&self, held: &Held) {
        for cell in &self.shards {
            let mut shard = cell.write();
            for chunk in &mut shard.chunks {
                if chunk.as_ref().is_some_and(|chunk| chunk.used == [0; ENTRIES / 64]) {
                    *chunk = None;
                    held.release(Chunk::bytes(self.ages));
                }
            }
        }
    }
}

impl Cell {
    /// For writing. It isn't queued for: then a reader's letting go wakes nobody, which a signal handler mustn't.
    fn write(&self) -> RwLockWriteGuard<'_, Shard> {
        let mut tries = 0u32;
        loop {
            if let Some(shard) = self.shard.try_write() {
                return shard;
            }
            tries += 1;
            if tries < 100 {
                std::hint::spin_loop();
            } else {
                // Its holder may be of a class that only gets the CPU if nobody else wants it.
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
}

/// Where background work is in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    shard: usize,
    /// Which [`GROUP`] of the shard's entries.
    group: usize,
}

impl Cursor {
    pub(crate) fn next_group(self) -> Self {
        Self { group: self.group + 1, ..self }
    }

    pub(crate) fn next_shard(self) -> Self {
        Self { shard: self.shard + 1, group: 0 }
    }

    /// The chunk its group is in, and the first entry there.
    fn place(self) -> (usize, usize) {
        (self.group / (ENTRIES / GROUP), self.group % (ENTRIES / GROUP) * GROUP)
    }
}

impl Shard {
    fn insert(
        &mut self,
        shard_number: usize,
        slot: Slot,
        form: Form,
        len: usize,
        now: Option<u32>,
        held: &Held,
    ) -> Result<Handle, (Slot, NoRoom)> {
        let at = match self.open.iter().position(|word| *word != 0) {
            Some(word) => word * 64 + self.open[word].trailing_zeros() as usize,
            None => self.chunks.len(),
        };
        if at >= self.chunks.len() {
            self.chunks.push(None);
            self.open.resize(self.chunks.len().div_ceil(64), 0);
        }
        self.tag = if self.tag + 1 == TAG_LIMIT { 1 } else { self.tag + 1 };
        let tag = self.tag;
        let chunk = match &mut self.chunks[at] {
            Some(chunk) => chunk,
            empty => {
                if let Err(error) = held.reserve(Chunk::bytes(now.is_some())) {
                    self.open[at / 64] |= 1 << (at % 64);
                    return Err((slot, error));
                }
                empty.insert(Box::new(Chunk::new(now.is_some())))
            }
        };
        let (within, full) = chunk.insert(slot.tagged(tag));
        if let (Some(touched), Some(now)) = (&mut chunk.touched, now) {
            *touched[within].get_mut() = now;
        }
        let bit = 1 << (at % 64);
        if full {
            self.open[at / 64] &= !bit;
        } else {
            self.open[at / 64] |= bit;
        }
        self.counts.pages += 1;
        self.counts.puts += 1;
        self.counts.stored_bytes += len as u64;
        self.counts.raw_puts += u64::from(form.is_raw());
        *self.counts.of(form) += 1;
        let entry = (at * ENTRIES + within) as u64;
        let raw = u64::from(tag) << 48 | entry << SHARD_BITS | shard_number as u64;
        Ok(Handle::from_raw(raw).unwrap_or(Handle::MIN))
    }

    /// The slot of an entry, if its tag is right.
    pub(crate) fn slot(&self, id: EntryId) -> Option<&Slot> {
        let chunk = self.chunks.get(id.entry / ENTRIES)?.as_ref()?;
        chunk.slots[id.entry % ENTRIES].as_ref().filter(|slot| slot.tag() == id.tag)
    }

    /// The slot of an entry, to be written to.
    pub(crate) fn slot_mut(&mut self, id: EntryId) -> Option<&mut Slot> {
        let chunk = self.chunks.get_mut(id.entry / ENTRIES)?.as_mut()?;
        chunk.slots[id.entry % ENTRIES].as_mut().filter(|slot| slot.tag() == id.tag)
    }

    /// Ends an entry whose object has `len` bytes. `undo` takes back a put instead of counting a free.
    pub(crate) fn remove(&mut self, id: EntryId, form: Option<Form>, len: usize, undo: bool) -> Option<Slot> {
        self.slot(id)?;
        let at = id.entry / ENTRIES;
        let slot = self.chunks.get_mut(at)?.as_mut()?.remove(id.entry % ENTRIES)?;
        self.open[at / 64] |= 1 << (at % 64);
        self.counts.pages -= 1;
        self.counts.stored_bytes = self.counts.stored_bytes.saturating_sub(len as u64);
        if let Some(form) = form {
            let count = self.counts.of(form);
            *count = count.saturating_sub(1);
        }
        if undo {
            self.counts.puts -= 1;
            self.counts.raw_puts -= u64::from(form.is_some_and(Form::is_raw));
        } else {
            self.counts.frees += 1;
        }
        Some(slot)
    }

    /// One more object needs this dictionary, of which the caller is a user.
    pub(crate) fn keep(&mut self, dictionary: &Arc<Dictionary>) {
        let place = dictionary.id().place();
        if place >= self.dictionaries.len() {
            self.dictionaries.resize_with(place + 1, || None);
        }
        match &mut self.dictionaries[place] {
            Some(used) => used.objects += 1,
            empty if dictionary.acquire() => {
                *empty = Some(Used { dictionary: Arc::clone(dictionary), objects: 1 });
            }
            // Not with a caller that is a user.
            _ => {}
        }
    }

    /// One object less needs this dictionary. If it was the shard's last, the shard's use of it is the caller's to release, when
    /// the shard is unlocked.
    #[must_use]
    pub(crate) fn let_go(&mut self, id: DictionaryId) -> Option<Arc<Dictionary>> {
        let used = self.dictionaries.get_mut(id.place())?;
        let here = used.as_mut().filter(|used| used.dictionary.id() == id)?;
        here.objects -= 1;
        if here.objects == 0 { used.take().map(|used| used.dictionary) } else { None }
    }

    /// The dictionary of this id, if an object here needs it.
    pub(crate) fn dictionary(&self, id: DictionaryId) -> Option<&Arc<Dictionary>> {
        let used = self.dictionaries.get(id.place())?.as_ref()?;
        Some(&used.dictionary).filter(|dictionary| dictionary.id() == id)
    }

    /// An object has another form and length from now on.
    pub(crate) fn became(&mut self, from: (Form, usize), to: (Form, usize)) {
        self.counts.stored_bytes = self.counts.stored_bytes.saturating_sub(from.1 as u64) + to.1 as u64;
        let count = self.counts.of(from.0);
        *count = count.saturating_sub(1);
        *self.counts.of(to.0) += 1;
    }

    fn touched(&self, id: EntryId) -> Option<&AtomicU32> {
        let chunk = self.chunks.get(id.entry / ENTRIES)?.as_ref()?;
        chunk.touched.as_ref().map(|touched| &touched[id.entry % ENTRIES])
    }

    /// The second an entry was last put or fetched; 0 where that isn't kept.
    pub(crate) fn touched_at(&self, id: EntryId) -> u32 {
        self.touched(id).map_or(0, |touched| touched.load(Ordering::Relaxed))
    }

    /// The entries of the cursor's group; `None` past the last one.
    pub(crate) fn group(&self, cursor: Cursor) -> Option<impl Iterator<Item = (EntryId, &Slot)>> {
        let (chunk, first) = cursor.place();
        let entries = self.chunks.get(chunk)?.as_ref();
        let slots = entries.map(|entries| entries.slots[first..first + GROUP].iter());
        let named = (chunk * ENTRIES + first..).zip(slots.into_iter().flatten());
        Some(named.filter_map(move |(entry, slot)| {
            let slot = slot.as_ref()?;
            Some((EntryId { shard: cursor.shard, entry, tag: slot.tag() }, slot))
        }))
    }

    /// The slots of the cursor's group of entries; `None` past the last one.
    pub(crate) fn slots_mut(&mut self, cursor: Cursor) -> Option<impl Iterator<Item = &mut Slot>> {
        let (chunk, first) = cursor.place();
        let chunk = self.chunks.get_mut(chunk)?.as_mut();
        let slots = chunk.map(|chunk| chunk.slots[first..first + GROUP].iter_mut());
        Some(slots.into_iter().flatten().filter_map(Option::as_mut))
    }
}

impl Chunk {
    fn new(ages: bool) -> Self {
        let touched = ages.then(|| Box::new([const { AtomicU32::new(0) }; ENTRIES]));
        Self { slots: [const { None }; ENTRIES], used: [0; ENTRIES / 64], touched }
    }

    /// What one takes.
    fn bytes(ages: bool) -> u64 {
        let touched = if ages { size_of::<[AtomicU32; ENTRIES]>() } else { 0 };
        (size_of::<Self>() + touched) as u64
    }

    /// Puts a slot into the lowest empty entry; the entry, and whether the chunk is full now.
    fn insert(&mut self, slot: Slot) -> (usize, bool) {
        let word = self.used.iter().position(|word| *word != u64::MAX).unwrap_or(0);
        let within = word * 64 + (self.used[word].trailing_ones() as usize).min(63);
        self.used[word] |= 1 << (within % 64);
        self.slots[within] = Some(slot);
        (within, self.used == [u64::MAX; ENTRIES / 64])
    }

    fn remove(&mut self, within: usize) -> Option<Slot> {
        self.used[within / 64] &= !(1 << (within % 64));
        self.slots[within].take()
    }
}

/// The handle of a page that repeats `word`.
pub(crate) fn filled_handle(key: PageKey, word: u32) -> Handle {
    let raw = FILLED | u64::from(hash(key) >> 1) << 32 | u64::from(word);
    Handle::from_raw(raw).unwrap_or(Handle::MIN)
}

/// The key's hash does belong to a filled handle.
pub(crate) fn filled_is_of(key: PageKey, hash_part: u32) -> bool {
    hash(key) >> 1 == hash_part
}

/// Takes a handle apart; `None` if no index makes such handles.
#[allow(clippy::cast_possible_truncation, reason = "fields of fewer bits")]
pub(crate) fn named(handle: Handle) -> Option<Named> {
    let raw = handle.into_raw();
    if raw & FILLED != 0 {
        return Some(Named::Filled { word: raw as u32, hash: (raw >> 32) as u32 & (u32::MAX >> 1) });
    }
    let (tag, entry) = ((raw >> 48) as u16, raw & (u64::MAX >> 16));
    if entry >> 32 != 0 {
        return None;
    }
    Some(Named::Entry(EntryId { shard: entry as usize % SHARDS, entry: (entry >> SHARD_BITS) as usize, tag }))
}

/// Thirty-two bits of a key.
#[allow(clippy::cast_possible_truncation, reason = "a hash")]
fn hash(key: PageKey) -> u32 {
    let mixed = key.owner.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        ^ key.page.wrapping_mul(0xd6e8_feb8_6659_fd93)
        ^ u64::from(key.generation).wrapping_mul(0xa076_1d64_78bd_642f);
    (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(32) as u32
}
