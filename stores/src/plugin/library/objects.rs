//! The pages in a library's store: which ids are in use, and that each is removed once and never under a `get`.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use userswap_store::{Handle, Page, PageKey};

use super::{Instance, Refusal};
use crate::layers::sum;
use crate::slab::Table;

/// An instance with its pages. 26 bytes a page in the table and about 18 among the ids.
pub(in crate::plugin) struct Objects {
    table: Table<Entry>,
    ids: Ids,
    pages: AtomicU64,
    instance: Instance,
}

/// Why a page couldn't be put or got.
#[derive(Debug)]
pub(in crate::plugin) enum Trouble {
    /// The library says so.
    Refused(Refusal),
    /// It gave an id that is in use.
    Twice(u64),
    /// It gave a page of another length.
    Length(u64),
    /// It gave another page.
    Changed,
    /// The handle names nothing.
    Unknown,
}

struct Entry {
    id: u64,
    sum: u32,
    /// How many gets are under way, and [`FREED`].
    state: AtomicU32,
}

/// Nobody may begin a get any more, and who ends the last removes the object.
const FREED: u32 = 1 << 31;

impl Objects {
    pub(in crate::plugin) fn new(instance: Instance) -> Self {
        Self { table: Table::new(), ids: Ids::default(), pages: AtomicU64::new(0), instance }
    }

    pub(in crate::plugin) fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(in crate::plugin) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Memory it takes, the library's own apart.
    pub(in crate::plugin) fn bytes(&self) -> u64 {
        self.table.bytes() + self.ids.bytes()
    }

    /// Gives memory back; how much.
    pub(in crate::plugin) fn trim(&self) -> u64 {
        self.table.trim() + self.ids.trim()
    }

