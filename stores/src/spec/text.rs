//! The text of a specification: its parts, their values, and marks under wrong ones.

use std::fmt;
use std::time::Duration;

use super::SpecError;

/// The specification, to find parts of it in.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl Text<'_> {
    /// The error that `part`, a slice of the text, is wrong.
    pub(super) fn wrong(self, part: &str, sentence: impl Into<String>) -> SpecError {
        let before = (part.as_ptr().addr()).saturating_sub(self.0.as_ptr().addr()).min(self.0.len());
        let column = self.0.get(..before).map_or(0, |before| before.chars().count()) + 1;
        let len = part.chars().count().max(1);
        SpecError::Syntax { spec: self.0.to_owned(), column, len, sentence: sentence.into() }
    }
}

/// `key=value&key=value`, taken out one by one.
pub(super) struct Options<'a> {
    text: Text<'a>,
    /// What has these options, as it is written.
    of: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    pub(super) fn parse(text: Text<'a>, of: &'a str, options: Option<&'a str>) -> Result<Self, SpecError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for option in options.iter().flat_map(|options| options.split('&')) {
            let Some((key, value)) = option.split_once('=') else {
                return Err(text.wrong(option, "expected an option of the form key=value"));
            };
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(text.wrong(key, format!("{key} is given twice")));
            }
            pairs.push((key, value));
        }
        Ok(Self { text, of, pairs })
    }

    /// The value of this option, if it is given.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|(other, _)| *other == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// The value of this option as `read` understands it.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(Text<'a>, &'a str) -> Result<T, SpecError>,
    ) -> Result<Option<T>, SpecError> {
        self.take(key).map(|value| read(self.text, value)).transpose()
    }

    /// What wasn't taken, as it is written.
    pub(super) fn rest(self) -> String {
        let rest: Vec<String> = self.pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rest.join("&")
    }

    /// Complains of what wasn't taken.
    pub(super) fn end(self) -> Result<(), SpecError> {
        match self.pairs.first() {
            Some((key, _)) => Err(self.text.wrong(key, format!("{} has no option {key}", self.of))),
            None => Ok(()),
        }
    }
}

/// A size, more than 0.
pub(super) fn size(text: Text<'_>, value: &str) -> Result<u64, SpecError> {
    limit(text, value)?.ok_or_else(|| text.wrong(value, "expected a size from 1 byte to 16777215T"))
}

/// A size, or 0 for none.
pub(super) fn limit(text: Text<'_>, value: &str) -> Result<Option<u64>, SpecError> {
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
    let bytes = number.checked_mul(1 << shift);
    let bytes = bytes.ok_or_else(|| text.wrong(value, "expected a size from 1 byte to 16777215T"))?;
    Ok(Some(bytes).filter(|bytes| *bytes > 0))
}

/// A time: `500us`, `20ms`, `30s`, `5m`.
pub(super) fn duration(text: Text<'_>, value: &str) -> Result<Duration, SpecError> {
    let digits = value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let nanoseconds: u64 = match &value[digits.len()..] {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        _ => return Err(text.wrong(value, "expected a time, such as 500us, 20ms, 30s or 5m")),
    };
    let number: Option<u64> = digits.parse().ok();
    let all = number.and_then(|number| number.checked_mul(nanoseconds));
    let all = all.ok_or_else(|| text.wrong(value, "expected a time, such as 500us, 20ms, 30s or 5m"))?;
    Ok(Duration::from_nanos(all))
}

/// A share from 0 to 1.
pub(super) fn share(text: Text<'_>, value: &str) -> Result<f64, SpecError> {
    let share: Option<f64> = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| text.wrong(value, "expected a share from 0 to 1, such as 0.01"))
}

/// A number.
pub(super) fn number(text: Text<'_>, value: &str) -> Result<u64, SpecError> {
    value.parse().map_err(|_| text.wrong(value, "expected a number"))
}

/// `on` or `off`.
pub(super) fn switch(text: Text<'_>, value: &str) -> Result<bool, SpecError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(text.wrong(value, "expected on or off")),
    }
}

/// A path, with %XX for bytes that mean something here.
pub(super) fn path(text: Text<'_>, value: &str) -> Result<std::path::PathBuf, SpecError> {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(byte) = digits.filter(|byte| *byte != 0) else {
            let from = value.len() - escaped.len() - 1;
            return Err(text.wrong(&value[from..=from], "expected two hexadecimal digits after %"));
        };
        bytes.push(byte);
        rest = &escaped[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

pub(super) struct Caret<'a> {
    pub(super) spec: &'a str,
    pub(super) column: usize,
    pub(super) len: usize,
    pub(super) sentence: &'a str,
}

impl fmt::Display for Caret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (column {})", self.sentence, self.column)?;
        writeln!(f, "  {}", self.spec)?;
        write!(f, "  {:space$}{:^<len$}", "", "", space = self.column - 1, len = self.len)
    }
}
