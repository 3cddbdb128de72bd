//! Codecs, and what each thread keeps so that using them needs no allocation.

use std::cell::Cell;

#[cfg(feature = "ram-zstd")]
use zstd::zstd_safe::{CCtx, CDict, DCtx, DDict, DParameter, FrameFormat};

use super::dictionary::DictionaryId;
use super::object::{Form, HEADER};

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// lz4 blocks: fast.
    #[cfg(feature = "ram-lz4")]
    Lz4,
    /// zstd frames: dense. Levels from −7 (fast) to 19; −1 is the default of `ram:zstd`.
    #[cfg(feature = "ram-zstd")]
    Zstd {
        /// zstd's compression level.
        level: i32,
    },
}

impl Codec {
    /// zstd's level, if it is zstd.
    pub(crate) fn level(self) -> Option<i32> {
        match self {
            #[cfg(feature = "ram-lz4")]
            Self::Lz4 => None,
            #[cfg(feature = "ram-zstd")]
            Self::Zstd { level } => Some(level),
        }
    }

    /// Its name in a store's specification.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "ram-lz4")]
            Self::Lz4 => "ram:lz4",
            #[cfg(feature = "ram-zstd")]
            Self::Zstd { .. } => "ram:zstd",
        }
    }
}

/// What a thread needs to make and read objects.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The object being made.
    buffer: Vec<u8>,
    #[cfg(feature = "ram-lz4")]
    lz4: Option<lz4_flex::block::CompressTable>,
    #[cfg(feature = "ram-zstd")]
    compressor: Option<(i32, zstd::bulk::Compressor<'static>)>,
    #[cfg(feature = "ram-zstd")]
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    /// What frames made with dictionaries need.
    #[cfg(feature = "ram-zstd")]
    with_dictionary: (Option<CCtx<'static>>, Option<DCtx<'static>>),
}

