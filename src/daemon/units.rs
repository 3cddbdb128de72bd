//! Sizes, times and shares as people write and read them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::time::Duration;

/// A number of bytes: `64M`, `1.5G`, `4096`. K, M, G and T are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A time: `45s`, `100ms`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

/// A share of a whole: `0.1%`, or `0.001`. From 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

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

impl Bytes {
    /// As it is read again: no part of it is lost.
    fn exact(self) -> String {
        let whole = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        let (unit, shift) = UNITS.iter().find(whole).unwrap_or(&("", 0));
        format!("{}{unit}", self.0 >> shift)
    }
}

/// Nanoseconds of each unit, the largest first.
const TIMES: [(&str, u64); 4] =
    [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000)];

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("'{text}' is no time: write a whole number and ms, s, m or h, such as 45s");
        let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
        let (_, nanos) = TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let time = number.checked_mul(*nanos).map(Duration::from_nanos).filter(|time| *time <= LONGEST);
        time.map(Self).ok_or_else(|| format!("'{text}' is longer than a year"))
    }
}

/// A year; sums of times stay far from overflowing.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        match TIMES.iter().find(|(_, unit)| nanos > 0 && nanos.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", nanos / unit),
            None => write!(f, "{}ms", nanos / 1_000_000),
        }
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, whole) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
        match number.parse::<f64>() {
            Ok(number) if (0.0..=whole).contains(&number) => Ok(Self(number / whole)),
            _ => Err(format!("'{text}' is no share: write a number up to 100 and %, such as 0.1%")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // To a millionth: what is written as 0.1% is no sum of powers of two.
        write!(f, "{}%", (self.0 * 1e8).round() / 1e6)
    }
}

/// Reads numbers by one function, text by another.
struct Reader<T> {
    expected: &'static str,
    number: fn(f64) -> Option<T>,
}

impl<T: std::str::FromStr<Err = String>> de::Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        if number < 0 {
            return Err(E::custom(format!("it can't be negative: write {}", self.expected)));
        }
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_f64(number as f64)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        (self.number)(number).ok_or_else(|| E::custom(format!("write {}", self.expected)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    /// A number of bytes, or text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // looked at before
        let number = |number: f64| {
            let whole = (0.0..=MOST as f64).contains(&number) && number.fract() == 0.0;
            whole.then_some(Self(number as u64))
        };
        deserializer.deserialize_any(Reader { expected: "a size, such as \"64M\"", number })
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number: f64| (number == 0.0).then_some(Self(Duration::ZERO));
        deserializer.deserialize_any(Reader { expected: "a time, such as \"45s\"", number })
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number: f64| (0.0..=1.0).contains(&number).then_some(Self(number));
        deserializer.deserialize_any(Reader { expected: "a share, such as \"0.1%\"", number })
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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

    #[test]
    fn what_is_written_exactly_is_read_again() {
        for (bytes, text) in
            [(0, "0"), (1000, "1000"), (3 << 29, "1536M"), (128 << 20, "128M"), (1 << 40, "1T")]
        {
            assert_eq!((Bytes(bytes).exact().as_str(), text.parse()), (text, Ok(Bytes(bytes))));
        }
        for (millis, text) in
            [(0, "0ms"), (1500, "1500ms"), (45_000, "45s"), (120_000, "2m"), (7_200_000, "2h")]
        {
            let time = Time(Duration::from_millis(millis));
            assert_eq!((time.to_string().as_str(), text.parse()), (text, Ok(time)));
        }
        for (share, text) in [(0.0, "0%"), (0.001, "0.1%"), (0.0005, "0.05%"), (0.05, "5%"), (1.0, "100%")] {
            assert_eq!((Share(share).to_string().as_str(), text.parse()), (text, Ok(Share(share))));
        }
        for text in ["45", "s", "1.5s", "-1s", "1d", "99999999h"] {
            assert!(text.parse::<Time>().is_err(), "{text}");
        }
        for text in ["-1%", "101%", "1.1", "%", "x", "NaN"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
