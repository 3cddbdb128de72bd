//! A dictionary: bytes an owner's pages have in common, which its objects then needn't repeat.
//!
//! It lies in the arena too, as pieces of a page each, so that whoever finds the arena can read the objects that need it:
//! ```text
//! key: owner | pieces << 16 | number of the piece | the dictionary's id        form: dictionary        payload: the piece
//! ```
//! The id is in every object made with the dictionary, in place of zstd's magic number: where the dictionary is kept, and a part
//! of its digest. So an object can't be decoded with another dictionary than its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use userswap_store::{OwnerId, PageKey};

use super::arena::Slot;
use super::codec::Prepared;
use super::object::{self, Form, HEADER};
use super::pool::{Held, NoRoom, Pool, Purpose};

/// So many dictionaries there can be at a time.
pub(crate) const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 12;

/// Names a dictionary in the objects made with it: its place in the store's table, and twenty bits of its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DictionaryId(u32);

impl DictionaryId {
    /// Bytes it takes at the start of a payload.
    pub(crate) const LEN: usize = 4;

    /// The id of a dictionary at this place, which is below [`PLACES`].
    #[allow(clippy::cast_possible_truncation, reason = "a place has 12 bits")]
    pub(crate) fn new(place: usize, content: &[u8]) -> Self {
        Self(object::digest(content) << PLACE_BITS | (place % PLACES) as u32)
    }

    pub(crate) fn place(self) -> usize {
        self.0 as usize % PLACES
    }

    /// The id at the start of a payload.
    pub(crate) fn of_payload(payload: &[u8]) -> Option<Self> {
        payload.first_chunk().map(|bytes| Self(u32::from_le_bytes(*bytes)))
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        self.0.to_le_bytes()
    }
}

/// A dictionary in use.
pub(crate) struct Dictionary {
    id: DictionaryId,
    owner: OwnerId,
    prepared: Prepared,
    /// Whoever may need it: each shard of the index with objects made with it, and puts on their way. It ends with the last.
    users: AtomicU64,
    pieces: Mutex<Vec<Slot>>,
    /// Bytes of the pieces, headers included.
    stored_bytes: u64,
}

impl Dictionary {
    /// Writes the dictionary into the arena and counts its memory. Its first user is the caller.
    pub(crate) fn install(
        id: DictionaryId,
        owner: OwnerId,
        content: &[u8],
        prepared: Prepared,
        page_size: usize,
        pool: &Pool,
        held: &Held,
    ) -> Result<Arc<Self>, NoRoom> {
        let count = content.len().div_ceil(page_size);
        let mut made = Self::over(id, owner, prepared, Vec::with_capacity(count), 0);
        held.reserve(made.heap_bytes())?;
        for (number, piece) in (0..).zip(content.chunks(page_size)) {
            let mut object = vec![0; HEADER];
            object.extend_from_slice(piece);
            let key = PageKey { owner, page: (count as u64) << 16 | number, generation: id.0 };
            let mark = object::write_header(key, Form::Dictionary, &mut object);
            match pool.take(object.len(), held, Purpose::Put) {
                Ok(mut slot) => {
                    object::commit(pool.bytes_mut(&mut slot), &object, mark);
                    made.pieces.get_mut().push(slot);
                    made.stored_bytes += object.len() as u64;
                }
                Err(error) => {
                    made.remove(pool, held);
                    return Err(error);
                }
            }
        }
        Ok(Arc::new(made))
    }

    /// The dictionary whose pieces are in these slots. Its first user is the caller.
    pub(crate) fn found(chain: Chain, prepared: Prepared, held: &Held) -> Result<Arc<Self>, NoRoom> {
        let made = Self::over(chain.id, chain.owner, prepared, chain.slots, chain.stored_bytes);
        held.reserve(made.heap_bytes())?;
        Ok(Arc::new(made))
    }

    fn over(
        id: DictionaryId,
        owner: OwnerId,
        prepared: Prepared,
        slots: Vec<Slot>,
        stored_bytes: u64,
    ) -> Self {
        Self { id, owner, prepared, users: AtomicU64::new(1), pieces: Mutex::new(slots), stored_bytes }
    }

    pub(crate) fn id(&self) -> DictionaryId {
        self.id
    }

    pub(crate) fn owner(&self) -> OwnerId {
        self.owner
    }

    pub(crate) fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// One more user, unless the last has gone.
    #[must_use]
    pub(crate) fn acquire(&self) -> bool {
        let more = |users: u64| if users == 0 { None } else { Some(users + 1) };
        self.users.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// One user less; whether it was the last.
    #[must_use]
    pub(crate) fn release(&self) -> bool {
        self.users.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Gives its memory back: nobody uses it any more.
    pub(crate) fn remove(&self, pool: &Pool, held: &Held) {
        for mut slot in std::mem::take(&mut *self.pieces.lock()) {
            object::retire(pool.bytes_mut(&mut slot));
            pool.give(slot, held);
        }
        held.release(self.heap_bytes());
    }

    /// Its bytes.
    pub(crate) fn content(&self, pool: &Pool) -> Vec<u8> {
        let pieces = self.pieces.lock();
        let payloads = pieces.iter().filter_map(|slot| object::verified(pool.bytes(slot)));
        payloads.flat_map(|object| object.payload).copied().collect()
    }

    /// Its pieces' slots, to be moved.
    pub(crate) fn with_pieces(&self, mut each: impl FnMut(&mut Slot)) {
        self.pieces.lock().iter_mut().for_each(&mut each);
    }

    /// Bytes outside the arena: prepared tables, and what points to it.
    fn heap_bytes(&self) -> u64 {
        (size_of::<Self>() + self.prepared.bytes() + super::index::BYTES_A_DICTIONARY) as u64
    }
}

/// The pieces of a dictionary in a found arena.
pub(crate) struct Chain {
    pub(crate) id: DictionaryId,
    pub(crate) owner: OwnerId,
    pub(crate) slots: Vec<Slot>,
    pub(crate) stored_bytes: u64,
    pub(crate) content: Vec<u8>,
}

/// Puts found pieces together. Those of dictionaries that aren't whole are given to `reject`.
pub(crate) fn chains(
    mut pieces: Vec<(PageKey, Slot)>,
    pool: &Pool,
    mut reject: impl FnMut(Slot),
) -> Vec<Chain> {
    pieces.sort_by_key(|(key, _)| (key.owner, key.generation, key.page));
    let mut found: Vec<Chain> = Vec::new();
    let mut pieces = pieces.into_iter().peekable();
    while let Some((first, slot)) = pieces.next() {
        let (count, id) = (first.page >> 16, DictionaryId(first.generation));
        let mut chain =
            Chain { id, owner: first.owner, slots: Vec::new(), stored_bytes: 0, content: Vec::new() };
        let mut numbers = 0;
        let mut next = Some((first, slot));
        while let Some((key, slot)) = next {
            if key.page == count << 16 | numbers
                && let Some(object) = object::verified(pool.bytes(&slot))
            {
                numbers += 1;
                chain.stored_bytes += (HEADER + object.payload.len()) as u64;
                chain.content.extend_from_slice(object.payload);
                chain.slots.push(slot);
            } else {
                // A piece that was being moved is there twice.
                reject(slot);
            }
            let same = |key: &PageKey| key.owner == first.owner && key.generation == first.generation;
            next = pieces.next_if(|(key, _)| same(key));
        }
        if numbers == count && DictionaryId::new(id.place(), &chain.content) == id {
            found.push(chain);
        } else {
            chain.slots.into_iter().for_each(&mut reject);
        }
    }
    found
}
