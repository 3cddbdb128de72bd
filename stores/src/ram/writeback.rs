//! Putting pages into another store: what stays behind is an object of 32 bytes that says what it is called there.
//!
//! The entry in the index, and so the handle, stay the same, and so nobody who fetches has to wait: until the moment the object is replaced
//! the page is here, and from then on there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use userswap_store::{Budget, Fetch, Handle, Maintained, Page, PageKey, Store, StoreError, Waiter, Wanted};

use super::Ram;
use super::codec::with_scratch;
use super::densify::Found;
use super::index::{Cursor, EntryId};
use super::kinds::{Kinds, Tour, second};
use super::object::{self, Form, HEADER};
use super::pool::{NoRoom, Purpose};
use crate::calls::Count;

/// Pages that are put together.
const BATCH: usize = 32;
/// Entries among which the oldest are looked for when room is needed at once.
const WINDOW: usize = 512;
/// Of these go.
const OLDEST: usize = 128;
/// A limit is for so long.
const DAY: u32 = 24 * 60 * 60;

/// What is put into another store, and into which.
#[derive(Clone)]
pub struct Writeback {
    /// It has pages of the same size.
    pub store: Arc<dyn Store>,
    /// Which pages.
    pub kinds: Kinds,
    /// For so long they were neither put nor fetched, where that is asked for.
    pub idle: Duration,
    /// So many bytes of pages a day at most, to spare a device that wears.
    pub limit: Option<u64>,
}

impl fmt::Debug for Writeback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.store.capabilities().name;
        f.debug_struct("Writeback").field("store", &name).field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

/// The other store, and what was done with it.
pub(super) struct Back {
    pub(super) settings: Writeback,
    walk: Mutex<Walk>,
    spent: Mutex<Spent>,
    /// Pages put there, fetched from there, and puts that failed.
    pub(super) written: Count,
    pub(super) read: Count,
    pub(super) failed: Count,
}

#[derive(Default)]
struct Walk {
    tour: Tour,
    /// Where the oldest were looked for last.
    window: Cursor,
}

/// Bytes of pages written on a day. Locked for a moment only.
#[derive(Default)]
struct Spent {
    day: u32,
    bytes: u64,
}

impl Back {
    pub(super) fn new(settings: Writeback) -> Self {
        let (written, read, failed) = Default::default();
        Self { settings, walk: Mutex::default(), spent: Mutex::default(), written, read, failed }
    }

    /// Bytes that may be written still today; `None`: any number.
    pub(super) fn allowance(&self, now: u32) -> Option<u64> {
        let mut spent = self.spent.lock();
        if spent.day != now / DAY {
            *spent = Spent { day: now / DAY, bytes: 0 };
        }
        self.settings.limit.map(|limit| limit.saturating_sub(spent.bytes))
    }
}

impl Ram {
    /// Puts about `budget` bytes of pages of the kinds that are to go into the other store. If another thread is at it, nothing.
    pub(super) fn write_back(&self, budget: Budget) -> Maintained {
        let mut done = Maintained::default();
        let Some((back, mut walk)) = self.back.as_ref().and_then(|back| Some((back, back.walk.try_lock()?)))
        else {
            return done;
        };
        let Writeback { kinds, idle, .. } = back.settings;
        let now = self.index.now();
        walk.tour.begin(self.index.counts().puts, now, kinds, idle);
        let mut batch: Vec<Found> = Vec::with_capacity(BATCH);
        while let Some(cursor) = walk.tour.at {
            if done.moved_bytes >= budget.bytes {
                done.more = true;
                break;
            }
            let mut passed_young = false;
            let next = self.gather(cursor, &mut batch, |form, touched| {
                let is_idle = now.saturating_sub(touched) >= second(idle);
                passed_young |= !is_idle && kinds.wants(form, true);
                kinds.wants(form, is_idle)
            });
            walk.tour.passed_young |= passed_young;
            if batch.len() >= BATCH || next.is_none() && !batch.is_empty() {
                match self.put_elsewhere(back, &mut batch) {
                    Some(bytes) => done.moved_bytes += bytes,
                    // The rest waits for another time.
                    None => {
                        walk.tour.at = None;
                        walk.tour.passed_young = true;
                        break;
                    }
                }
            }
            walk.tour.at = next;
        }
        batch.iter().for_each(|found| self.let_go_of(found, None));
        done
    }

    /// Puts the oldest pages among some into the other store, whatever their age; how many bytes of pages.
    pub(super) fn write_back_oldest(&self) -> u64 {
        let Some(back) = &self.back else { return 0 };
        let mut walk = back.walk.lock();
        let mut found: Vec<(u32, EntryId)> = Vec::with_capacity(WINDOW);
        let start = walk.window;
        let mut wrapped = false;
        while found.len() < WINDOW {
            if self.index.look_at(walk.window).is_none() {
                (walk.window, wrapped) = (Cursor::default(), true);
            }
            if wrapped && walk.window >= start {
                break;
            }
            let Some(shard) = self.index.look_at(walk.window) else { break };
            let Some(entries) = shard.group(walk.window) else {
                walk.window = walk.window.next_shard();
                continue;
            };
            found.extend(entries.filter_map(|(entry, slot)| {
                let (_, form) = object::stored_len(self.pool.bytes(slot));
                let goes = form.is_some_and(|form| back.settings.kinds.wants(form, true));
                goes.then(|| (shard.touched_at(entry), entry))
            }));
            walk.window = walk.window.next_group();
        }
        found.sort_by_key(|(touched, _)| *touched);
        let mut bytes = 0;
        for some in found[..found.len().min(OLDEST)].chunks(BATCH) {
            let copied = |(_, entry): &(u32, EntryId)| {
                let shard = self.index.look(*entry)?;
                let (object, _) = object::parse(self.pool.bytes(shard.slot(*entry)?))?;
                if object.form.is_page() { self.copied(&shard, *entry, &object) } else { None }
            };
            let mut batch: Vec<Found> = some.iter().filter_map(copied).collect();
            match self.put_elsewhere(back, &mut batch) {
                Some(more) => bytes += more,
                None => break,
            }
        }
        bytes
    }