/// A dictionary as zstd wants it to compress with, at one level.
#[cfg(feature = "ram-zstd")]
pub(crate) struct Coder(CDict<'static>);

/// A dictionary as zstd wants it: for a level, and for reading.
#[cfg(feature = "ram-zstd")]
pub(crate) struct Prepared {
    coder: Coder,
    decoder: DDict<'static>,
}

/// Without zstd there is none.
#[cfg(not(feature = "ram-zstd"))]
pub(crate) enum Coder {}

/// Without zstd there is none.
#[cfg(not(feature = "ram-zstd"))]
pub(crate) enum Prepared {}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Calls `use_it` with this thread's scratch, or with a fresh one on a thread that is ending.
pub(crate) fn with_scratch<R>(use_it: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let result = use_it(&mut scratch);
    // On a thread that is ending there is nowhere to keep it.
    let _ = SCRATCH.try_with(|kept| kept.set(scratch));
    result
}

impl Scratch {
    /// Lays the page out as an object with space for its header in front: compressed if that makes it smaller than 15⁄16.
    pub(crate) fn encode(&mut self, codec: Codec, page: &[u8]) -> (Form, &mut [u8]) {
        let limit = page.len() - page.len() / 16;
        let room = HEADER + page.len() + page.len() / 8 + 512;
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let compressed = match codec {
            #[cfg(feature = "ram-lz4")]
            Codec::Lz4 => {
                let table = self.lz4.get_or_insert_default();
                lz4_flex::block::compress_into_with_table(page, &mut self.buffer[HEADER..], table)
                    .ok()
                    .map(|len| (Form::Lz4, len))
            }
            #[cfg(feature = "ram-zstd")]
            Codec::Zstd { level } => {
                if self.compressor.as_ref().is_none_or(|(made_for, _)| *made_for != level) {
                    self.compressor = new_compressor(level).map(|compressor| (level, compressor));
                }
                // Room for the worst case: the binding allocates a message if there isn't.
                let room = &mut self.buffer[HEADER..];
                self.compressor
                    .as_mut()
                    .and_then(|(_, compressor)| compressor.compress_to_buffer(page, room).ok())
                    .map(|len| (Form::Zstd, len))
            }
        };
        let (form, len) = match compressed {
            Some((form, len)) if len < limit => (form, len),
            _ => {
                self.buffer[HEADER..HEADER + page.len()].copy_from_slice(page);
                (Form::Raw, page.len())
            }
        };
        (form, &mut self.buffer[..HEADER + len])
    }

    /// As [`encode`](Self::encode), by zstd with a dictionary. The payload is the dictionary's id and a frame without its magic number.
    #[cfg(feature = "ram-zstd")]
    pub(crate) fn encode_with(&mut self, coder: &Coder, id: DictionaryId, page: &[u8]) -> (Form, &mut [u8]) {
        let room = HEADER + page.len() + page.len() / 8 + 512;
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        if self.with_dictionary.0.is_none() {
            self.with_dictionary.0 = CCtx::try_create();
        }
        let compressed = self.with_dictionary.0.as_mut().and_then(|context| {
            context.compress_using_cdict(&mut self.buffer[HEADER..], page, &coder.0).ok()
        });
        match compressed {
            Some(len) if (DictionaryId::LEN..page.len() - page.len() / 16).contains(&len) => {
                self.buffer[HEADER..HEADER + DictionaryId::LEN].copy_from_slice(&id.to_bytes());
                (Form::ZstdDictionary, &mut self.buffer[..HEADER + len])
            }
            _ => (Form::Raw, self.plain(page)),
        }
    }

    #[cfg(not(feature = "ram-zstd"))]
    pub(crate) fn encode_with(&mut self, coder: &Coder, _: DictionaryId, _: &[u8]) -> (Form, &mut [u8]) {
        match *coder {}
    }

    /// As [`decode`](Self::decode), of a payload made with this dictionary.
    #[cfg(feature = "ram-zstd")]
    pub(crate) fn decode_with(
        &mut self,
        dictionary: &Prepared,
        payload: &[u8],
        page: &mut [u8],
    ) -> Result<(), &'static str> {
        if self.with_dictionary.1.is_none() {
            self.with_dictionary.1 = DCtx::try_create().and_then(|mut context| {
                context.set_parameter(DParameter::Format(FrameFormat::Magicless)).ok()?;
                Some(context)
            });
        }
        let frame = payload.get(DictionaryId::LEN..).ok_or("compressed data")?;
        let context = self.with_dictionary.1.as_mut().ok_or("memory to decompress in")?;
        match context.decompress_using_ddict(page, frame, &dictionary.decoder) {
            Ok(len) if len == page.len() => Ok(()),
            Ok(_) => Err("decompressed length"),
            Err(_) => Err("compressed data"),
        }
    }

    #[cfg(not(feature = "ram-zstd"))]
    pub(crate) fn decode_with(
        &mut self,
        dictionary: &Prepared,
        _: &[u8],
        _: &mut [u8],
    ) -> Result<(), &'static str> {
        match *dictionary {}
    }

    /// An object whose payload is these bytes.
    pub(crate) fn plain(&mut self, payload: &[u8]) -> &mut [u8] {
        if self.buffer.len() < HEADER + payload.len() {
            self.buffer.resize(HEADER + payload.len(), 0);
        }
        self.buffer[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        &mut self.buffer[..HEADER + payload.len()]
    }

    /// Decompresses into `page`, which is filled exactly; otherwise says what is wrong.
    pub(crate) fn decode(&mut self, form: Form, payload: &[u8], page: &mut [u8]) -> Result<(), &'static str> {
        if let Some(decoded) = decode_plainly(form, payload, page) {
            return decoded;
        }
        let decoded: Option<usize> = match form {
            #[cfg(feature = "ram-zstd")]
            Form::Zstd | Form::DenseZstd => {
                if self.decompressor.is_none() {
                    self.decompressor = zstd::bulk::Decompressor::new().ok();
                }
                self.decompressor
                    .as_mut()
                    .and_then(|context| context.decompress_to_buffer(payload, page).ok())
            }
            _ => None,
        };
        filled_exactly(decoded, page)
    }
}

