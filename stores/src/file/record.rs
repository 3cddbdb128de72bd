//! What a page looks like on the device.
//!
//! ```text
//! 0                                    8          24
//! | number (45) | length (17) | form (2) | tag      | payload …     padded to 16 bytes
//! ```
//! Little-endian. `length` is the payload's. The payload is the page, eight bytes that it repeats, or compressed; then sealed. The tag is over the payload, the
//! page's key (which isn't in the record) and the first eight bytes.

use std::sync::Arc;

use userswap_store::{PageKey, StoreError};

use super::book::Book;
use crate::ram::codec::{Codec, with_scratch};
use crate::ram::filled::repeated_word;
use crate::ram::object::{Form, HEADER as SPACE};
use crate::seal::{Number, Seal, TAG};

/// Bytes before the payload.
pub(super) const HEADER: usize = 8 + TAG;
/// What records start at multiples of.
pub(super) const UNIT: usize = 16;

// The codecs leave room for a header in front of what they make.
const _: () = assert!(HEADER == SPACE);

const LENGTH_BITS: u32 = 17;
const NUMBER_BITS: u32 = 45;

/// Makes records of pages and pages of records.
pub(super) struct Records {
    pub(super) seal: Seal,
    pub(super) codec: Option<Codec>,
    /// Where the numbers are from, if others have used the key before.
    pub(super) book: Option<Arc<Book>>,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Filled,
    Compressed,
}

impl Records {
    /// Appends the page's record to `out`; what kind it is.
    pub(super) fn write(&self, key: PageKey, page: &[u8], out: &mut Vec<u8>) -> Result<Kind, StoreError> {
        with_scratch(|scratch| {
            let (form, record) = match (repeated_word(page), self.codec) {
                (Some(word), _) => (Form::Filled, scratch.plain(&word.to_le_bytes())),
                (None, Some(codec)) => scratch.encode(codec, page),
                (None, None) => (Form::Raw, scratch.plain(page)),
            };
            let number = match &self.book {
                Some(book) => book.next_number(),
                None => self.seal.next_number(),
            };
            let (header, payload) = record.split_at_mut(HEADER);
            if number.0 >> NUMBER_BITS != 0 || payload.len() >> LENGTH_BITS != 0 {
                return Err(StoreError::Unsupported { what: "more records than a key is good for" });
            }
            let (code, kind) = match form {
                Form::Raw => (0, Kind::Raw),
                Form::Filled => (1, Kind::Filled),
                Form::Lz4 => (2, Kind::Compressed),
                _ => (3, Kind::Compressed),
            };
            let what = number.0 << (LENGTH_BITS + 2) | (payload.len() as u64) << 2 | code;
            let tag = self.seal.close(key, number, bound(what), payload)?;
            header[..8].copy_from_slice(&what.to_le_bytes());
            header[8..].copy_from_slice(&tag);
            out.extend_from_slice(record);
            out.resize(out.len().next_multiple_of(UNIT), 0);
            Ok(kind)
        })
    }

    /// Makes the page of its record, which is opened in place.
    pub(super) fn read(&self, key: PageKey, record: &mut [u8], page: &mut [u8]) -> Result<(), StoreError> {
        let (form, payload) = self.open(key, record)?;
        decode(key, form, payload, page)
    }

    /// The page of a record, which is opened in place: where it lies if it is there as it came, or else made in `room`, which is of a page's length.
    pub(super) fn view<'a>(
        &self,
        key: PageKey,
        record: &'a mut [u8],
        room: &'a mut [u8],
    ) -> Result<&'a [u8], StoreError> {
        let (form, payload) = self.open(key, record)?;
        if matches!(form, Form::Raw) && payload.len() == room.len() {
            return Ok(payload);
        }
        decode(key, form, payload, room)?;
        Ok(room)
    }

    fn open<'a>(&self, key: PageKey, record: &'a mut [u8]) -> Result<(Form, &'a [u8]), StoreError> {
        let corrupt = |what| StoreError::Corrupt { key, what };
        let Some((header, rest)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(corrupt("length"));
        };
        let what = u64::from_le_bytes(std::array::from_fn(|at| header[at]));
        let tag = std::array::from_fn(|at| header[8 + at]);
        let len = usize::try_from(what >> 2 & ((1 << LENGTH_BITS) - 1)).unwrap_or(usize::MAX);
        let payload = rest.get_mut(..len).ok_or(corrupt("length"))?;
        let number = Number(what >> (LENGTH_BITS + 2));
        self.seal.open(key, number, bound(what), payload, &tag).map_err(corrupt)?;
        let form = match what & 3 {
            0 => Form::Raw,
            1 => Form::Filled,
            2 => Form::Lz4,
            _ => Form::Zstd,
        };
        Ok((form, payload))
    }
}

fn decode(key: PageKey, form: Form, payload: &[u8], page: &mut [u8]) -> Result<(), StoreError> {
    let corrupt = |what| StoreError::Corrupt { key, what };
    with_scratch(|scratch| scratch.decode(form, payload, page)).map_err(corrupt)
}

/// What is bound beside the number: length and form.
#[allow(clippy::cast_possible_truncation, reason = "nineteen bits")]
fn bound(what: u64) -> u32 {
    (what & ((1 << (LENGTH_BITS + 2)) - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_store::OwnerId;
    use userswap_store::testkit::images;

    #[test]
    fn any_flipped_bit_is_found() {
        let key = PageKey { owner: OwnerId(1), page: 2, generation: 3 };
        for encrypts in [true, false] {
            let records = Records { seal: Seal::new(encrypts).unwrap(), codec: Some(Codec::Lz4), book: None };
            for image in images(512) {
                let mut record = Vec::new();
                records.write(key, &image.bytes, &mut record).unwrap();
                let mut page = [0; 512];
                records.read(key, &mut record.clone(), &mut page).unwrap();
                assert_eq!(page, image.bytes[..], "{}", image.name);
                let what = u64::from_le_bytes(std::array::from_fn(|at| record[at]));
                let len = usize::try_from(what >> 2 & 0x1_ffff).unwrap();
                for bit in 0..(HEADER + len) * 8 {
                    let mut flipped = record.clone();
                    flipped[bit / 8] ^= 1 << (bit % 8);
                    let read = records.read(key, &mut flipped, &mut page);
                    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{} bit {bit}", image.name);
                }
                for len in [0, 8, HEADER, HEADER + len - 1] {
                    assert!(records.read(key, &mut record[..len].to_vec(), &mut page).is_err());
                }
            }
        }
    }
}
