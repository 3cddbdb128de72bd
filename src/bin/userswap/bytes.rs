//! Sizes as people write and read them.

use std::fmt;

/// A number of bytes: `64M`, `1.5G`, `4096`. K, M, G and T are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

const UNITS: [(&str, u32); 5] = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("", 0)];

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("'{text}' is no size: write a number and K, M, G or T, such as 64M");
        let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
        let unit = unit.to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
        let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
            return Err(wrong());
        }
        let part_scale = 10u128.pow(u32::try_from(part.len()).map_err(|_| wrong())?);
        let part: u128 = if part.is_empty() { 0 } else { part.parse().map_err(|_| wrong())? };
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let bytes = whole
            .checked_mul(1 << shift)
            .and_then(|bytes| bytes.checked_add((part << shift) / part_scale))
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes <= MOST);
        bytes.map(Self).ok_or_else(|| format!("'{text}' is more than any machine has"))
    }
}

/// A petabyte; sums of sizes stay far from overflowing.
const MOST: u64 = 1 << 50;

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            let whole = self.0 >> shift;
            if whole == 0 {
                continue;
            }
            if shift == 0 {
                return write!(f, "{whole} B");
            }
            let tenths = ((self.0 & ((1 << shift) - 1)) * 10) >> shift;
            return if whole < 10 {
                write!(f, "{whole}.{tenths} {unit}iB")
            } else {
                write!(f, "{whole} {unit}iB")
            };
        }
        f.write_str("0 B")
    }
}

impl<'de> serde::Deserialize<'de> for Bytes {
    /// A number of bytes, or text.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size, such as \"64M\"")
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Bytes, E> {
                u64::try_from(number).map(Bytes).map_err(|_| E::custom("a size can't be negative"))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("1.5G", 3 << 29),
            ("2KiB", 2048),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "M", "64X", "-1", "1.M.", "1e3", "99999999T", "64 M", "1.0000000001G", "½G"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_to_be_read() {
        for (bytes, text) in
            [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (9 << 30, "9.0 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
