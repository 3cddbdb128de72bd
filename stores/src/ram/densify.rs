//! Making a store denser in the background: dictionaries are trained, and pages compressed again with them, and at a level that
//! takes too long for putting.

use std::sync::Arc;
use std::time::Duration;

use userswap_store::{Budget, Handle, Maintained, OwnerId, PageKey};

use super::arena::Slot;
use super::codec::{Coder, Prepared, Scratch, train, with_scratch};
use super::dictionaries::{Owner, SAMPLES, Settings};
use super::dictionary::{Dictionary, DictionaryId, chains};
use super::index::{Cursor, EntryId, Named, Shard, named};
use super::kinds::{Kinds, Tour, second};
use super::object;
use super::pool::{Held, NoRoom, Purpose};
use super::{DICTIONARY_FROM, Ram, codec};

/// A dictionary that saves less than this part of the bytes isn't worth the work.
const LEAST_GAIN: f64 = 0.01;
/// With fewer pages there is nothing to train on.
const FEWEST: usize = 10;
/// Bytes of pages trained on and judged by, at most.
const SAMPLE_BYTES: usize = SAMPLES * 4096;
/// One sample in so many isn't trained on: the dictionary is judged by them.
const HELD_OUT: usize = 5;
/// Dictionaries that are ready to compress densely with, at a time.
const CODERS: usize = 4;

/// What is compressed again, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompress {
    /// The zstd level, from −7 to 19.
    pub level: i32,
    /// Which pages.
    pub kinds: Kinds,
    /// For so long they were neither put nor fetched, where that is asked for.
    pub idle: Duration,
    /// Only objects of so many bytes or more.
    pub threshold: usize,
}

impl Recompress {
    /// Everything, at this level.
    pub const fn all(level: i32) -> Self {
        Self { level, kinds: Kinds::ALL, idle: Duration::ZERO, threshold: 0 }
    }
}

/// The way through all objects. Who holds it does the background work.
#[derive(Default)]
pub(super) struct Sweep {
    tour: Tour,
    /// The latest last. They are gone when it comes to rest.
    coders: Vec<(DictionaryId, Coder)>,
}

impl Sweep {
    /// What compresses densely with this dictionary. `None` if memory is short, or there is no room for it.
    fn coder(&mut self, dictionary: &Dictionary, level: i32, store: &Ram) -> Option<&Coder> {
        let id = dictionary.id();
        match self.coders.iter().position(|(known, _)| *known == id) {
            Some(at) => self.coders[at..].rotate_left(1),
            None => {
                if self.coders.len() == CODERS {
                    self.let_go(1, &store.held);
                }
                let coder = Coder::new(&dictionary.content(&store.pool), level)?;
                store.held.reserve_for(Purpose::Upkeep, coder.bytes() as u64).ok()?;
                self.coders.push((id, coder));
            }
        }
        self.coders.last().map(|(_, coder)| coder)
    }

    fn let_go(&mut self, count: usize, held: &Held) {
        self.coders.drain(..count).for_each(|(_, coder)| held.release(coder.bytes() as u64));
    }
}

/// An object as it was found, to be compressed again or put elsewhere.
pub(super) struct Found {
    pub(super) entry: EntryId,
    bytes: Vec<u8>,
    old: Option<Arc<Dictionary>>,
    /// What to compress it with. Perhaps the same.
    new: Option<Arc<Dictionary>>,
}

/// What became of a found object's place.
pub(super) struct Replaced {
    /// The new one is in it.
    pub(super) done: bool,
    /// The shard let this one go.
    released: Option<Arc<Dictionary>>,
}

