//! Stores by specification: one line of text that says which store, and how.
//!
//! ```text
//! spec    = kind ":" name [ "?" option *( "&" option ) ]
//! option  = key "=" value
//! size    = digits [ "K" | "M" | "G" | "T" ]        binary: 64M is 67108864 bytes
//! ```
//! | store | options |
//! |---|---|
//! | `ram:lz4` | `capacity=SIZE` |
//! | `ram:zstd` | `level=N` from −7 to 19 (default −1), `dict=SIZE` from 1K to 1M (default 15K) or `dict=off`, `capacity=SIZE` |
//!
//! `dict` is about the dictionaries that owners of many pages get, one each: see [`Builder::dictionary`](crate::ram::Builder::dictionary).

use std::fmt;
use std::sync::Arc;

use userswap_store::{Store, StoreError};

/// A dictionary's size if the specification doesn't say it: larger ones aren't better, since for these zstd chooses other
/// settings.
pub(crate) const DICTIONARY: usize = 15 << 10;

/// Opens the store `spec` describes, for pages of `page_size` bytes.
///
/// # Errors
/// [`SpecError::Syntax`] says where in `spec` the trouble is; [`SpecError::Open`] that the store couldn't be made.
pub fn open(spec: &str, page_size: usize) -> Result<Arc<dyn Store>, SpecError> {
    parse(spec)?.open(spec, page_size)
}

/// A specification, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spec {
    /// `ram:lz4`
    RamLz4 {
        /// The most memory to hold, in bytes.
        capacity: Option<u64>,
    },
    /// `ram:zstd`
    RamZstd {
        /// zstd's level.
        level: i32,
        /// The most bytes of a dictionary, `None` for no dictionaries.
        dictionary: Option<usize>,
        /// The most memory to hold, in bytes.
        capacity: Option<u64>,
    },
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

/// Understands a specification without opening anything.
///
/// # Errors
/// [`SpecError::Syntax`].
pub fn parse(spec: &str) -> Result<Spec, SpecError> {
    let text = Text(spec);
    let (store, options) = match spec.split_once('?') {
        Some((store, options)) => (store, Some(options)),
        None => (spec, None),
    };
    let mut parsed = match store {
        "ram:lz4" => Spec::RamLz4 { capacity: None },
        "ram:zstd" => Spec::RamZstd { level: -1, dictionary: Some(DICTIONARY), capacity: None },
        "" => return Err(text.wrong(spec, "expected a store, such as ram:lz4 or ram:zstd")),
        _ => {
            let (kind, name) = store.split_once(':').unwrap_or((store, ""));
            return Err(match (kind, name) {
                ("ram", "") => text.wrong(store, "expected a codec after ram:, ram:lz4 or ram:zstd"),
                ("ram", _) => text.wrong(name, format!("there is no codec {name}; ram has lz4 and zstd")),
                _ => {
                    text.wrong(kind, format!("there is no store {kind}; the stores are ram:lz4 and ram:zstd"))
                }
            });
        }
    };
    let mut seen = Vec::new();
    for option in options.iter().flat_map(|options| options.split('&')) {
        let Some((key, value)) = option.split_once('=') else {
            return Err(text.wrong(option, "expected an option of the form key=value"));
        };
        if seen.contains(&key) {
            return Err(text.wrong(key, format!("{key} is given twice")));
        }
        seen.push(key);
        match (key, &mut parsed) {
            ("capacity", Spec::RamLz4 { capacity } | Spec::RamZstd { capacity, .. }) => {
                *capacity = Some(size(text, value)?);
            }
            ("level", Spec::RamZstd { level, .. }) => {
                let in_range = value.parse().ok().filter(|level| (-7..=19).contains(level));
                *level = in_range.ok_or_else(|| text.wrong(value, "expected a level from -7 to 19"))?;
            }
            ("dict", Spec::RamZstd { dictionary, .. }) => {
                *dictionary = match value {
                    "off" => None,
                    _ => {
                        let bytes = size(text, value).ok().and_then(|bytes| usize::try_from(bytes).ok());
                        let in_range = bytes.filter(|bytes| (1 << 10..=1 << 20).contains(bytes));
                        let expected = "expected a dictionary's size from 1K to 1M, or off";
                        Some(in_range.ok_or_else(|| text.wrong(value, expected))?)
                    }
                };
            }
            _ => return Err(text.wrong(key, format!("{store} has no option {key}"))),
        }
    }
    Ok(parsed)
}

impl Spec {
    fn open(self, spec: &str, page_size: usize) -> Result<Arc<dyn Store>, SpecError> {
        let failed = |source| SpecError::Open { spec: spec.to_owned(), source };
        match self {
            #[cfg(feature = "ram-lz4")]
            Self::RamLz4 { capacity } => {
                ram(crate::ram::Codec::Lz4, None, capacity, page_size).map_err(failed)
            }
            #[cfg(feature = "ram-zstd")]
            Self::RamZstd { level, dictionary, capacity } => {
                ram(crate::ram::Codec::Zstd { level }, dictionary, capacity, page_size).map_err(failed)
            }
            #[cfg(not(all(feature = "ram-lz4", feature = "ram-zstd")))]
            _ => {
                let _ = page_size;
                Err(failed(StoreError::Unsupported { what: "a codec this program was built without" }))
            }
        }
    }
}

