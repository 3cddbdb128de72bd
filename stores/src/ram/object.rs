//! What an object looks like in its slot.
//!
//! ```text
//! 0        8                                16           20           24
//! | owner  | page (44) | length (16) | form (4) | generation | check      | payload …
//! ```
//! Little-endian. `length` is the payload's, less 1: none is empty. `check` is a checksum over all the rest, never 0; it is written last, and 0 in a
//! slot without an object: it is both the mark of a live object and the proof that header and payload are whole.

use userswap_store::{Handle, OwnerId, PageKey};

use super::dictionary::DictionaryId;

/// Bytes of the header.
pub(crate) const HEADER: usize = 24;
/// Where in a slot the mark is.
pub(crate) const MARK: std::ops::Range<usize> = 20..24;

const LENGTH_BITS: u32 = 16;
const FORM_BITS: u32 = 4;

/// What an object's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The page as it came.
    Raw,
    /// The eight bytes the page repeats.
    Filled,
    /// An lz4 block.
    Lz4,
    /// A zstd frame.
    Zstd,
    /// A dictionary's id and a zstd frame made with it, without its magic number.
    ZstdDictionary,
    /// No page: a piece of a dictionary.
    Dictionary,
    /// As [`Form::Zstd`], and as dense as it gets.
    DenseZstd,
    /// As [`Form::ZstdDictionary`], and as dense as it gets.
    DenseZstdDictionary,
    /// As [`Form::Raw`], and what else was tried didn't make it smaller.
    DenseRaw,
    /// As [`Form::Lz4`], and as dense as it gets.
    DenseLz4,
    /// No page: what the store behind this one calls it, eight bytes.
    Elsewhere,
    /// No page: the entry of the bytes it has in common with others, as a handle, eight bytes.
    Same,
}

impl Form {
    fn code(self) -> u64 {
        match self {
            Self::Raw => 0,
            Self::Filled => 1,
            Self::Lz4 => 2,
            Self::Zstd => 3,
            Self::ZstdDictionary => 4,
            Self::Dictionary => 5,
            Self::DenseZstd => 6,
            Self::DenseZstdDictionary => 7,
            Self::DenseRaw => 8,
            Self::DenseLz4 => 9,
            Self::Elsewhere => 10,
            Self::Same => 11,
        }
    }

    /// A page compressed by zstd.
    pub(crate) fn is_zstd(self) -> bool {
        self.with_dictionary() || matches!(self, Self::Zstd | Self::DenseZstd)
    }

    /// A page compressed with a dictionary.
    pub(crate) fn with_dictionary(self) -> bool {
        matches!(self, Self::ZstdDictionary | Self::DenseZstdDictionary)
    }

    /// A page as it came: what zram calls huge.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::Raw | Self::DenseRaw)
    }

    /// A page, compressed or not, that could be compressed again or put elsewhere.
    pub(crate) fn is_page(self) -> bool {
        !matches!(self, Self::Filled | Self::Dictionary | Self::Elsewhere | Self::Same)
    }

    /// Nothing is to be gained by compressing it again.
    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::DenseZstd | Self::DenseZstdDictionary | Self::DenseRaw | Self::DenseLz4)
    }

    /// The same payload, of which that is known.
    pub(crate) fn dense(self) -> Self {
        match self {
            Self::Zstd => Self::DenseZstd,
            Self::ZstdDictionary => Self::DenseZstdDictionary,
            Self::Raw => Self::DenseRaw,
            Self::Lz4 => Self::DenseLz4,
            other => other,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        let all = [
            Self::Raw,
            Self::Filled,
            Self::Lz4,
            Self::Zstd,
            Self::ZstdDictionary,
            Self::Dictionary,
            Self::DenseZstd,
            Self::DenseZstdDictionary,
            Self::DenseRaw,
            Self::DenseLz4,
            Self::Elsewhere,
            Self::Same,
        ];
        all.into_iter().find(|form| form.code() == code)
    }
}

/// An object whose header is sound. Its payload is sound too if it came from [`verified`].
pub(crate) struct Object<'a> {
    pub(crate) key: PageKey,
    pub(crate) form: Form,
    pub(crate) payload: &'a [u8],
}

impl Object<'_> {
    /// The dictionary it takes to read it.
    pub(crate) fn dictionary(&self) -> Option<DictionaryId> {
        if self.form.with_dictionary() { DictionaryId::of_payload(self.payload) } else { None }
    }

    /// What the store behind this one calls the page, if it is there.
    pub(crate) fn elsewhere(&self) -> Option<Handle> {
        self.handle_of(Form::Elsewhere)
    }

    /// The entry of the bytes the page has in common with others, if it has.
    pub(crate) fn same_as(&self) -> Option<Handle> {
        self.handle_of(Form::Same)
    }

    fn handle_of(&self, form: Form) -> Option<Handle> {
        let named = self.payload.try_into().ok().filter(|_| self.form == form);
        named.and_then(|raw| Handle::from_raw(u64::from_le_bytes(raw)))
    }
}

/// Writes the header of an object whose payload lies behind the space for it, all but the mark, and answers the mark.
///
/// `buffer` is the whole object, its payload of 1 to 65536 bytes at [`HEADER`]. The page number is below [`PageKey::PAGE_LIMIT`].
pub(crate) fn write_header(key: PageKey, form: Form, buffer: &mut [u8]) -> u32 {
    let length = (buffer.len() - HEADER - 1) as u64;
    let packed = key.page << (LENGTH_BITS + FORM_BITS) | length << FORM_BITS | form.code();
    buffer[..8].copy_from_slice(&key.owner.0.to_le_bytes());
    buffer[8..16].copy_from_slice(&packed.to_le_bytes());
    buffer[16..20].copy_from_slice(&key.generation.to_le_bytes());
    buffer[MARK].fill(0);
    check(key.owner.0, packed, key.generation, &buffer[HEADER..])
}

