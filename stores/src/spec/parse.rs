//! From text to [`Spec`].

use super::text::{Options, Text, duration, limit, number, path, share, size, switch};
use super::zram::zram;
use super::{Compress, DENSE, DICTIONARY, FileSpec, Layer, Spec, SpecError};
use crate::layers::Mischief;
use crate::tier::Settings;

/// Understands a specification without opening anything.
///
/// # Errors
/// [`SpecError::Syntax`].
pub fn parse(spec: &str) -> Result<Spec, SpecError> {
    layered(Text(spec), spec)
}

pub(super) fn layered<'a>(text: Text<'a>, spec: &'a str) -> Result<Spec, SpecError> {
    let name = &spec[..spec.find([':', '?', '+', '&', '>']).unwrap_or(spec.len())];
    let rest = &spec[name.len()..];
    if !matches!(name, "checked" | "sealed" | "metered" | "chaos") {
        return store(text, spec, name);
    }
    let lonely = |part| text.wrong(part, format!("expected + and a store for {name} to be around"));
    let Some((options, inside)) = rest.split_once('+') else {
        return Err(lonely(if rest.starts_with('?') { &rest[rest.len()..] } else { rest }));
    };
    let options = match options.strip_prefix('?') {
        None if !options.is_empty() => return Err(lonely(options)),
        options => options,
    };
    let mut options = Options::parse(text, name, options)?;
    let layer = match name {
        "checked" => Layer::Checked,
        "sealed" => Layer::Sealed,
        "metered" => Layer::Metered,
        _ => Layer::Chaos(chaos(&mut options)?),
    };
    options.end()?;
    Ok(Spec::Layered { layer, inside: Box::new(layered(text, inside)?) })
}

fn store<'a>(text: Text<'a>, spec: &'a str, kind: &'a str) -> Result<Spec, SpecError> {
    match kind {
        "tier" => return tier(text, &spec[kind.len()..]),
        "zram" => return zram(text, &spec[kind.len()..]),
        _ => {}
    }
    let (store, options) = match spec.split_once('?') {
        Some((store, options)) => (store, Some(options)),
        None => (spec, None),
    };
    let what = store.get(kind.len() + 1..).unwrap_or(&store[store.len()..]);
    match (kind, what) {
        ("ram", "lz4" | "zstd") => ram(Options::parse(text, store, options)?, what),
        ("ram", "") => Err(text.wrong(store, "expected a codec after ram:, ram:lz4 or ram:zstd")),
        ("ram", _) => Err(text.wrong(what, format!("there is no codec {what}; ram has lz4 and zstd"))),
        ("file", "") => Err(text.wrong(store, "expected a directory, a file or a block device after file:")),
        ("file", _) => file(text, Options::parse(text, kind, options)?, what),
        ("plugin", _) => plugin(text, Options::parse(text, kind, options)?, store, what),
        ("", _) => Err(text.wrong(spec, "expected a store, such as ram:lz4 or ram:zstd")),
        _ => {
            let known = "the stores are ram:lz4, ram:zstd, zram, file:, plugin: and tier:";
            Err(text.wrong(kind, format!("there is no store {kind}; {known}")))
        }
    }
}

/// What stands behind `tier`.
fn tier<'a>(text: Text<'a>, rest: &'a str) -> Result<Spec, SpecError> {
    let few = "expected : and at least two stores with > between, such as tier:ram:lz4>file:/var/tmp";
    let (options, stores) = rest.split_once(':').ok_or_else(|| text.wrong(rest, few))?;
    let options = match options.strip_prefix('?') {
        None if !options.is_empty() => return Err(text.wrong(options, few)),
        options => options,
    };
    let mut options = Options::parse(text, "tier", options)?;
    let mut settings = Settings::default();
    settings.age = options.read("age", duration)?.unwrap_or(settings.age);
    settings.rate = options.read("rate", limit)?.unwrap_or(settings.rate);
    settings.admit = options.read("admit", share)?.map_or(settings.admit, Some);
    options.end()?;
    let specs: Result<Vec<_>, _> = stores.split('>').map(|spec| layered(text, spec)).collect();
    let stores = specs?;
    if stores.len() < 2 {
        return Err(text.wrong(&rest[rest.len()..], few));
    }
    Ok(Spec::Tier { settings, stores })
}

