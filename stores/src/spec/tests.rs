use std::time::Duration;

use super::*;

#[test]
fn right_ones() {
    assert_eq!(parse("ram:lz4").unwrap(), Spec::RamLz4 { dedup: false, capacity: None });
    assert_eq!(parse("ram:lz4?dedup=on").unwrap(), Spec::RamLz4 { dedup: true, capacity: None });
    assert_eq!(
        parse("ram:lz4?capacity=64M").unwrap(),
        Spec::RamLz4 { dedup: false, capacity: Some(64 << 20) }
    );
    let dictionary = Some(15 << 10);
    assert_eq!(
        parse("ram:zstd").unwrap(),
        Spec::RamZstd { level: -1, dictionary, dense: Some(6), dedup: false, capacity: None }
    );
    let both = Spec::RamZstd { level: 3, dictionary, dense: Some(6), dedup: false, capacity: Some(1 << 30) };
    assert_eq!(parse("ram:zstd?level=3&capacity=1G").unwrap(), both);
    let off = Spec::RamZstd { level: -1, dictionary: None, dense: Some(6), dedup: false, capacity: None };
    assert_eq!(parse("ram:zstd?dict=off").unwrap(), off);
    let small = Spec::RamZstd { level: 5, dictionary: Some(8192), dense: None, dedup: false, capacity: None };
    assert_eq!(parse("ram:zstd?dict=8K&level=5&dense=off").unwrap(), small);
}

#[test]
fn files() {
    let usual = FileSpec {
        path: "/var/tmp".into(),
        size: None,
        reserve: 128 << 20,
        compress: Compress::Lz4,
        encrypt: true,
        direct: true,
        overwrite: false,
    };
    assert_eq!(parse("file:/var/tmp").unwrap(), Spec::File(usual.clone()));
    let limited = FileSpec { size: Some(Some(4 << 30)), reserve: 0, ..usual.clone() };
    assert_eq!(parse("file:/var/tmp?size=4G&reserve=0").unwrap(), Spec::File(limited));
    let plain = FileSpec { size: Some(None), compress: Compress::Off, encrypt: false, ..usual.clone() };
    assert_eq!(parse("file:/var/tmp?compress=off&encrypt=off&size=0").unwrap(), Spec::File(plain));
    let odd = FileSpec { path: "/a+b:c?d&e>f%".into(), ..usual };
    assert_eq!(parse("file:/a+b:c%3Fd%26e%3ef%25").unwrap(), Spec::File(odd));
}

#[test]
fn layers() {
    let latency = Some(Duration::from_millis(2));
    let mischief = Mischief { corruption: 0.01, latency, countdown: Some(100), ..Mischief::default() };
    let inside = Box::new(Spec::RamLz4 { dedup: false, capacity: Some(1 << 20) });
    let chaos = Spec::Layered { layer: Layer::Chaos(mischief), inside };
    let checked = Spec::Layered { layer: Layer::Checked, inside: Box::new(chaos) };
    let text = "checked+chaos?corruption=0.01&latency=2ms&countdown=100+ram:lz4?capacity=1M";
    assert_eq!(parse(text).unwrap(), checked);
}

#[test]
fn tiers() {
    let stores = vec![
        parse("checked+ram:lz4?capacity=64M").unwrap(),
        parse("ram:zstd?level=3").unwrap(),
        parse("file:/var/tmp?size=4G").unwrap(),
    ];
    let settings = Settings { age: Duration::from_secs(30), rate: None, admit: Some(0.75) };
    let text =
        "tier?age=30s&rate=0&admit=0.75:checked+ram:lz4?capacity=64M>ram:zstd?level=3>file:/var/tmp?size=4G";
    assert_eq!(parse(text).unwrap(), Spec::Tier { settings, stores });
}