impl Ram {
    /// Trains one dictionary at most, a tenth of a second's work, and compresses about `budget` bytes of pages again where that
    /// makes them smaller. If another thread is at it, nothing.
    pub(super) fn densify(&self, budget: Budget) -> Maintained {
        let mut done = Maintained::default();
        let settings = self.dictionaries.settings();
        let Some(mut sweep) = self.sweep.try_lock() else { return done };
        if settings.is_none() && self.dense.is_none() {
            return done;
        }
        self.dictionaries.forget(&self.held, |handle| self.is_gone(handle));
        with_scratch(|scratch| {
            for (id, owner) in self.dictionaries.owners() {
                if let Some(settings) = settings
                    && let Some((samples, seen)) = owner.due(settings)
                    && self.renew(scratch, settings, id, &owner, &samples, seen)
                {
                    sweep.tour.at = Some(Cursor::default());
                    done.moved_bytes += samples.len() as u64 * self.work_a_page(false);
                    break;
                }
            }
            if let Some(dense) = self.dense {
                sweep.tour.begin(self.index.counts().puts, self.index.now(), dense.kinds, dense.idle);
            }
            while let Some(cursor) = sweep.tour.at {
                if done.moved_bytes >= budget.bytes {
                    done.more = true;
                    break;
                }
                sweep.tour.at = self.step(scratch, &mut sweep, cursor, &mut done);
            }
            if sweep.tour.at.is_none() {
                let all = sweep.coders.len();
                sweep.let_go(all, &self.held);
            }
        });
        done
    }

    /// Trains a dictionary and makes it the owner's, if it is good for something; whether it was.
    fn renew(
        &self,
        scratch: &mut Scratch,
        settings: Settings,
        id: OwnerId,
        owner: &Owner,
        samples: &[(Handle, PageKey)],
        seen: u64,
    ) -> bool {
        let old = owner.current();
        let page_size = self.capabilities.page_size;
        // Training takes time by the byte.
        let samples = &samples[..samples.len().min(SAMPLE_BYTES / page_size)];
        let mut pages: Vec<u8> = Vec::with_capacity(samples.len() * page_size);
        for (handle, key) in samples {
            let start = pages.len();
            pages.resize(start + page_size, 0);
            if self.peek(scratch, *handle, *key, &mut pages[start..]).is_none() {
                pages.truncate(start);
            }
        }
        // Some samples are gone already; of the pages they stand for as many.
        let found = pages.len() / page_size;
        let live = seen.saturating_mul(found as u64) / samples.len().max(1) as u64;
        let trained = (found >= FEWEST && (old.is_some() || live >= settings.from_pages))
            .then(|| self.trained(scratch, settings, &pages, old.as_deref(), live))
            .flatten();
        if let Some(old) = &old {
            self.dictionaries.release(old, &self.pool, &self.held);
        }
        let made = trained.and_then(|(content, prepared, bytes)| {
            let place = self.dictionaries.free_place()?;
            let dictionary_id = DictionaryId::new(place, &content);
            let (pool, held) = (&self.pool, &self.held);
            // If there is no room for it, it is tried again later.
            let made =
                Dictionary::install(dictionary_id, id, &content, prepared, page_size, pool, held).ok()?;
            Some((made, bytes))
        });
        owner.tried(made.as_ref().map(|(_, bytes)| *bytes), &self.held);
        let Some((made, _)) = made else { return false };
        self.dictionaries.add(&made);
        owner.set_current(&made);
        // Its first objects: from now on it is theirs.
        for (handle, _) in samples {
            if let Some(Named::Entry(entry)) = named(*handle) {
                let found = self.index.look(entry).and_then(|shard| self.found(&shard, entry, None));
                if let Some(found) = found {
                    self.again(scratch, None, &found);
                }
            }
        }
        self.dictionaries.release(&made, &self.pool, &self.held);
        true
    }

    /// What compressing a page counts against a budget: it takes several times as long as moving one.
    fn work_a_page(&self, densely: bool) -> u64 {
        let pages = if densely { 8 } else { 4 };
        pages * self.capabilities.page_size as u64
    }

