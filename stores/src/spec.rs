//! Stores by specification: one line of text that says which store, and how.
//!
//! ```text
//! spec    = *( layer "+" ) store
//! layer   = name [ options ]                        around what stands behind the +
//! store   = kind [ ":" what ] [ options ]
//!         | "zram" [ options ] [ ":" spec ]       behind the colon: where pages are written back to
//!         | "tier" [ options ] ":" spec 1*( ">" spec )
//! options = "?" option *( "&" option )
//! option  = key "=" value
//! size    = digits [ "K" | "M" | "G" | "T" ]        binary: 64M is 67108864 bytes
//! time    = digits ( "us" | "ms" | "s" | "m" )
//! kinds   = kind *( "," kind ), or all, or none
//! kind    = "idle" | "huge" | "huge_idle" | "incompressible"
//! share   = a number from 0 to 1, such as 0.01
//! path    = text, with %XX for a byte that would mean something here: ? & > %
//! ```
//! | store | options |
//! |---|---|
//! | `ram:lz4` | `dedup=on` or `off` (default off): equal pages of one owner are stored once, `capacity=SIZE` |
//! | `ram:zstd` | `level=N` from −7 to 19 (default −1), `dict=SIZE` from 1K to 1M (default 15K) or `dict=off`, `dense=N` from −7 to 19 (default 6) or `dense=off`, `dedup=on` or `off` (default off), `capacity=SIZE` |
//! | `file:PATH` | `size=SIZE` (default 1G for a file, all of a block device; 0: no limit), `reserve=SIZE` of the file system left free (default 128M; 0: none), `compress=lz4`, `zstd` or `off` (default lz4), `encrypt=on` or `off` (default on), `direct=on` or `off` (default on: past the page cache where the file system can), `overwrite=on` or `off` (default off) |
//! | `plugin:PATH` | `capacity=SIZE`; all others are the plug-in's, and go to it as they are written |
//! | `zram`, `zram:SPEC` | see below |
//! | `tier:SPEC>SPEC…` | `age=TIME` after which an untouched page goes down (default 60s), `rate=SIZE` a second at most that goes down (default 64M; 0: no limit), `admit=SHARE` of a page: what takes more in a tier is put into the next (default 0.9; 1: anything stays) |
//!
//! | `zram` option | default | |
//! |---|---|---|
//! | `algo=lz4`, `zstd` | lz4 | how pages come |
//! | `level=N` from −7 to 19 | −1 | with `algo=zstd`: zstd's level |
//! | `dense=N` from −7 to 19, or `off` | 6 | the zstd level of recompression |
//! | `dict=SIZE` from 1K to 1M, or `off` | 15K | a dictionary for owners of many pages, to recompress with |
//! | `recompress=KINDS` | idle | what is recompressed |
//! | `threshold=SIZE` | 0 | of this only what takes so many bytes or more |
//! | `idle=TIME` | 60s | untouched for so long is idle, for recompression |
//! | `writeback=KINDS` | idle,incompressible | what goes to the store behind the colon |
//! | `writeback_idle=TIME` | 10m | untouched for so long is idle, for writeback |
//! | `writeback_limit=SIZE` | 0: none | bytes of pages written back a day, at most |
//! | `dedup=on` or `off` | off | equal pages of one owner are stored once |
//! | `mem_limit=SIZE` | 0: none | the most memory to hold, beside what the store behind the colon holds |
//!
//! | layer | options |
//! |---|---|
//! | `checked` | none |
//! | `sealed` | none |
//! | `metered` | none |
//! | `chaos` | `seed=N`, `latency=TIME`, `put_errors=SHARE`, `fetch_errors=SHARE`, `corruption=SHARE`, `countdown=N` |
//!
//! `dict` is about the dictionaries that owners of many pages get, one each: see [`Builder::dictionary`](crate::ram::Builder::dictionary); `dense` about the level at which
//! what stays is compressed again in the background: [`Builder::dense`](crate::ram::Builder::dense). `file:` takes a
//! directory (the file has no name, and is gone with its store), a file, or a block device; `plugin:` a shared library, by a path with a `/` in it. The rest is told
//! where the stores are.
//!
//! ```text
//! ram:zstd?level=3&dict=8K
//! file:/var/tmp?size=4G&compress=zstd
//! checked+chaos?corruption=0.01&seed=7+ram:lz4
//! zram?recompress=idle,huge&threshold=1K&writeback_limit=400M&mem_limit=1G:file:/var/tmp?size=4G
//! plugin:/usr/lib/userswap/mine.so?capacity=1G&speed=11
//! tier?age=30s:ram:lz4?capacity=64M>ram:zstd?capacity=256M>file:/var/tmp
//! ```
//! In a shell these want quotes.

