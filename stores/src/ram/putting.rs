//! Putting: what becomes of a page, and finding it a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use userswap_store::{Budget, Handle, Page, StoreError};

use super::arena::Slot;
use super::codec::{Codec, Scratch};
use super::dictionary::Dictionary;
use super::index::filled_handle;
use super::object::Form;
use super::pool::{NoRoom, Purpose};
use super::{Ram, filled, object, same};

/// A put that finds no room has pages written back so many times at most.
const WRITE_BACKS: usize = 4;
/// And each time so many bytes of objects moved together.
const COMPACT_AT_ONCE: u64 = 1 << 20;

impl Ram {
    fn put_one(&self, scratch: &mut Scratch, page: &Page<'_>) -> Result<Handle, NoRoom> {
        let word = filled::repeated_word(page.bytes);
        let sum = self.same.as_ref().filter(|_| word.is_none());
        let sum = sum.map(|_| same::sum(page.key.owner, page.bytes));
        if let Some(sum) = sum
            && let Some(handle) = self.put_same(scratch, page, sum)?
        {
            return Ok(handle);
        }
        let owner = match word {
            Some(_) => None,
            None => self.dictionaries.owner(page.key.owner, &self.held),
        };
        let dictionary = owner.as_ref().filter(|_| !self.is_plain()).and_then(|owner| owner.current());
        let result = self.put_with(scratch, page, word, dictionary.as_ref());
        if let Some(dictionary) = &dictionary {
            self.dictionaries.release(dictionary, &self.pool, &self.held);
        }
        let (handle, form, len) = result?;
        if let Some(owner) = owner.filter(|_| !form.is_raw()) {
            owner.note(handle, page.key, len, &self.held);
        }
        if let Some(sum) = sum {
            self.remember(sum, handle, len);
        }
        Ok(handle)
    }

    /// Dictionaries are for what is compressed again alone.
    fn is_plain(&self) -> bool {
        match self.codec {
            #[cfg(feature = "ram-lz4")]
            Codec::Lz4 => true,
            #[cfg(feature = "ram-zstd")]
            Codec::Zstd { .. } => false,
        }
    }

    /// Puts a page that repeats `word`, or is compressed with this dictionary, of which the caller is a user. The form, and
    /// the object's bytes.
    fn put_with(
        &self,
        scratch: &mut Scratch,
        page: &Page<'_>,
        word: Option<u64>,
        dictionary: Option<&Arc<Dictionary>>,
    ) -> Result<(Handle, Form, usize), NoRoom> {
        let (form, object) = match word {
            Some(word) => match filled::repeated_half(word) {
                Some(half) if !self.recoverable => {
                    self.in_handles.fetch_add(1, Ordering::Relaxed);
                    self.filled_puts.fetch_add(1, Ordering::Relaxed);
                    return Ok((filled_handle(page.key, half), Form::Filled, 0));
                }
                _ => (Form::Filled, scratch.plain(&word.to_le_bytes())),
            },
            None => match dictionary {
                Some(dictionary) => {
                    scratch.encode_with(dictionary.prepared().coder(), dictionary.id(), page.bytes)
                }
                None => scratch.encode(self.codec, page.bytes),
            },
        };
        let dictionary = dictionary.filter(|_| form.with_dictionary());
        let mark = object::write_header(page.key, form, object);
        let mut slot = self.pool.take(object.len(), &self.held, Purpose::Put)?;
        object::commit(self.pool.bytes_mut(&mut slot), object, mark);
        match self.index.insert(page.key, slot, form, object.len(), dictionary, &self.held) {
            Ok(handle) => Ok((handle, form, object.len())),
            Err((slot, error)) => {
                self.drop_object(slot);
                Err(error)
            }
        }
    }

    /// Ends an object that has no entry.
    pub(super) fn drop_object(&self, mut slot: Slot) {
        object::retire(self.pool.bytes_mut(&mut slot));
        self.pool.give(slot, &self.held);
    }

    /// Puts one page, making room from what lies idle if need be.
    pub(super) fn put_with_room(&self, scratch: &mut Scratch, page: &Page<'_>) -> Result<Handle, StoreError> {
        let first = self.put_one(scratch, page);
        let mut result = match first {
            Err(NoRoom::Capacity { .. }) if self.give_back() > 0 => self.put_one(scratch, page),
            other => other,
        };
        for _ in 0..WRITE_BACKS {
            if !matches!(result, Err(NoRoom::Capacity { .. })) || self.write_back_oldest() == 0 {
                break;
            }
            // What went left gaps of all lengths.
            self.compact(Budget::bytes(COMPACT_AT_ONCE));
            result = self.put_one(scratch, page);
        }
        result.map_err(|error| match error {
            NoRoom::Capacity { needed, available, capacity } => {
                self.full.fetch_add(1, Ordering::Relaxed);
                StoreError::Full { needed, available, capacity }
            }
            NoRoom::Arena(source) => StoreError::Io { doing: "making room in the arena", source },
        })
    }
}