/// [`Scratch::decode`] for the forms that take nothing but the two slices; `None` for the others.
pub(crate) fn decode_plainly(
    form: Form,
    payload: &[u8],
    page: &mut [u8],
) -> Option<Result<(), &'static str>> {
    let decoded = match form {
        Form::Raw | Form::DenseRaw => (payload.len() == page.len()).then(|| {
            page.copy_from_slice(payload);
            payload.len()
        }),
        Form::Filled => match payload.try_into() {
            Ok(word) => {
                super::filled::fill(page, u64::from_le_bytes(word));
                Some(page.len())
            }
            Err(_) => return Some(Err("length of a repeated word")),
        },
        #[cfg(feature = "ram-lz4")]
        Form::Lz4 | Form::DenseLz4 => lz4_flex::block::decompress_into(payload, page).ok(),
        _ => return None,
    };
    Some(filled_exactly(decoded, page))
}

fn filled_exactly(decoded: Option<usize>, page: &[u8]) -> Result<(), &'static str> {
    match decoded {
        Some(len) if len == page.len() => Ok(()),
        Some(_) => Err("decompressed length"),
        None => Err("compressed data"),
    }
}

/// The level of dictionaries that nothing is compressed with: the smallest tables.
pub(crate) const READ_ONLY: i32 = -1;

#[cfg(feature = "ram-zstd")]
impl Prepared {
    /// Makes ready what [`train`] made; `None` if it is damaged or memory is short.
    pub(crate) fn new(content: &[u8], level: i32) -> Option<Self> {
        Some(Self { coder: Coder::new(content, level)?, decoder: DDict::try_create(content)? })
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.coder.bytes() + self.decoder.sizeof()
    }

    /// What compresses at the level it was made for.
    pub(crate) fn coder(&self) -> &Coder {
        &self.coder
    }
}

#[cfg(feature = "ram-zstd")]
impl Coder {
    /// `None` if memory is short.
    pub(crate) fn new(content: &[u8], level: i32) -> Option<Self> {
        CDict::try_create(content, level).map(Self)
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.sizeof()
    }
}

#[cfg(not(feature = "ram-zstd"))]
impl Coder {
    pub(crate) fn new(_: &[u8], _: i32) -> Option<Self> {
        None
    }

    pub(crate) fn bytes(&self) -> usize {
        match *self {}
    }
}

#[cfg(not(feature = "ram-zstd"))]
impl Prepared {
    pub(crate) fn new(_: &[u8], _: i32) -> Option<Self> {
        None
    }

    pub(crate) fn bytes(&self) -> usize {
        match *self {}
    }

    pub(crate) fn coder(&self) -> &Coder {
        match *self {}
    }
}

/// A dictionary of at most `size` bytes from pages that lie one behind the other.
///
/// Takes about a tenth of a second for 256 pages of 4096 bytes, and proportionally longer for more.
#[cfg(feature = "ram-zstd")]
pub(crate) fn train(samples: &[u8], page_size: usize, size: usize) -> Option<Vec<u8>> {
    /// Where zstd's own number of the dictionary is. It would be repeated in each frame; 0 isn't.
    const NUMBER: std::ops::Range<usize> = 4..8;
    let sizes = vec![page_size; samples.len() / page_size];
    let mut content = vec![0; size];
    let used = samples.get(..sizes.len() * page_size)?;
    let len = zstd::zstd_safe::train_from_buffer(&mut content[..], used, &sizes).ok()?;
    content.truncate(len);
    content.get_mut(NUMBER)?.fill(0);
    Some(content)
}

#[cfg(not(feature = "ram-zstd"))]
pub(crate) fn train(_: &[u8], _: usize, _: usize) -> Option<Vec<u8>> {
    None
}

#[cfg(feature = "ram-zstd")]
fn new_compressor(level: i32) -> Option<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level).ok()?;
    // The object knows both; saying them again would cost bytes a page.
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(false)).ok()?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false)).ok()?;
    Some(compressor)
}
