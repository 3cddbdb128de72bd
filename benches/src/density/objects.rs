//! Objects of several pages, of which one is wanted: what no store here does, to see what it would save and cost.
//!
//! Bytes are as a store would hold them: a header of 24 bytes an object, rounded up to 16, and 8 of index a page; an object that doesn't compress as it came.

use super::{Kept, PAGE};
use crate::error::Error;
use lz4_flex::block as lz4;
use zstd::bulk::{Compressor, Decompressor};

const HEADER: usize = 24;
const INDEX: usize = 8;

/// How objects are compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// As one piece, decoded as a whole.
    Lz4,
    /// A piece a page, each reaching back into those before it: decoded up to the page that is wanted.
    Chained,
    /// As one piece, at this level.
    Zstd(i32),
}

impl Codec {
    pub(super) const ALL: [Self; 4] = [Self::Lz4, Self::Chained, Self::Zstd(-1), Self::Zstd(6)];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4 objects",
            Self::Chained => "lz4 objects, up to the page",
            Self::Zstd(-1) => "zstd −1 objects",
            Self::Zstd(_) => "zstd 6 objects",
        }
    }
}

pub(super) struct Objects {
    block: usize,
    codec: Codec,
    objects: Vec<Object>,
    room: Vec<u8>,
    zstd: Decompressor<'static>,
}

/// The compressed pieces, one behind the other, and where each ends.
struct Object {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Objects {
    /// The bytes they take, too. `None` where it is the same as another.
    pub(super) fn new(codec: Codec, block: usize, pages: &[&[u8]]) -> Result<Option<(Self, u64)>, Error> {
        if codec == Codec::Chained && block == 1 {
            return Ok(None);
        }
        let failed = Error::io("compressing with zstd");
        let level = if let Codec::Zstd(level) = codec { level } else { 0 };
        let mut zstd = Compressor::new(level).map_err(failed)?;
        let mut objects = Vec::with_capacity(pages.len().div_ceil(block));
        let mut bytes = 0;
        for raw in pages.chunks(block) {
            let object = Object::new(codec, &raw.concat(), &mut zstd)?;
            bytes +=
                (HEADER + object.bytes.len().min(raw.len() * PAGE)).next_multiple_of(16) + INDEX * raw.len();
            objects.push(object);
        }
        let zstd = Decompressor::new().map_err(Error::io("making a decoder of zstd"))?;
        Ok(Some((Self { block, codec, objects, room: vec![0; block * PAGE], zstd }, bytes as u64)))
    }
}

impl Object {
    fn new(codec: Codec, raw: &[u8], zstd: &mut Compressor<'_>) -> Result<Self, Error> {
        let whole = |bytes| Self { bytes, ends: Vec::new() };
        Ok(match codec {
            Codec::Lz4 => whole(lz4::compress(raw)),
            Codec::Zstd(_) => whole(zstd.compress(raw).map_err(Error::io("compressing with zstd"))?),
            Codec::Chained => {
                let (mut bytes, mut ends) = (Vec::new(), Vec::new());
                for from in (0..raw.len()).step_by(PAGE) {
                    let (before, page) = (&raw[..from], &raw[from..from + PAGE]);
                    bytes.extend(if from == 0 {
                        lz4::compress(page)
                    } else {
                        lz4::compress_with_dict(page, before)
                    });
                    ends.push(bytes.len());
                }
                Self { bytes, ends }
            }
        })
    }
}

impl Kept for Objects {
    fn read(&mut self, page: usize, out: &mut [u8]) -> Result<(), Error> {
        let (object, at) = (&self.objects[page / self.block], page % self.block);
        let wrong = |error| Error::Input(format!("an object of lz4: {error}"));
        match self.codec {
            Codec::Lz4 => drop(lz4::decompress_into(&object.bytes, &mut self.room).map_err(wrong)?),
            Codec::Zstd(_) => {
                let decoded = self.zstd.decompress_to_buffer(&object.bytes, &mut self.room[..]);
                decoded.map_err(Error::io("decoding with zstd"))?;
            }
            Codec::Chained => {
                let mut from = 0;
                for (piece, end) in object.ends.iter().take(at + 1).enumerate() {
                    let (before, rest) = self.room.split_at_mut(piece * PAGE);
                    let (bytes, into) = (&object.bytes[from..*end], &mut rest[..PAGE]);
                    if piece == 0 {
                        lz4::decompress_into(bytes, into).map_err(wrong)?;
                    } else {
                        lz4::decompress_into_with_dict(bytes, into, before).map_err(wrong)?;
                    }
                    from = *end;
                }
            }
        }
        out.copy_from_slice(&self.room[at * PAGE..][..PAGE]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_of_an_object_is_had_back() {
        let raw: Vec<Vec<u8>> = (0..9)
            .map(|page| (0..PAGE).map(|at| u8::try_from((at / 7 * page + at) % 251).unwrap()).collect())
            .collect();
        let pages: Vec<&[u8]> = raw.iter().map(Vec::as_slice).collect();
        for codec in Codec::ALL {
            for block in [1, 2, 4, 8] {
                let Some((mut objects, bytes)) = Objects::new(codec, block, &pages).unwrap() else {
                    continue;
                };
                assert!(bytes < 9 * PAGE as u64, "{} {block}", codec.name());
                let mut out = [0; PAGE];
                for (page, should) in pages.iter().enumerate() {
                    objects.read(page, &mut out).unwrap();
                    assert!(out[..] == **should, "{} {block} page {page}", codec.name());
                }
            }
        }
    }
}