#[test]
fn zrams() {
    let zram = |zram: ZramSpec| Spec::Zram(Box::new(zram));
    assert_eq!(parse("zram").unwrap(), zram(ZramSpec::default()));
    let all = ZramSpec {
        level: Some(3),
        dense: None,
        dictionary: None,
        dedup: true,
        recompress: Kinds::IDLE | Kinds::HUGE,
        threshold: 1024,
        idle: Duration::from_secs(5),
        writeback: Kinds::NONE,
        writeback_idle: Duration::from_secs(7),
        writeback_limit: Some(400 << 20),
        mem_limit: Some(1 << 30),
        backing: Some(parse("checked+file:/var/tmp?size=4G").unwrap()),
    };
    let text = "zram?algo=zstd&level=3&dense=off&dict=off&dedup=on&recompress=idle,huge&threshold=1K&idle=5s&writeback=none\
                &writeback_idle=7s&writeback_limit=400M&mem_limit=1G:checked+file:/var/tmp?size=4G";
    assert_eq!(parse(text).unwrap(), zram(all));
    let Spec::Tier { stores, .. } = parse("tier:zram?idle=1s:ram:lz4>ram:zstd").unwrap() else { panic!() };
    assert_eq!(stores, [parse("zram?idle=1s:ram:lz4").unwrap(), parse("ram:zstd").unwrap()]);
}

#[test]
fn plugins() {
    let mine = Spec::Plugin { path: "/usr/lib/a+b.so".into(), capacity: None, options: String::new() };
    assert_eq!(parse("plugin:/usr/lib/a+b.so").unwrap(), mine);
    let limited = Spec::Plugin {
        path: "./mine.so".into(),
        capacity: Some(64 << 20),
        options: "speed=11&where=%3E".to_owned(),
    };
    assert_eq!(parse("plugin:./mine.so?speed=11&capacity=64M&where=%3E").unwrap(), limited);
}

#[test]
fn a_capacity_goes_to_the_store_inside() {
    let limited = |text: &str| parse(text).unwrap().with_capacity(1 << 20);
    assert_eq!(limited("checked+metered+ram:lz4"), parse("checked+metered+ram:lz4?capacity=1M").unwrap());
    assert_eq!(limited("ram:zstd?capacity=5G"), parse("ram:zstd?capacity=1M").unwrap());
    assert_eq!(limited("file:/x?size=0"), parse("file:/x?size=1M").unwrap());
    assert_eq!(limited("plugin:./x?a=b"), parse("plugin:./x?a=b&capacity=1M").unwrap());
    assert_eq!(limited("zram:ram:lz4"), parse("zram?mem_limit=1M:ram:lz4").unwrap());
    let stack = "tier:ram:lz4?capacity=5M>ram:lz4";
    assert_eq!(limited(stack), parse(stack).unwrap());
}

const KINDS: &str = "expected idle, huge, huge_idle or incompressible, with commas between, or all, or none";
const LIBRARY: &str = "expected the path of a shared library after plugin:, such as plugin:./mine.so";
const TWO: &str = "expected : and at least two stores with > between, such as tier:ram:lz4>file:/var/tmp";

