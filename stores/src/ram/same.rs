//! Equal pages of one owner, stored once: for owners that ask for it, since it costs a look at every page.
//!
//! ```text
//! page's entry ──▶ object of 32 bytes: key, "the same as" ──▶ entry of the page's bytes ──▶ object
//! ```
//! The first page of its kind is stored as any page, and remembered by a sum over its bytes. When a second comes the first one's bytes get an entry of their own,
//! which no handle names, and both pages say where it is. What the sum says is never believed: bytes are compared. Of two owners nothing is shared,
//! so nobody finds out by the time of a put what others have.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use userswap_store::{Handle, OwnerId, Page, PageKey};

use super::Ram;
use super::codec::Scratch;
use super::index::{EntryId, Named, named};
use super::object::{self, Form, HEADER};
use super::pool::{Held, NoRoom, Purpose};
use crate::calls::Count;

/// What takes no more than this isn't worth sharing.
const LEAST: usize = 128;
/// What an entry of the table of sums takes, about: with its share of empty places.
const REMEMBERED: u64 = 34;

/// What is known of pages that are equal.
#[derive(Default)]
pub(super) struct Same {
    known: Mutex<Known>,
    /// Pages freed while somebody had the above: what they were the same as.
    freed: Mutex<Vec<Handle>>,
    /// Entries made for bytes, and ended: they are no pages.
    pub(super) made: Count,
    pub(super) ended: Count,
}

#[derive(Default)]
struct Known {
    /// By owner and sum: a page, or the entry of bytes, as it was then.
    sums: HashMap<u64, Handle>,
    /// How many pages are the same as this entry.
    shared: HashMap<Handle, u32>,
    /// What both are counted with.
    held: u64,
}

impl Known {
    /// Remembers a page by its sum, if there is room for that.
    fn remember(&mut self, sum: u64, handle: Handle, held: &Held) {
        if self.sums.len() == self.sums.capacity() && !self.sums.contains_key(&sum) {
            let more = self.sums.len().max(64);
            if held.reserve(more as u64 * REMEMBERED).is_err() {
                return;
            }
            self.held += more as u64 * REMEMBERED;
            self.sums.reserve(more);
        }
        self.sums.insert(sum, handle);
    }
}

impl Ram {
    /// Puts a page that is equal to one its owner has already; `None` if there is none that is known of.
    pub(super) fn put_same(
        &self,
        scratch: &mut Scratch,
        page: &Page<'_>,
        sum: u64,
    ) -> Result<Option<Handle>, NoRoom> {
        let Some(same) = &self.same else { return Ok(None) };
        let mut known = same.known.lock();
        self.end_freed(same, &mut known);
        let Some(found) = known.sums.get(&sum).copied() else { return Ok(None) };
        if !self.is_equal(scratch, found, page) {
            return Ok(None);
        }
        let bytes = if known.shared.contains_key(&found) {
            found
        } else {
            let Some(bytes) = self.share(same, &mut known, found) else { return Ok(None) };
            known.remember(sum, bytes, &self.held);
            bytes
        };
        let (object, mark) = said_same(page.key, bytes);
        let mut slot = self.pool.take(object.len(), &self.held, Purpose::Put)?;
        object::commit(self.pool.bytes_mut(&mut slot), &object, mark);
        match self.index.insert(page.key, slot, Form::Same, object.len(), None, &self.held) {
            Ok(handle) => {
                *known.shared.entry(bytes).or_default() += 1;
                Ok(Some(handle))
            }
            Err((slot, error)) => {
                self.drop_object(slot);
                Err(error)
            }
        }
    }

    /// A page was put that nobody knew of. `len`: what its object takes.
    pub(super) fn remember(&self, sum: u64, handle: Handle, len: usize) {
        if let Some(same) = &self.same
            && len > LEAST
        {
            same.known.lock().remember(sum, handle, &self.held);
        }
    }

    /// A page is gone that was the same as others.
    pub(super) fn free_same(&self, bytes: Handle) {
        let Some(same) = &self.same else { return };
        same.freed.lock().push(bytes);
        // Whoever has it now may be waiting for memory; it, or the next one, will do it.
        if let Some(mut known) = same.known.try_lock() {
            self.end_freed(same, &mut known);
        }
    }