    /// A dictionary from these pages, prepared, and the bytes of objects made with it; if what it saves on `live` pages is more
    /// than what it takes. An owner that has one with fewer than [`DICTIONARY_FROM`] is to have it as if there were so many.
    fn trained(
        &self,
        scratch: &mut Scratch,
        settings: Settings,
        pages: &[u8],
        old: Option<&Dictionary>,
        live: u64,
    ) -> Option<(Vec<u8>, Prepared, f64)> {
        let page_size = self.capabilities.page_size;
        let (mut to_train, mut to_judge) = (Vec::with_capacity(pages.len()), Vec::new());
        for (number, page) in pages.chunks_exact(page_size).enumerate() {
            if number % HELD_OUT == 0 {
                to_judge.push(page);
            } else {
                to_train.extend_from_slice(page);
            }
        }
        let content = train(&to_train, page_size, settings.size)?;
        let prepared = Prepared::new(&content, settings.level)?;
        let id = DictionaryId::new(0, &content);
        let (mut before, mut after) = (0, 0);
        for page in &to_judge {
            before += match old {
                Some(old) => scratch.encode_with(old.prepared().coder(), old.id(), page).1.len(),
                None => scratch.encode(densest(settings.level)?, page).1.len(),
            };
            after += scratch.encode_with(prepared.coder(), id, page).1.len();
        }
        let saved = (before as f64 - after as f64) / to_judge.len() as f64;
        let taken = prepared.bytes() + content.len();
        let pays = saved * live.max(DICTIONARY_FROM) as f64 > taken as f64;
        let better = (after as f64) < before as f64 * (1.0 - LEAST_GAIN);
        (pays && better).then(|| (content, prepared, after as f64 / to_judge.len() as f64))
    }

    /// Compresses one group of entries again; where to go on.
    fn step(
        &self,
        scratch: &mut Scratch,
        sweep: &mut Sweep,
        cursor: Cursor,
        done: &mut Maintained,
    ) -> Option<Cursor> {
        let found: Vec<Found> = {
            let shard = self.index.look_at(cursor)?;
            let Some(entries) = shard.group(cursor) else { return Some(cursor.next_shard()) };
            let mut tour = Some(&mut sweep.tour);
            entries.filter_map(|(entry, _)| self.found(&shard, entry, tour.as_deref_mut())).collect()
        };
        for found in &found {
            self.again(scratch, self.dense.map(|dense| (dense.level, &mut *sweep)), found);
            done.moved_bytes += self.work_a_page(self.dense.is_some());
        }
        Some(cursor.next_group())
    }

    /// A copy of the object of this entry, if it is to be compressed again: its owner has a dictionary that it isn't made with, or it can be
    /// denser, and a tour is out for its kind. The copy's dictionaries are used until [`again`](Self::again) is done with it.
    fn found(&self, shard: &Shard, entry: EntryId, tour: Option<&mut Tour>) -> Option<Found> {
        let (object, _) = object::parse(self.pool.bytes(shard.slot(entry)?))?;
        let with_dictionaries = object.form.is_zstd() && self.dictionaries.settings().is_some();
        if !object.form.is_page() || object.form.is_dense() && !with_dictionaries {
            return None;
        }
        if let Some(tour) = tour
            && !self.is_toured(shard, entry, &object, tour)
        {
            return None;
        }
        let release = |used: &Option<Arc<Dictionary>>| {
            used.iter().for_each(|used| self.dictionaries.release(used, &self.pool, &self.held));
        };
        let current = self.dictionaries.current(object.key.owner);
        let is_current = current.as_ref().is_none_or(|current| object.dictionary() == Some(current.id()));
        if is_current && (self.dense.is_none() || object.form.is_dense()) {
            release(&current);
            return None;
        }
        let Some(mut found) = self.copied(shard, entry, &object) else {
            release(&current);
            return None;
        };
        // An owner that has none any more keeps what it has.
        found.new = match (current, &found.old) {
            (None, Some(old)) if old.acquire() => Some(Arc::clone(old)),
            (current, _) => current,
        };
        Some(found)
    }

    /// The tour is for objects like this one. Without [`Recompress`] it is for those that were made without the owner's dictionary.
    fn is_toured(&self, shard: &Shard, entry: EntryId, object: &object::Object<'_>, tour: &mut Tour) -> bool {
        let Some(dense) = self.dense else { return object.form.is_zstd() };
        let long = object.payload.len() >= dense.threshold;
        let unused = self.index.now().saturating_sub(shard.touched_at(entry));
        let wants = |idle| long && dense.kinds.wants(object.form, idle);
        let is_toured = wants(unused >= second(dense.idle));
        tour.passed_young |= !is_toured && wants(true);
        is_toured
    }