#[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
fn ram(
    codec: crate::ram::Codec,
    dictionary: Option<usize>,
    capacity: Option<u64>,
    page_size: usize,
) -> Result<Arc<dyn Store>, StoreError> {
    let mut builder = crate::ram::Ram::with_codec(codec).page_size(page_size).dictionary(dictionary);
    if let Some(bytes) = capacity {
        builder = builder.capacity(bytes);
    }
    Ok(Arc::new(builder.build()?))
}

fn size(text: Text<'_>, value: &str) -> Result<u64, SpecError> {
    let digits = value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &value[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        unit => return Err(text.wrong(unit, format!("there is no unit {unit}; sizes end in K, M, G or T"))),
    };
    let number: u64 = digits.parse().map_err(|_| text.wrong(value, "expected a size, such as 64M"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| text.wrong(value, "expected a size from 1 byte to 16777215T"))
}

/// The specification, to find parts of it in.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl Text<'_> {
    /// The error that `part`, a slice of the text, is wrong.
    fn wrong(self, part: &str, sentence: impl Into<String>) -> SpecError {
        let before = (part.as_ptr().addr()).saturating_sub(self.0.as_ptr().addr()).min(self.0.len());
        let column = self.0.get(..before).map_or(0, |before| before.chars().count()) + 1;
        let len = part.chars().count().max(1);
        SpecError::Syntax { spec: self.0.to_owned(), column, len, sentence: sentence.into() }
    }
}

struct Caret<'a> {
    spec: &'a str,
    column: usize,
    len: usize,
    sentence: &'a str,
}

impl fmt::Display for Caret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (column {})", self.sentence, self.column)?;
        writeln!(f, "  {}", self.spec)?;
        write!(f, "  {:space$}{:^<len$}", "", "", space = self.column - 1, len = self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_ones() {
        assert_eq!(parse("ram:lz4").unwrap(), Spec::RamLz4 { capacity: None });
        assert_eq!(parse("ram:lz4?capacity=64M").unwrap(), Spec::RamLz4 { capacity: Some(64 << 20) });
        let dictionary = Some(15 << 10);
        assert_eq!(parse("ram:zstd").unwrap(), Spec::RamZstd { level: -1, dictionary, capacity: None });
        let both = Spec::RamZstd { level: 3, dictionary, capacity: Some(1 << 30) };
        assert_eq!(parse("ram:zstd?level=3&capacity=1G").unwrap(), both);
        let off = Spec::RamZstd { level: -1, dictionary: None, capacity: None };
        assert_eq!(parse("ram:zstd?dict=off").unwrap(), off);
        let small = Spec::RamZstd { level: 5, dictionary: Some(8192), capacity: None };
        assert_eq!(parse("ram:zstd?dict=8K&level=5").unwrap(), small);
    }

    #[test]
    fn wrong_ones_are_pointed_at() {
        for (spec, column, len, sentence) in [
            ("", 1, 1, "expected a store, such as ram:lz4 or ram:zstd"),
            ("rom:lz4", 1, 3, "there is no store rom; the stores are ram:lz4 and ram:zstd"),
            ("ram", 1, 3, "expected a codec after ram:, ram:lz4 or ram:zstd"),
            ("ram:lzo", 5, 3, "there is no codec lzo; ram has lz4 and zstd"),
            ("ram:lz4?level=3", 9, 5, "ram:lz4 has no option level"),
            ("ram:zstd?level=20", 16, 2, "expected a level from -7 to 19"),
            ("ram:zstd?dict=1000", 15, 4, "expected a dictionary's size from 1K to 1M, or off"),
            ("ram:zstd?dict=no", 15, 2, "expected a dictionary's size from 1K to 1M, or off"),
            ("ram:zstd?level=1&dict=2M", 23, 2, "expected a dictionary's size from 1K to 1M, or off"),
            ("ram:lz4?dict=off", 9, 4, "ram:lz4 has no option dict"),
            ("ram:zstd?level", 10, 5, "expected an option of the form key=value"),
            ("ram:zstd?", 10, 1, "expected an option of the form key=value"),
            ("ram:lz4?capacity=1Q", 19, 1, "there is no unit Q; sizes end in K, M, G or T"),
            ("ram:lz4?capacity=G", 18, 1, "expected a size, such as 64M"),
            ("ram:lz4?capacity=0", 18, 1, "expected a size from 1 byte to 16777215T"),
            ("ram:lz4?capacity=1M&capacity=2M", 21, 8, "capacity is given twice"),
            ("räm:lz4", 1, 3, "there is no store räm; the stores are ram:lz4 and ram:zstd"),
        ] {
            match parse(spec).unwrap_err() {
                SpecError::Syntax { column: c, len: l, sentence: s, .. } => {
                    assert_eq!((c, l, s.as_str()), (column, len, sentence), "{spec}");
                }
                other => panic!("{spec}: {other}"),
            }
        }
    }

    #[test]
    fn an_error_shows_the_wrong_part() {
        let shown = parse("ram:zstd?level=99").unwrap_err().to_string();
        assert_eq!(
            shown,
            "expected a level from -7 to 19 (column 16)\n  ram:zstd?level=99\n                 ^^"
        );
    }

    #[cfg(feature = "ram-lz4")]
    #[test]
    fn an_opened_store_has_what_was_asked_for() {
        let store = open("ram:lz4?capacity=8M", 4096).unwrap();
        let can = store.capabilities();
        assert_eq!((&*can.name, can.page_size, can.capacity), ("ram:lz4", 4096, Some(8 << 20)));
        assert!(matches!(open("ram:lz4", 4095), Err(SpecError::Open { .. })));
    }
}