fn ram(mut options: Options<'_>, codec: &str) -> Result<Spec, SpecError> {
    let capacity = options.read("capacity", size)?;
    let dedup = options.read("dedup", switch)?.unwrap_or(false);
    let spec = if codec == "lz4" {
        Spec::RamLz4 { dedup, capacity }
    } else {
        let dense = options.read("dense", level_or_off)?.unwrap_or(Some(DENSE));
        let level = options.read("level", level)?.unwrap_or(-1);
        let dictionary = options.read("dict", dictionary)?.unwrap_or(Some(DICTIONARY));
        Spec::RamZstd { level, dictionary, dense, dedup, capacity }
    };
    options.end()?;
    Ok(spec)
}

/// A zstd level.
pub(super) fn level(text: Text<'_>, value: &str) -> Result<i32, SpecError> {
    let in_range = value.parse().ok().filter(|level| (-7..=19).contains(level));
    in_range.ok_or_else(|| text.wrong(value, "expected a level from -7 to 19"))
}

/// A zstd level, or none.
pub(super) fn level_or_off(text: Text<'_>, value: &str) -> Result<Option<i32>, SpecError> {
    if value == "off" {
        return Ok(None);
    }
    let wrong = |_| text.wrong(value, "expected a level from -7 to 19, or off");
    level(text, value).map(Some).map_err(wrong)
}

/// A dictionary's size, or none.
pub(super) fn dictionary(text: Text<'_>, value: &str) -> Result<Option<usize>, SpecError> {
    if value == "off" {
        return Ok(None);
    }
    let bytes = size(text, value).ok().and_then(|bytes| usize::try_from(bytes).ok());
    let in_range = bytes.filter(|bytes| (1 << 10..=1 << 20).contains(bytes));
    in_range.map(Some).ok_or_else(|| text.wrong(value, "expected a dictionary's size from 1K to 1M, or off"))
}

fn file(text: Text<'_>, mut options: Options<'_>, what: &str) -> Result<Spec, SpecError> {
    let compress = options.read("compress", |text, value| match value {
        "lz4" => Ok(Compress::Lz4),
        "zstd" => Ok(Compress::Zstd),
        "off" => Ok(Compress::Off),
        _ => Err(text.wrong(value, "expected lz4, zstd or off")),
    })?;
    let spec = FileSpec {
        size: options.read("size", limit)?,
        reserve: options.read("reserve", limit)?.map_or(FileSpec::RESERVE, Option::unwrap_or_default),
        compress: compress.unwrap_or(Compress::Lz4),
        encrypt: options.read("encrypt", switch)?.unwrap_or(true),
        direct: options.read("direct", switch)?.unwrap_or(true),
        overwrite: options.read("overwrite", switch)?.unwrap_or(false),
        path: path(text, what)?,
    };
    options.end()?;
    Ok(Spec::File(spec))
}

fn plugin<'a>(
    text: Text<'a>,
    mut options: Options<'a>,
    store: &'a str,
    what: &'a str,
) -> Result<Spec, SpecError> {
    if !what.contains('/') {
        let part = if what.is_empty() { store } else { what };
        return Err(
            text.wrong(part, "expected the path of a shared library after plugin:, such as plugin:./mine.so")
        );
    }
    let capacity = options.read("capacity", size)?;
    Ok(Spec::Plugin { path: path(text, what)?, capacity, options: options.rest() })
}

fn chaos(options: &mut Options<'_>) -> Result<Mischief, SpecError> {
    let usual = Mischief::default();
    let mut mischief = usual;
    mischief.seed = options.read("seed", number)?.unwrap_or(usual.seed);
    mischief.latency = options.read("latency", duration)?;
    mischief.put_errors = options.read("put_errors", share)?.unwrap_or_default();
    mischief.fetch_errors = options.read("fetch_errors", share)?.unwrap_or_default();
    mischief.corruption = options.read("corruption", share)?.unwrap_or_default();
    mischief.countdown = options.read("countdown", number)?;
    Ok(mischief)
}