/// Copies an object into its slot, its mark last.
pub(crate) fn commit(slot: &mut [u8], object: &[u8], mark: u32) {
    slot[..object.len()].copy_from_slice(object);
    // Whoever finds the arena after this process was killed finds the mark only if the rest was written before.
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
    slot[MARK].copy_from_slice(&mark.to_le_bytes());
}

/// Takes the mark away.
pub(crate) fn retire(slot: &mut [u8]) {
    slot[MARK].fill(0);
}

/// The object in a slot, if there is one and its lengths make sense; nothing is said of its payload.
pub(crate) fn parse(slot: &[u8]) -> Option<(Object<'_>, u32)> {
    let (header, rest) = slot.split_first_chunk::<HEADER>()?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let (owner, packed, generation, mark) = (word(0), word(8), half(16), half(20));
    let length = usize::try_from(packed >> FORM_BITS & ((1 << LENGTH_BITS) - 1)).ok()? + 1;
    let key = PageKey { owner: OwnerId(owner), page: packed >> (LENGTH_BITS + FORM_BITS), generation };
    let form = Form::from_code(packed & ((1 << FORM_BITS) - 1))?;
    if mark == 0 {
        return None;
    }
    Some((Object { key, form, payload: rest.get(..length)? }, mark))
}

/// The object in a slot, if it is whole.
pub(crate) fn verified(slot: &[u8]) -> Option<Object<'_>> {
    let (object, mark) = parse(slot)?;
    let packed = u64::from_le_bytes(std::array::from_fn(|i| slot[8 + i]));
    (check(object.key.owner.0, packed, object.key.generation, object.payload) == mark).then_some(object)
}

/// The length of the object in a slot, header included; 0 if there is none.
pub(crate) fn stored_len(slot: &[u8]) -> (usize, Option<Form>) {
    parse(slot).map_or((0, None), |(object, _)| (HEADER + object.payload.len(), Some(object.form)))
}

/// A checksum of bytes that are no object.
pub(crate) fn digest(bytes: &[u8]) -> u32 {
    check(0, 0, 0, bytes)
}

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xd6e8_feb8_6659_fd93;
const K2: u64 = 0xa076_1d64_78bd_642f;

/// A checksum that multiplies and folds 16 bytes a step in two lanes: against accidents, not against forgery.
fn check(owner: u64, packed: u64, generation: u32, payload: &[u8]) -> u32 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        #[allow(clippy::cast_possible_truncation, reason = "both halves are used")]
        let (low, high) = (product as u64, (product >> 64) as u64);
        low ^ high
    };
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let mut even = fold(owner ^ K0, packed ^ K1);
    let mut odd = fold(u64::from(generation) ^ K1, payload.len() as u64 ^ K2);
    let (blocks, tail) = payload.as_chunks::<32>();
    for block in blocks {
        even = fold(word(block, 0) ^ K1, word(block, 8) ^ even);
        odd = fold(word(block, 16) ^ K2, word(block, 24) ^ odd);
    }
    let mut last = [0; 32];
    last[..tail.len()].copy_from_slice(tail);
    even = fold(word(&last, 0) ^ K1, word(&last, 8) ^ even);
    odd = fold(word(&last, 16) ^ K2, word(&last, 24) ^ odd);
    let sum = fold(even ^ K0, odd ^ K2);
    #[allow(clippy::cast_possible_truncation, reason = "half the sum is the checksum")]
    let short = (sum ^ sum >> 32) as u32;
    short.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(payload: &[u8], key: PageKey) -> Vec<u8> {
        let mut buffer = vec![0; HEADER];
        buffer.extend_from_slice(payload);
        let mark = write_header(key, Form::Lz4, &mut buffer);
        let mut slot = vec![0xaa; buffer.len() + 13];
        commit(&mut slot, &buffer, mark);
        slot
    }

    const KEY: PageKey = PageKey { owner: OwnerId(u64::MAX), page: PageKey::PAGE_LIMIT - 1, generation: 77 };

    #[test]
    fn a_committed_object_reads_back() {
        for length in [1, 7, 31, 32, 33, 4096, 65536] {
            let payload: Vec<u8> = (0..length).map(|i: usize| i.to_le_bytes()[0]).collect();
            let slot = object(&payload, KEY);
            let found = verified(&slot).unwrap();
            assert_eq!((found.key, found.form, found.payload), (KEY, Form::Lz4, &payload[..]));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let payload: Vec<u8> = (0..61).collect();
        let mut slot = object(&payload, KEY);
        for bit in 0..(HEADER + payload.len()) * 8 {
            slot[bit / 8] ^= 1 << (bit % 8);
            assert!(verified(&slot).is_none(), "bit {bit}");
            slot[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(verified(&slot).is_some());
    }

    #[test]
    fn a_retired_or_unwritten_slot_holds_nothing() {
        let mut slot = object(b"payload", KEY);
        retire(&mut slot);
        assert!(parse(&slot).is_none());
        assert!(parse(&[0; 64]).is_none());
        assert!(parse(&[1; 8]).is_none());
    }
}