mod kept;
mod parse;
#[cfg(test)]
mod tests;
mod text;
mod zram;

use std::path::PathBuf;
use std::sync::Arc;

use userswap_store::{Store, StoreError};

pub use kept::Kept;
pub use parse::parse;
pub use zram::{Kinds, ZramSpec};

use crate::layers::{Chaos, Checked, Metered, Mischief};
use crate::tier::{Settings, Tier};
use text::Caret;

/// A dictionary's size if the specification doesn't say it: larger ones aren't better, since for these zstd chooses other
/// settings.
pub(crate) const DICTIONARY: usize = 15 << 10;

/// The level at which what stays is compressed again, if it isn't said: the least at which what is held is at or below 0.6 of zram's on
/// all images measured.
pub(crate) const DENSE: i32 = 6;

/// Opens the store `spec` describes, for pages of `page_size` bytes.
///
/// # Errors
/// [`SpecError::Syntax`] says where in `spec` the trouble is; [`SpecError::Open`] that the store couldn't be made.
pub fn open(spec: &str, page_size: usize) -> Result<Arc<dyn Store>, SpecError> {
    let failed = |source| SpecError::Open { spec: spec.to_owned(), source };
    parse(spec)?.open(page_size).map_err(failed)
}

/// A specification, understood.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Spec {
    /// `ram:lz4`
    RamLz4 {
        /// Equal pages of one owner are stored once.
        dedup: bool,
        /// The most memory to hold, in bytes.
        capacity: Option<u64>,
    },
    /// `ram:zstd`
    RamZstd {
        /// zstd's level.
        level: i32,
        /// The most bytes of a dictionary, `None` for no dictionaries.
        dictionary: Option<usize>,
        /// The level at which what stays is compressed again, `None` to leave it.
        dense: Option<i32>,
        /// Equal pages of one owner are stored once.
        dedup: bool,
        /// The most memory to hold, in bytes.
        capacity: Option<u64>,
    },
    /// `file:`
    File(FileSpec),
    /// `zram`
    Zram(Box<ZramSpec>),
    /// `plugin:`
    Plugin {
        /// The shared library.
        path: PathBuf,
        /// The most to hold, in bytes.
        capacity: Option<u64>,
        /// The plug-in's options, as they are written.
        options: String,
    },
    /// `tier:`
    Tier {
        /// How pages go down.
        settings: Settings,
        /// The stores, fastest first.
        stores: Vec<Spec>,
    },
    /// A layer, and what it is around.
    Layered {
        /// The layer.
        layer: Layer,
        /// The store inside.
        inside: Box<Spec>,
    },
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Layer {
    /// `checked`
    Checked,
    /// `sealed`
    Sealed,
    /// `metered`
    Metered,
    /// `chaos`
    Chaos(Mischief),
}

/// What `file:` says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSpec {
    /// A directory, a file or a block device.
    pub path: PathBuf,
    /// The most to take of it: `None` if it isn't said, `Some(None)` for no limit.
    pub size: Option<Option<u64>>,
    /// What is left free of the file system.
    pub reserve: u64,
    /// How pages are compressed.
    pub compress: Compress,
    /// Pages are unreadable without the key.
    pub encrypt: bool,
    /// Past the page cache.
    pub direct: bool,
    /// What is there may be overwritten.
    pub overwrite: bool,
}

impl FileSpec {
    /// What is left free of a file system if it isn't said.
    pub const RESERVE: u64 = 128 << 20;
    /// The most to take of a file if it isn't said.
    pub const SIZE: u64 = 1 << 30;
}

/// How a store that doesn't have to compresses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// Not at all.
    Off,
    /// By lz4.
    Lz4,
    /// By zstd, at its level −1.
    Zstd,
}