#[test]
fn wrong_ones_are_pointed_at() {
    for (spec, column, len, sentence) in [
        ("", 1, 1, "expected a store, such as ram:lz4 or ram:zstd"),
        (
            "rom:lz4",
            1,
            3,
            "there is no store rom; the stores are ram:lz4, ram:zstd, zram, file:, plugin: and tier:",
        ),
        ("ram", 1, 3, "expected a codec after ram:, ram:lz4 or ram:zstd"),
        ("ram:lzo", 5, 3, "there is no codec lzo; ram has lz4 and zstd"),
        ("ram:lz4?level=3", 9, 5, "ram:lz4 has no option level"),
        ("ram:zstd?level=20", 16, 2, "expected a level from -7 to 19"),
        ("ram:zstd?dict=1000", 15, 4, "expected a dictionary's size from 1K to 1M, or off"),
        ("ram:zstd?dict=no", 15, 2, "expected a dictionary's size from 1K to 1M, or off"),
        ("ram:zstd?level=1&dict=2M", 23, 2, "expected a dictionary's size from 1K to 1M, or off"),
        ("ram:lz4?dict=off", 9, 4, "ram:lz4 has no option dict"),
        ("ram:zstd?dense=20", 16, 2, "expected a level from -7 to 19, or off"),
        ("ram:zstd?level", 10, 5, "expected an option of the form key=value"),
        ("ram:zstd?", 10, 1, "expected an option of the form key=value"),
        ("ram:lz4?capacity=1Q", 19, 1, "there is no unit Q; sizes end in K, M, G or T"),
        ("ram:lz4?capacity=G", 18, 1, "expected a size, such as 64M"),
        ("ram:lz4?capacity=0", 18, 1, "expected a size from 1 byte to 16777215T"),
        ("ram:lz4?capacity=1M&capacity=2M", 21, 8, "capacity is given twice"),
        ("zram?level=3", 6, 5, "zram has no option level"),
        ("zram?algo=lzo", 11, 3, "expected lz4 or zstd"),
        (
            "zramm",
            1,
            5,
            "there is no store zramm; the stores are ram:lz4, ram:zstd, zram, file:, plugin: and tier:",
        ),
        ("zram?recompress=idle,hot", 22, 3, KINDS),
        ("zram?writeback=idle", 16, 4, "expected a store to write back to, behind a colon at the end"),
        ("zram?idle=1s:ram:lzo", 18, 3, "there is no codec lzo; ram has lz4 and zstd"),
        ("zram+ram:lz4", 5, 4, "expected ? and options, or : and a store"),
        ("file:", 1, 5, "expected a directory, a file or a block device after file:"),
        ("file:/x?size=4Z", 15, 1, "there is no unit Z; sizes end in K, M, G or T"),
        ("file:/x?compress=gzip", 18, 4, "expected lz4, zstd or off"),
        ("file:/a?encrypt=yes", 17, 3, "expected on or off"),
        ("file:/a%2", 8, 1, "expected two hexadecimal digits after %"),
        ("file:/a%00b", 8, 1, "expected two hexadecimal digits after %"),
        ("plugin:", 1, 7, LIBRARY),
        ("plugin?x=1", 1, 6, LIBRARY),
        ("plugin:mine.so", 8, 7, LIBRARY),
        ("plugin:./mine.so?fast", 18, 4, "expected an option of the form key=value"),
        ("plugin:./mine.so?x=1&x=2", 22, 1, "x is given twice"),
        ("plugin:./mine.so?capacity=1Q", 28, 1, "there is no unit Q; sizes end in K, M, G or T"),
        ("checked", 8, 1, "expected + and a store for checked to be around"),
        ("checked:ram:lz4", 8, 8, "expected + and a store for checked to be around"),
        ("checked?x=1+ram:lz4", 9, 1, "checked has no option x"),
        ("checked+", 9, 1, "expected a store, such as ram:lz4 or ram:zstd"),
        ("metered+checked+ram:lz", 21, 2, "there is no codec lz; ram has lz4 and zstd"),
        ("chaos?latency=5+ram:lz4", 15, 1, "expected a time, such as 500us, 20ms, 30s or 5m"),
        ("chaos?corruption=2+ram:lz4", 18, 1, "expected a share from 0 to 1, such as 0.01"),
        ("chaos?seed=x+ram:lz4", 12, 1, "expected a number"),
        ("tier:ram:lz4>ram:lzo", 18, 3, "there is no codec lzo; ram has lz4 and zstd"),
        ("tier:ram:lz4>", 14, 1, "expected a store, such as ram:lz4 or ram:zstd"),
        ("tier?age=1:ram:lz4>ram:lz4", 10, 1, "expected a time, such as 500us, 20ms, 30s or 5m"),
        ("tier:ram:lz4", 13, 1, TWO),
        ("tier", 5, 1, TWO),
        (
            "räm:lz4",
            1,
            3,
            "there is no store räm; the stores are ram:lz4, ram:zstd, zram, file:, plugin: and tier:",
        ),
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
    assert_eq!(shown, "expected a level from -7 to 19 (column 16)\n  ram:zstd?level=99\n                 ^^");
}

#[cfg(feature = "ram-lz4")]
#[test]
fn an_opened_store_has_what_was_asked_for() {
    let store = open("ram:lz4?capacity=8M", 4096).unwrap();
    let can = store.capabilities();
    assert_eq!((&*can.name, can.page_size, can.capacity), ("ram:lz4", 4096, Some(8 << 20)));
    let layered = open("metered+checked+ram:lz4", 4096).unwrap();
    assert_eq!(&*layered.capabilities().name, "metered+checked+ram:lz4");
    assert!(matches!(open("ram:lz4", 4095), Err(SpecError::Open { .. })));
}