    /// A copy of an object, whose dictionary is used until the copy is [let go](Self::let_go_of). `None` if it can't be read for want
    /// of that dictionary.
    pub(super) fn copied(&self, shard: &Shard, entry: EntryId, object: &object::Object<'_>) -> Option<Found> {
        let old = match object.dictionary() {
            Some(id) => Some(Arc::clone(shard.dictionary(id).filter(|old| old.acquire())?)),
            None => None,
        };
        let bytes = self.pool.bytes(shard.slot(entry)?)[..object::HEADER + object.payload.len()].to_vec();
        Some(Found { entry, bytes, old, new: None })
    }

    /// The page of a found object; which it is, if it is whole.
    pub(super) fn page_of(&self, scratch: &mut Scratch, found: &Found, page: &mut [u8]) -> Option<PageKey> {
        let object = object::verified(&found.bytes)?;
        match &found.old {
            Some(old) => scratch.decode_with(old.prepared(), object.payload, page),
            None => scratch.decode(object.form, object.payload, page),
        }
        .ok()?;
        Some(object.key)
    }

    /// Ends the use of a found object's dictionaries.
    pub(super) fn let_go_of(&self, found: &Found, replaced: Option<&Replaced>) {
        let released = replaced.and_then(|replaced| replaced.released.as_ref());
        for dictionary in [found.new.as_ref(), found.old.as_ref(), released].into_iter().flatten() {
            self.dictionaries.release(dictionary, &self.pool, &self.held);
        }
    }

    /// Compresses a found object, densely if that is said, and replaces it, if that is smaller, or as dense as it gets, and it is
    /// still there.
    fn again(&self, scratch: &mut Scratch, densely: Option<(i32, &mut Sweep)>, found: &Found) {
        let replaced = self.anew(scratch, densely, found);
        self.let_go_of(found, replaced.as_ref());
    }

    /// As [`again`](Self::again), without letting go.
    fn anew(
        &self,
        scratch: &mut Scratch,
        densely: Option<(i32, &mut Sweep)>,
        found: &Found,
    ) -> Option<Replaced> {
        let mut page = vec![0; self.capabilities.page_size];
        self.page_of(scratch, found, &mut page)?;
        let object = object::verified(&found.bytes)?;
        let is_dense = densely.is_some();
        let (form, made) = match (&found.new, densely) {
            (Some(new), Some((level, sweep))) => {
                scratch.encode_with(sweep.coder(new, level, self)?, new.id(), &page)
            }
            (Some(new), None) => scratch.encode_with(new.prepared().coder(), new.id(), &page),
            (None, Some((level, _))) => scratch.encode(densest(level)?, &page),
            (None, None) => return None,
        };
        let form = if is_dense { form.dense() } else { form };
        // zstd takes twice as long to decode as lz4, so a page isn't made zstd for nothing.
        let least = if object.form.is_zstd() { 0 } else { found.bytes.len() / 16 };
        let anyway = found.new_differs() && object.form.is_zstd();
        if form.is_zstd() && (made.len() + least < found.bytes.len() || anyway) {
            let mark = object::write_header(object.key, form, made);
            if is_dense {
                self.recompressed.add(1);
            }
            return self.replace(found, made, mark, found.new.as_ref());
        }
        // As small as it was: that it is as dense as it gets is worth knowing.
        let mut same = found.bytes.clone();
        let mark = object::write_header(object.key, object.form.dense(), &mut same);
        if is_dense { self.replace(found, &same, mark, found.old.as_ref()) } else { None }
    }