/// Why a specification makes no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The text is wrong. Displays as a sentence, the text, and a mark under the wrong part.
    #[error("{}", Caret { spec, column: *column, len: *len, sentence })]
    Syntax {
        /// The whole specification.
        spec: String,
        /// Where the wrong part starts, in characters from 1.
        column: usize,
        /// How many characters it has, at least 1.
        len: usize,
        /// What is wrong with it.
        sentence: String,
    },
    /// The text is right, and the store couldn't be made.
    #[error("the store {spec} could not be opened")]
    Open {
        /// The whole specification.
        spec: String,
        /// Why.
        source: StoreError,
    },
}

impl Spec {
    /// The same store, holding no more than so many bytes. Stacks stay as they are: each of their stores has a limit of its own.
    #[must_use]
    pub fn with_capacity(mut self, bytes: u64) -> Self {
        match &mut self {
            Self::RamLz4 { capacity, .. }
            | Self::RamZstd { capacity, .. }
            | Self::Plugin { capacity, .. } => {
                *capacity = Some(bytes);
            }
            Self::File(file) => file.size = Some(Some(bytes)),
            Self::Zram(zram) => zram.mem_limit = Some(bytes),
            Self::Tier { .. } => {}
            Self::Layered { inside, .. } => {
                let within = std::mem::replace(&mut **inside, Self::RamLz4 { capacity: None, dedup: false });
                **inside = within.with_capacity(bytes);
            }
        }
        self
    }

    /// The builder of a store in memory.
    #[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
    fn ram_builder(&self, page_size: usize) -> Option<crate::ram::Builder> {
        use crate::ram::{Codec, Ram};
        match *self {
            #[cfg(feature = "ram-lz4")]
            Self::RamLz4 { dedup, capacity } => {
                Some(sized(Ram::with_codec(Codec::Lz4).deduplicate(dedup), capacity, page_size))
            }
            #[cfg(feature = "ram-zstd")]
            Self::RamZstd { level, dictionary, dense, dedup, capacity } => {
                let builder = Ram::with_codec(Codec::Zstd { level });
                let builder = builder.dictionary(dictionary).dense(dense).deduplicate(dedup);
                Some(sized(builder, capacity, page_size))
            }
            _ => None,
        }
    }

    /// Opens the store, for pages of `page_size` bytes.
    ///
    /// # Errors
    /// Those of the store; [`Unsupported`](StoreError::Unsupported) if it isn't in this build.
    #[cfg_attr(
        not(feature = "ram"),
        allow(clippy::only_used_in_recursion, reason = "without a store it isn't asked for")
    )]
    pub fn open(self, page_size: usize) -> Result<Arc<dyn Store>, StoreError> {
        #[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
        if let Some(builder) = self.ram_builder(page_size) {
            return Ok(Arc::new(builder.build()?));
        }
        match self {
            #[cfg(feature = "ram")]
            Self::Zram(spec) => Ok(Arc::new(crate::zram::Zram::open(*spec, page_size)?)),
            #[cfg(feature = "file")]
            Self::File(spec) => Ok(Arc::new(crate::file::File::open(&spec, page_size)?)),
            #[cfg(feature = "plugin")]
            Self::Plugin { path, capacity, options } => {
                Ok(Arc::new(crate::plugin::Plugin::open(&path, capacity, &options, page_size)?))
            }
            Self::Tier { settings, stores } => {
                let stores: Result<Vec<_>, _> =
                    stores.into_iter().map(|store| store.open(page_size)).collect();
                Ok(Arc::new(Tier::new(stores?, settings)?))
            }
            Self::Layered { layer, inside } => {
                let inside = inside.open(page_size)?;
                Ok(match layer {
                    Layer::Checked => Arc::new(Checked::new(inside)),
                    Layer::Metered => Arc::new(Metered::new(inside)),
                    Layer::Chaos(mischief) => Arc::new(Chaos::new(inside, mischief)?),
                    #[cfg(feature = "seal")]
                    Layer::Sealed => Arc::new(crate::layers::Sealed::new(inside)?),
                    #[cfg(not(feature = "seal"))]
                    Layer::Sealed => return Err(left_out()),
                })
            }
            // Those in memory are built above.
            _ => Err(left_out()),
        }
    }
}

fn left_out() -> StoreError {
    StoreError::Unsupported { what: "something that this program was built without" }
}

#[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
fn sized(builder: crate::ram::Builder, capacity: Option<u64>, page_size: usize) -> crate::ram::Builder {
    let builder = builder.page_size(page_size);
    match capacity {
        Some(bytes) => builder.capacity(bytes),
        None => builder,
    }
}