    /// Puts all of them, or none.
    pub(in crate::plugin) fn put(
        &self,
        pages: &[Page<'_>],
        handles: &mut [Option<Handle>],
    ) -> Result<(), Trouble> {
        let ids = if pages.len() > 1 && self.instance.has_batches() {
            let ids = self.instance.put_batch(pages).map_err(Trouble::Refused)?;
            self.claim_all(&ids)?;
            ids
        } else {
            let mut ids = Vec::with_capacity(pages.len());
            for page in pages {
                match self.put_one(page) {
                    Ok(id) => ids.push(id),
                    Err(trouble) => {
                        ids.iter().for_each(|id| self.give_up(*id));
                        return Err(trouble);
                    }
                }
            }
            ids
        };
        self.pages.fetch_add(pages.len() as u64, Ordering::Relaxed);
        for ((page, id), handle) in pages.iter().zip(ids).zip(handles) {
            let entry = Entry { id, sum: sum(page.key, page.bytes), state: AtomicU32::new(0) };
            *handle = Some(self.table.insert(entry));
        }
        Ok(())
    }

    /// Gets a page into `page`. After trouble anything may be there.
    pub(in crate::plugin) fn get(
        &self,
        handle: Handle,
        key: PageKey,
        page: &mut [u8],
    ) -> Result<(), Trouble> {
        let begin = |entry: &Entry| entry.begin().then_some((entry.id, entry.sum));
        let (id, expected) = self.table.with(handle, begin).flatten().ok_or(Trouble::Unknown)?;
        let under_way = UnderWay { objects: self, handle };
        // SAFETY: the entry isn't freed, so the id is in use; as long as the get is counted, nobody removes it.
        let got = unsafe { self.instance.get(id, key, page) };
        drop(under_way);
        match got.map_err(Trouble::Refused)? {
            length if length != page.len() as u64 => Err(Trouble::Length(length)),
            _ if sum(key, page) != expected => Err(Trouble::Changed),
            _ => Ok(()),
        }
    }

    /// Whether the handle named a page. The object goes now, or when the last get of it has ended.
    pub(in crate::plugin) fn free(&self, handle: Handle) -> bool {
        let Some(before) = self.table.with(handle, |entry| entry.state.fetch_or(FREED, Ordering::AcqRel))
        else {
            return false;
        };
        if before & FREED != 0 {
            return false;
        }
        self.pages.fetch_sub(1, Ordering::Relaxed);
        if before == 0 {
            self.forget(handle);
        }
        true
    }

    fn put_one(&self, page: &Page<'_>) -> Result<u64, Trouble> {
        let id = self.instance.put(page.key, page.bytes).map_err(Trouble::Refused)?;
        if self.ids.claim(id) { Ok(id) } else { Err(Trouble::Twice(id)) }
    }

    /// All of them, or none: then those that were nobody's are removed.
    fn claim_all(&self, ids: &[u64]) -> Result<(), Trouble> {
        let taken = ids.iter().position(|id| !self.ids.claim(*id));
        let Some(taken) = taken else { return Ok(()) };
        ids[..taken].iter().for_each(|id| self.give_up(*id));
        for (at, id) in ids.iter().enumerate().skip(taken + 1) {
            // One that came before was given up already.
            if !ids[..at].contains(id) && self.ids.claim(*id) {
                self.give_up(*id);
            }
        }
        Err(Trouble::Twice(ids[taken]))
    }

    /// Removes an object that nobody got a handle of.
    fn give_up(&self, id: u64) {
        // Before it is removed: after that it may be another's at once.
        self.ids.release(id);
        // SAFETY: the store gave it for a page just now, and nobody else can name it.
        unsafe { self.instance.remove(id) };
    }

    /// Removes what the handle names, which is freed and which nobody gets.
    fn forget(&self, handle: Handle) {
        if let Some(entry) = self.table.remove(handle) {
            self.ids.release(entry.id);
            // SAFETY: it was in the table, so it is in use; it is freed and no get under way, so none begins. One caller alone found it so.
            unsafe { self.instance.remove(entry.id) };
        }
    }
}

impl Entry {
    /// Counts a get, unless it is freed.
    fn begin(&self) -> bool {
        let more = |state: u32| if state & FREED == 0 { Some(state + 1) } else { None };
        self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }
}

/// A get, counted.
struct UnderWay<'a> {
    objects: &'a Objects,
    handle: Handle,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let end = |entry: &Entry| entry.state.fetch_sub(1, Ordering::AcqRel) == FREED | 1;
        if self.objects.table.with(self.handle, end) == Some(true) {
            self.objects.forget(self.handle);
        }
    }
}

/// Which ids are in use.
#[derive(Default)]
struct Ids([Mutex<Part>; 16]);

#[derive(Default)]
struct Part {
    ids: HashSet<u64, BuildHasherDefault<Mixed>>,
    /// The places it has. What it says itself is less by those that were left and not cleaned up.
    places: usize,
}

impl Ids {
    /// `false` if it is in use.
    fn claim(&self, id: u64) -> bool {
        let mut part = self.of(id).lock();
        let is_new = part.ids.insert(id);
        part.places = part.places.max(part.ids.capacity());
        is_new
    }

    fn release(&self, id: u64) {
        self.of(id).lock().ids.remove(&id);
    }

    fn of(&self, id: u64) -> &Mutex<Part> {
        let mut mixed = Mixed::default();
        mixed.write_u64(id);
        // The set looks at the lowest bits and the highest.
        &self.0[usize::try_from(mixed.finish() >> 32 & 15).unwrap_or(0)]
    }

    fn bytes(&self) -> u64 {
        // Seven eighths of the places can be taken; a place is an id and a byte.
        self.0.iter().map(|part| part.lock().places as u64 * 8 / 7 * 9).sum()
    }

    fn trim(&self) -> u64 {
        let before = self.bytes();
        for part in &self.0 {
            let mut part = part.lock();
            if part.places > part.ids.len() * 4 {
                part.ids.shrink_to_fit();
                part.places = part.ids.capacity();
            }
        }
        before.saturating_sub(self.bytes())
    }
}

/// Ids are small numbers, or addresses: one multiplication spreads them.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}
