//! Fetching: finding an object, seeing that it is the page's, decoding it.

use std::sync::atomic::Ordering;

use userswap_store::{Handle, PageKey, StoreError, Wanted};

use super::codec::{Scratch, decode_plainly};
use super::index::{EntryId, Named, filled_is_of, named};
use super::{Ram, filled, index, object, same};

/// How a page was found.
pub(super) enum Got {
    /// It is in the buffer.
    Ready,
    /// The other store has it under this name and key.
    Elsewhere(Wanted),
}

impl Ram {
    pub(super) fn fetch_one(
        &self,
        scratch: &mut Scratch,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Result<Got, StoreError> {
        let result = match named(handle) {
            Some(Named::Entry(id)) => self.fetch_object(scratch, id, key, out),
            Some(Named::Filled { word, hash }) if filled_is_of(key, hash) => {
                filled::fill(out, u64::from(word) << 32 | u64::from(word));
                self.filled_fetches.fetch_add(1, Ordering::Relaxed);
                Ok(Got::Ready)
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
    ) -> Result<Got, StoreError> {
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
        self.index.touch(&shard, id);
        let Some(same) = object.same_as() else { return got(scratch, &shard, &object, out) };
        drop(shard);
        // Which are there as long as a page is the same as they.
        let corrupt = StoreError::Corrupt { key, what: "bytes it has in common with others" };
        let Some(id) = same::entry(same) else { return Err(corrupt) };
        let Some(shard) = self.index.look(id) else { return Err(corrupt) };
        match shard.slot(id).and_then(|slot| object::verified(self.pool.bytes(slot))) {
            Some(object) if object.key.owner == key.owner => {
                self.index.touch(&shard, id);
                got(scratch, &shard, &object, out)
            }
            _ => Err(corrupt),
        }
    }

    /// As [`fetch_object`](Self::fetch_object), where it takes no scratch and the lock is to be had at once.
    pub(super) fn decode_object(
        &self,
        id: EntryId,
        key: PageKey,
        out: &mut [u8],
    ) -> Option<Result<(), StoreError>> {
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
        self.index.count_fetch(id);
        self.index.touch(&shard, id);
        Some(decoded.map_err(|what| StoreError::Corrupt { key, what }))
    }
}

/// The page of an object that isn't the same as others, or where it is.
fn got(
    scratch: &mut Scratch,
    shard: &index::Shard,
    object: &object::Object<'_>,
    out: &mut [u8],
) -> Result<Got, StoreError> {
    let key = object.key;
    if let Some(handle) = object.elsewhere() {
        return Ok(Got::Elsewhere(Wanted { handle, key }));
    }
    let decoded = match object.dictionary() {
        Some(id) => match shard.dictionary(id) {
            Some(dictionary) => scratch.decode_with(dictionary.prepared(), object.payload, out),
            None => Err("dictionary"),
        },
        None => scratch.decode(object.form, object.payload, out),
    };
    decoded.map_err(|what| StoreError::Corrupt { key, what })?;
    Ok(Got::Ready)
}