    /// Copies those objects of a group that are wanted; where to go on.
    fn gather(
        &self,
        cursor: Cursor,
        batch: &mut Vec<Found>,
        mut wants: impl FnMut(Form, u32) -> bool,
    ) -> Option<Cursor> {
        let shard = self.index.look_at(cursor)?;
        let Some(entries) = shard.group(cursor) else { return Some(cursor.next_shard()) };
        for (entry, slot) in entries {
            if let Some((object, _)) = object::parse(self.pool.bytes(slot))
                && wants(object.form, shard.touched_at(entry))
            {
                batch.extend(self.copied(&shard, entry, &object));
            }
        }
        Some(cursor.next_group())
    }

    /// Puts found pages into the other store and what it calls them in their places; the bytes of the pages. `None` if it took none, or no more may
    /// be written. The batch is empty afterwards.
    fn put_elsewhere(&self, back: &Back, batch: &mut Vec<Found>) -> Option<u64> {
        let page_size = self.capabilities.page_size;
        let left = back
            .allowance(self.index.now())
            .map_or(usize::MAX, |left| usize::try_from(left / page_size as u64).unwrap_or(usize::MAX));
        let mut bytes = vec![0; batch.len() * page_size];
        let mut read: Vec<(Found, PageKey, &[u8])> = Vec::with_capacity(batch.len());
        with_scratch(|scratch| {
            for (found, page) in batch.drain(..).zip(bytes.chunks_exact_mut(page_size)) {
                match self.page_of(scratch, &found, page).filter(|_| read.len() < left) {
                    Some(key) => read.push((found, key, page)),
                    // Damaged, it stays to be reported when it is fetched.
                    None => self.let_go_of(&found, None),
                }
            }
        });
        if read.is_empty() {
            return if left == 0 { None } else { Some(0) };
        }
        let mut moved = 0;
        let at_once = back.settings.store.capabilities().max_batch.clamp(1, BATCH);
        let mut failed = false;
        for some in read.chunks(at_once) {
            let pages: Vec<_> = some.iter().map(|(_, key, bytes)| Page { key: *key, bytes }).collect();
            let mut handles = vec![None; pages.len()];
            if !failed && back.settings.store.put(&pages, &mut handles).is_err() {
                back.failed.add(pages.len() as u64);
                failed = true;
            }
            for ((found, key, _), handle) in some.iter().zip(&handles) {
                let replaced = handle.and_then(|handle| {
                    let (object, mark) = moved_to(*key, handle);
                    self.replace(found, &object, mark, None)
                });
                let done = replaced.as_ref().is_some_and(|replaced| replaced.done);
                if let Some(handle) = handle.filter(|_| !done) {
                    // It was freed meanwhile, or there wasn't even room for that.
                    back.settings.store.free(&[handle]);
                }
                moved += u64::from(done);
                self.let_go_of(found, replaced.as_ref());
            }
        }
        back.written.add(moved);
        let bytes = moved * page_size as u64;
        back.spent.lock().bytes += bytes;
        if failed && moved == 0 { None } else { Some(bytes) }
    }

    /// Gets pages that are elsewhere, neighbours together: `places` says which of the wanted they are, and how they are called there.
    pub(super) fn fetch_elsewhere(
        &self,
        places: &[(usize, Wanted)],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) {
        let page_size = self.capabilities.page_size;
        let mut rest = places;
        while let Some(&(first, want)) = rest.first() {
            let together = rest.iter().zip(first..).take_while(|((at, _), next)| at == next).count();
            let wanted: Vec<_> = rest[..together].iter().map(|(_, want)| *want).collect();
            rest = &rest[together..];
            let (Some(out), Some(results)) = (
                out.get_mut(first * page_size..(first + together) * page_size),
                results.get_mut(first..first + together),
            ) else {
                return;
            };
            let Some(back) = &self.back else {
                results.fill_with(|| Err(StoreError::NotFound { key: want.key }));
                continue;
            };
            back.read.add(together as u64);
            if let Err(error) =
                back.settings.store.fetch_run(&wanted, out, results, &waiter.for_place(first as u64))
                && let Some(result) = results.first_mut()
            {
                *result = Err(error);
            }
        }
    }

    /// Names a page that was found to be elsewhere.
    pub(super) fn name_elsewhere(&self, key: PageKey, there: Handle) -> Result<Handle, NoRoom> {
        let (object, mark) = moved_to(key, there);
        let mut slot = self.pool.take(object.len(), &self.held, Purpose::Upkeep)?;
        object::commit(self.pool.bytes_mut(&mut slot), &object, mark);
        let named = self.index.insert(key, slot, Form::Elsewhere, object.len(), None, &self.held);
        named.map_err(|(slot, error)| {
            self.drop_object(slot);
            error
        })
    }

    /// Frees a page that is elsewhere.
    pub(super) fn free_elsewhere(&self, handle: Handle) {
        if let Some(back) = &self.back {
            back.settings.store.free(&[handle]);
        }
    }
}

/// The object that says what a page is called elsewhere, and its mark.
fn moved_to(key: PageKey, handle: Handle) -> ([u8; HEADER + 8], u32) {
    let mut object = [0; HEADER + 8];
    object[HEADER..].copy_from_slice(&handle.into_raw().to_le_bytes());
    let mark = object::write_header(key, Form::Elsewhere, &mut object);
    (object, mark)
}
