//! What `zram` says.

use std::ops::BitOr;
use std::time::Duration;

#[cfg(feature = "ram")]
use userswap_store::StoreError;

use super::parse::{dictionary, layered, level, level_or_off};
use super::text::{Options, Text, duration, limit, switch};
use super::{DENSE, DICTIONARY, Spec, SpecError};

/// What `zram` says.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ZramSpec {
    /// zstd's level for pages as they come; `None`: lz4.
    pub level: Option<i32>,
    /// The zstd level of recompression, `None` for none.
    pub dense: Option<i32>,
    /// The most bytes of a dictionary, `None` for no dictionaries.
    pub dictionary: Option<usize>,
    /// Equal pages of one owner are stored once.
    pub dedup: bool,
    /// What is recompressed.
    pub recompress: Kinds,
    /// Of that, only what takes so many bytes or more.
    pub threshold: usize,
    /// Untouched for so long is idle, for recompression.
    pub idle: Duration,
    /// What is written back.
    pub writeback: Kinds,
    /// Untouched for so long is idle, for writeback.
    pub writeback_idle: Duration,
    /// The most bytes of pages written back a day.
    pub writeback_limit: Option<u64>,
    /// The most memory to hold, in bytes.
    pub mem_limit: Option<u64>,
    /// The store pages are written back to.
    pub backing: Option<Spec>,
}

/// Kinds of stored pages. They add up: `IDLE | HUGE` are those of either kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Neither put nor fetched for a time.
    pub const IDLE: Self = Self(1);
    /// Kept as they came, since compressing them didn't pay.
    pub const HUGE: Self = Self(2);
    /// Both.
    pub const HUGE_IDLE: Self = Self(4);
    /// Kept as they came although all was tried.
    pub const INCOMPRESSIBLE: Self = Self(8);
    /// All pages.
    pub const ALL: Self = Self(16);

    /// All of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Default for ZramSpec {
    fn default() -> Self {
        Self {
            level: None,
            dense: cfg!(feature = "ram-zstd").then_some(DENSE),
            dictionary: Some(DICTIONARY),
            dedup: false,
            recompress: Kinds::IDLE,
            threshold: 0,
            idle: Duration::from_secs(60),
            writeback: Kinds::IDLE | Kinds::INCOMPRESSIBLE,
            writeback_idle: Duration::from_secs(600),
            writeback_limit: None,
            mem_limit: None,
            backing: None,
        }
    }
}

impl ZramSpec {
    /// How pages come.
    #[cfg(feature = "ram")]
    pub(crate) fn codec(&self) -> Result<crate::ram::Codec, StoreError> {
        match self.level {
            #[cfg(feature = "ram-lz4")]
            None => Ok(crate::ram::Codec::Lz4),
            #[cfg(feature = "ram-zstd")]
            Some(level) => Ok(crate::ram::Codec::Zstd { level }),
            #[cfg(not(all(feature = "ram-lz4", feature = "ram-zstd")))]
            _ => Err(StoreError::Unsupported { what: "an algorithm that this program was built without" }),
        }
    }
}

/// What stands behind `zram`.
pub(super) fn zram<'a>(text: Text<'a>, rest: &'a str) -> Result<Spec, SpecError> {
    let (options, backing) = match rest.split_once(':') {
        Some((options, backing)) => (options, Some(backing)),
        None => (rest, None),
    };
    let options = match options.strip_prefix('?') {
        None if !options.is_empty() => {
            return Err(text.wrong(options, "expected ? and options, or : and a store"));
        }
        options => options,
    };
    let mut options = Options::parse(text, "zram", options)?;
    let usual = ZramSpec::default();
    let zstd = options.read("algo", |text, value| match value {
        "lz4" => Ok(false),
        "zstd" => Ok(true),
        _ => Err(text.wrong(value, "expected lz4 or zstd")),
    })?;
    // Only zstd has levels.
    let level = if zstd == Some(true) { Some(options.read("level", level)?.unwrap_or(-1)) } else { None };
    let threshold = options.read("threshold", limit)?.flatten().unwrap_or(0);
    let mut zram = ZramSpec {
        level,
        dense: options.read("dense", level_or_off)?.unwrap_or(usual.dense),
        dictionary: options.read("dict", dictionary)?.unwrap_or(usual.dictionary),
        recompress: options.read("recompress", kinds)?.unwrap_or(usual.recompress),
        threshold: usize::try_from(threshold).unwrap_or(usize::MAX),
        idle: options.read("idle", duration)?.unwrap_or(usual.idle),
        dedup: options.read("dedup", switch)?.unwrap_or(usual.dedup),
        mem_limit: options.read("mem_limit", limit)?.flatten(),
        ..usual
    };
    if let Some(backing) = backing {
        zram.writeback = options.read("writeback", kinds)?.unwrap_or(zram.writeback);
        zram.writeback_idle = options.read("writeback_idle", duration)?.unwrap_or(zram.writeback_idle);
        zram.writeback_limit = options.read("writeback_limit", limit)?.flatten();
        zram.backing = Some(layered(text, backing)?);
    } else if let Some(value) =
        ["writeback", "writeback_idle", "writeback_limit"].iter().find_map(|key| options.take(key))
    {
        return Err(text.wrong(value, "expected a store to write back to, behind a colon at the end"));
    }
    options.end()?;
    Ok(Spec::Zram(Box::new(zram)))
}

fn kinds(text: Text<'_>, value: &str) -> Result<Kinds, SpecError> {
    match value {
        "all" => return Ok(Kinds::ALL),
        "none" => return Ok(Kinds::NONE),
        _ => {}
    }
    let kind = |word| match word {
        "idle" => Ok(Kinds::IDLE),
        "huge" => Ok(Kinds::HUGE),
        "huge_idle" => Ok(Kinds::HUGE_IDLE),
        "incompressible" => Ok(Kinds::INCOMPRESSIBLE),
        _ => Err(text.wrong(
            word,
            "expected idle, huge, huge_idle or incompressible, with commas between, or all, or none",
        )),
    };
    value.split(',').try_fold(Kinds::NONE, |all, word| Ok(all | kind(word)?))
}
