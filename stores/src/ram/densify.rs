//! Making a store denser in the background: dictionaries are trained, and pages compressed again with them.

use std::sync::Arc;

use userswap_store::{Budget, Handle, Maintained, OwnerId, PageKey};

use super::arena::Slot;
use super::codec::{Prepared, Scratch, train, with_scratch};
use super::dictionaries::{Owner, SAMPLES, Settings};
use super::dictionary::{Dictionary, DictionaryId, chains};
use super::index::{Cursor, EntryId, Named, named};
use super::object::{self, Form};
use super::pool::NoRoom;
use super::{DICTIONARY_FROM, Ram, codec};

/// A dictionary that saves less than this part of the bytes isn't worth the work.
const LEAST_GAIN: f64 = 0.01;
/// With fewer pages there is nothing to train on.
const FEWEST: usize = 10;
/// Bytes of pages trained on and judged by, at most.
const SAMPLE_BYTES: usize = SAMPLES * 4096;
/// One sample in so many isn't trained on: the dictionary is judged by them.
const HELD_OUT: usize = 5;

/// An object as it was found, to be compressed again.
struct Found {
    entry: EntryId,
    bytes: Vec<u8>,
    old: Option<Arc<Dictionary>>,
    current: Arc<Dictionary>,
}

impl Ram {
    /// Trains one dictionary at most, a tenth of a second's work, and compresses about `budget` bytes of pages again where that
    /// makes them smaller. If another thread is at it, nothing.
    pub(super) fn densify(&self, budget: Budget) -> Maintained {
        let mut done = Maintained::default();
        let (Some(settings), Some(mut sweep)) =
            (self.dictionaries.settings(), self.dictionaries.sweep.try_lock())
        else {
            return done;
        };
        self.dictionaries.forget(&self.held, |handle| self.is_gone(handle));
        with_scratch(|scratch| {
            for (id, owner) in self.dictionaries.owners() {
                if let Some((samples, seen)) = owner.due(settings)
                    && self.renew(scratch, settings, id, &owner, &samples, seen)
                {
                    *sweep = Some(Cursor::default());
                    done.moved_bytes += samples.len() as u64 * self.work_a_page();
                    break;
                }
            }
            while let Some(cursor) = *sweep {
                if done.moved_bytes >= budget.bytes {
                    done.more = true;
                    break;
                }
                *sweep = self.sweep(scratch, cursor, &mut done);
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
                let found = self.index.look(entry).and_then(|shard| {
                    let slot = shard.slot(entry)?;
                    self.found(entry, slot, |id| shard.dictionary(id).map(Arc::clone))
                });
                if let Some(found) = found {
                    self.again(scratch, &found);
                }
            }
        }
        self.dictionaries.release(&made, &self.pool, &self.held);
        true
    }

    /// What compressing a page counts against a budget: it takes several times as long as moving one.
    fn work_a_page(&self) -> u64 {
        4 * self.capabilities.page_size as u64
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
                Some(old) => scratch.encode_with(old.prepared(), old.id(), page).1.len(),
                None => scratch.encode(self.codec, page).1.len(),
            };
            after += scratch.encode_with(&prepared, id, page).1.len();
        }
        let saved = (before as f64 - after as f64) / to_judge.len() as f64;
        let taken = prepared.bytes() + content.len();
        let pays = saved * live.max(DICTIONARY_FROM) as f64 > taken as f64;
        let better = (after as f64) < before as f64 * (1.0 - LEAST_GAIN);
        (pays && better).then(|| (content, prepared, after as f64 / to_judge.len() as f64))
    }

    /// Compresses one group of entries again; where to go on.
    fn sweep(&self, scratch: &mut Scratch, cursor: Cursor, done: &mut Maintained) -> Option<Cursor> {
        let found: Vec<Found> = {
            let shard = self.index.look_at(cursor)?;
            let Some(entries) = shard.group(cursor) else { return Some(cursor.next_shard()) };
            let dictionary = |id| shard.dictionary(id).map(Arc::clone);
            entries.filter_map(|(entry, slot)| self.found(entry, slot, dictionary)).collect()
        };
        for found in &found {
            self.again(scratch, found);
            done.moved_bytes += self.work_a_page();
        }
        Some(cursor.next_group())
    }

    /// A copy of the object in this slot, if its owner has a dictionary that it isn't made with. The copy's dictionaries are used
    /// until [`again`](Self::again) is done with it.
    fn found(
        &self,
        entry: EntryId,
        slot: &Slot,
        dictionary: impl Fn(DictionaryId) -> Option<Arc<Dictionary>>,
    ) -> Option<Found> {
        let bytes = self.pool.bytes(slot);
        let (object, _) = object::parse(bytes)?;
        if !matches!(object.form, Form::Zstd | Form::ZstdDictionary) {
            return None;
        }
        let current = self.dictionaries.current(object.key.owner)?;
        let old = object.dictionary().and_then(dictionary);
        if object.dictionary() == Some(current.id()) || old.as_ref().is_some_and(|old| !old.acquire()) {
            self.dictionaries.release(&current, &self.pool, &self.held);
            return None;
        }
        let bytes = bytes[..object::HEADER + object.payload.len()].to_vec();
        Some(Found { entry, bytes, old, current })
    }

    /// Compresses a found object with its owner's dictionary and replaces it, if that is smaller and it is still there.
    fn again(&self, scratch: &mut Scratch, found: &Found) {
        let mut page = vec![0; self.capabilities.page_size];
        let read = object::verified(&found.bytes).and_then(|object| {
            match &found.old {
                Some(old) => scratch.decode_with(old.prepared(), object.payload, &mut page),
                None => scratch.decode(object.form, object.payload, &mut page),
            }
            .ok()?;
            Some(object.key)
        });
        let released = read.and_then(|key| {
            let current = found.current.prepared();
            let (form, object) = scratch.encode_with(current, found.current.id(), &page);
            let mark = object::write_header(key, form, object);
            (form == Form::ZstdDictionary).then(|| self.replace(found, object, mark)).flatten()
        });
        for dictionary in [Some(&found.current), found.old.as_ref(), released.as_ref()].into_iter().flatten()
        {
            self.dictionaries.release(dictionary, &self.pool, &self.held);
        }
    }

    /// Puts a new object in a found one's place, if that takes less memory; answers the dictionary the shard let go.
    fn replace(&self, found: &Found, object: &[u8], mark: u32) -> Option<Arc<Dictionary>> {
        let mut place = self.pool.take(object.len(), &self.held).ok()?;
        let mut released = None;
        let unused = {
            let mut shard = self.index.write(found.entry)?;
            let there = shard.slot_mut(found.entry).filter(|slot| {
                // The same bytes under the same entry: whatever has become of it meanwhile, it is this page.
                self.pool.bytes(slot).starts_with(&found.bytes)
                    && (place.len() < slot.len() || found.old.is_some() && place.len() == slot.len())
            });
            match there {
                Some(slot) => {
                    object::commit(self.pool.bytes_mut(&mut place), object, mark);
                    let mut old = std::mem::replace(slot, place.tagged(found.entry.tag()));
                    object::retire(self.pool.bytes_mut(&mut old));
                    shard.resized(found.bytes.len(), object.len());
                    shard.keep(&found.current);
                    released = found.old.as_ref().and_then(|old| shard.let_go(old.id()));
                    old
                }
                None => place,
            }
        };
        self.pool.give(unused, &self.held);
        released
    }

    /// The page a handle names, for background work: not counted as fetched.
    fn peek(&self, scratch: &mut Scratch, handle: Handle, key: PageKey, out: &mut [u8]) -> Option<()> {
        let Some(Named::Entry(entry)) = named(handle) else { return None };
        let shard = self.index.look(entry)?;
        let object =
            object::verified(self.pool.bytes(shard.slot(entry)?)).filter(|object| object.key == key)?;
        match object.dictionary() {
            Some(id) => scratch.decode_with(shard.dictionary(id)?.prepared(), object.payload, out).ok(),
            None => scratch.decode(object.form, object.payload, out).ok(),
        }
    }

    /// The handle names no page any more.
    fn is_gone(&self, handle: Handle) -> bool {
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