    /// Forgets pages that are gone, when there are many.
    pub(super) fn forget_gone(&self, pages: u64) {
        let Some(same) = &self.same else { return };
        let mut known = same.known.lock();
        self.end_freed(same, &mut known);
        if known.sums.len() as u64 > pages + pages / 4 + if pages == 0 { 0 } else { 64 } {
            known.sums.retain(|_, handle| !self.is_gone(*handle));
            known.sums.shrink_to_fit();
            known.shared.shrink_to_fit();
            let needed = known.sums.capacity() as u64 * REMEMBERED;
            self.held.release(known.held.saturating_sub(needed));
            known.held = known.held.min(needed);
        }
    }

    fn end_freed(&self, same: &Same, known: &mut Known) {
        for bytes in std::mem::take(&mut *same.freed.lock()) {
            let Some(pages) = known.shared.get_mut(&bytes) else { continue };
            *pages -= 1;
            if *pages == 0 {
                known.shared.remove(&bytes);
                if let Some(id) = entry(bytes) {
                    same.ended.add(1);
                    self.free_object(id, false);
                }
            }
        }
    }

    /// Gives the bytes of a stored page an entry of their own, which the page is the same as from then on.
    fn share(&self, same: &Same, known: &mut Known, first: Handle) -> Option<Handle> {
        let entry = entry(first)?;
        let found = {
            let shard = self.index.look(entry)?;
            let (object, _) = object::parse(self.pool.bytes(shard.slot(entry)?))?;
            if object.form.is_page() { self.copied(&shard, entry, &object) } else { None }
        }?;
        let shared = self.shared_copy(found.bytes(), found.dictionary()).map(|(key, bytes)| {
            let (object, mark) = said_same(key, bytes);
            let replaced = self.replace(&found, &object, mark, None);
            let done = replaced.as_ref().is_some_and(|replaced| replaced.done);
            self.let_go_of(&found, replaced.as_ref());
            (bytes, done)
        });
        let Some((bytes, done)) = shared else {
            self.let_go_of(&found, None);
            return None;
        };
        same.made.add(1);
        known.shared.insert(bytes, u32::from(done));
        if !done {
            // It was freed, or made denser, meanwhile.
            known.shared.insert(bytes, 1);
            same.freed.lock().push(bytes);
            self.end_freed(same, known);
            return None;
        }
        Some(bytes)
    }

    /// Another entry with this object.
    fn shared_copy(
        &self,
        object: &[u8],
        dictionary: Option<&Arc<super::dictionary::Dictionary>>,
    ) -> Option<(PageKey, Handle)> {
        let (found, mark) = object::parse(object)?;
        let mut slot = self.pool.take(object.len(), &self.held, Purpose::Put).ok()?;
        object::commit(self.pool.bytes_mut(&mut slot), object, mark);
        match self.index.insert(found.key, slot, found.form, object.len(), dictionary, &self.held) {
            Ok(handle) => Some((found.key, handle)),
            Err((slot, _)) => {
                self.drop_object(slot);
                None
            }
        }
    }

    /// What `found` names is of this page's owner, and has its bytes.
    fn is_equal(&self, scratch: &mut Scratch, found: Handle, page: &Page<'_>) -> bool {
        let Some(entry) = entry(found) else { return false };
        let mut bytes = vec![0; page.bytes.len()];
        let key = self.peek_entry(scratch, entry, &mut bytes);
        key.is_some_and(|key| key.owner == page.key.owner) && bytes == page.bytes
    }
}

/// The sum by which a page of this owner is known.
pub(super) fn sum(owner: OwnerId, page: &[u8]) -> u64 {
    let mut lanes = [owner.0 ^ 0x9e37_79b9_7f4a_7c15, 1, 2, 3];
    let (blocks, _) = page.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(29);
        }
    }
    lanes.into_iter().fold(0, |all, lane| (all ^ lane).wrapping_mul(0xa076_1d64_78bd_642f).rotate_left(31))
}

/// The entry a handle names.
pub(super) fn entry(handle: Handle) -> Option<EntryId> {
    match named(handle) {
        Some(Named::Entry(id)) => Some(id),
        _ => None,
    }
}

/// The object that says what a page is the same as, and its mark.
fn said_same(key: PageKey, bytes: Handle) -> ([u8; HEADER + 8], u32) {
    let mut object = [0; HEADER + 8];
    object[HEADER..].copy_from_slice(&bytes.into_raw().to_le_bytes());
    let mark = object::write_header(key, Form::Same, &mut object);
    (object, mark)
}