    /// Puts a new object, made with this dictionary, in a found one's place, if it takes no more memory. `None`: there was nowhere to
    /// make it.
    pub(super) fn replace(
        &self,
        found: &Found,
        object: &[u8],
        mark: u32,
        dictionary: Option<&Arc<Dictionary>>,
    ) -> Option<Replaced> {
        let was = object::parse(&found.bytes)?.0.form;
        let mut place = self.pool.take(object.len(), &self.held, Purpose::Upkeep).ok()?;
        let mut replaced = Replaced { done: false, released: None };
        let unused = {
            let Some(mut shard) = self.index.write(found.entry) else { return Some(replaced) };
            let there = shard.slot_mut(found.entry).filter(|slot| {
                // The same bytes under the same entry: whatever has become of it meanwhile, it is this page.
                self.pool.bytes(slot).starts_with(&found.bytes) && place.len() <= slot.len()
            });
            match there {
                Some(slot) => {
                    object::commit(self.pool.bytes_mut(&mut place), object, mark);
                    let (_, is) = object::stored_len(self.pool.bytes(&place));
                    let mut old = std::mem::replace(slot, place.tagged(found.entry.tag()));
                    object::retire(self.pool.bytes_mut(&mut old));
                    shard.became((was, found.bytes.len()), (is.unwrap_or(was), object.len()));
                    if let Some(dictionary) = dictionary {
                        shard.keep(dictionary);
                    }
                    replaced.released = found.old.as_ref().and_then(|old| shard.let_go(old.id()));
                    replaced.done = true;
                    old
                }
                None => place,
            }
        };
        self.pool.give(unused, &self.held);
        Some(replaced)
    }

    /// The page a handle names, for background work: not counted as fetched.
    fn peek(&self, scratch: &mut Scratch, handle: Handle, key: PageKey, out: &mut [u8]) -> Option<()> {
        let Some(Named::Entry(entry)) = named(handle) else { return None };
        self.peek_entry(scratch, entry, out).filter(|found| *found == key).map(|_| ())
    }

    /// The page in an entry, and under which key.
    pub(super) fn peek_entry(
        &self,
        scratch: &mut Scratch,
        entry: EntryId,
        out: &mut [u8],
    ) -> Option<PageKey> {
        let shard = self.index.look(entry)?;
        let object = object::verified(self.pool.bytes(shard.slot(entry)?))?;
        match object.dictionary() {
            Some(id) => scratch.decode_with(shard.dictionary(id)?.prepared(), object.payload, out).ok()?,
            None => scratch.decode(object.form, object.payload, out).ok()?,
        }
        Some(object.key)
    }

    /// The handle names no page any more.
    pub(super) fn is_gone(&self, handle: Handle) -> bool {
        let Some(Named::Entry(entry)) = named(handle) else { return true };
        self.index.look(entry).is_none_or(|shard| shard.slot(entry).is_none())
    }

    /// Puts the dictionaries of a found arena together. The caller is a user of each.
    pub(super) fn find_dictionaries(
        &self,
        pieces: Vec<(PageKey, Slot)>,
    ) -> Result<Vec<Arc<Dictionary>>, NoRoom> {
        let level = self.dictionaries.settings().map_or(codec::READ_ONLY, |settings| settings.level);
        let mut found = Vec::new();
        for chain in chains(pieces, &self.pool, |slot| self.drop_object(slot)) {
            match Prepared::new(&chain.content, level) {
                Some(prepared) if !self.dictionaries.is_taken(chain.id.place()) => {
                    let dictionary = Dictionary::found(chain, prepared, &self.held)?;
                    self.dictionaries.add(&dictionary);
                    if let Some(owner) = self.dictionaries.owner(dictionary.owner(), &self.held) {
                        owner.set_current(&dictionary);
                    }
                    found.push(dictionary);
                }
                _ => chain.slots.into_iter().for_each(|slot| self.drop_object(slot)),
            }
        }
        Ok(found)
    }
}

impl Found {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it takes to read it. It is in use.
    pub(super) fn dictionary(&self) -> Option<&Arc<Dictionary>> {
        self.old.as_ref()
    }

    fn new_differs(&self) -> bool {
        let id = |dictionary: &Option<Arc<Dictionary>>| dictionary.as_ref().map(|dictionary| dictionary.id());
        id(&self.new) != id(&self.old)
    }
}

/// What compresses densely without a dictionary.
#[cfg(feature = "ram-zstd")]
fn densest(level: i32) -> Option<codec::Codec> {
    Some(codec::Codec::Zstd { level })
}

#[cfg(not(feature = "ram-zstd"))]
fn densest(_: i32) -> Option<codec::Codec> {
    None
}
