//! Where pages go makes no difference to a program: a heap of small objects, from and to each kind of store, a smaller program for all of them
//! and what can be around them, and the other real programs, each from and to two kinds, in the long run from and to all.

use crate::limited::{Report, Trial, assert_same, python, source};
use crate::watch::{is_long, rounds};
use crate::{compiler, java, node, redis, sqlite};

/// Of each kind one.
const KINDS: [&str; 6] = [
    "ram:lz4",
    "ram:zstd?dict=off",
    "ram:zstd?dict=15K",
    "zram",
    "file:{}?reserve=0&size=4G",
    "tier?age=1s:ram:lz4?capacity=2M>ram:zstd?capacity=2M>file:{}?reserve=0&size=4G",
];

/// Tries a program, one of those here by its number, with the stores that are its turn.
fn tried(number: usize, test: &'static str, programs: &[&str], program: fn(&Trial)) {
    for (at, store) in KINDS.iter().enumerate() {
        if !is_long() && at % 3 != number % 3 {
            continue;
        }
        let Some(trial) = Trial::new(test, programs) else { return };
        println!("{test}: {store}");
        program(&trial.from(store));
    }
}

#[test]
fn redis_from_stores() {
    tried(0, "redis_from_stores", &["redis-server"], redis::saves_and_reloads);
}

#[test]
fn java_from_stores() {
    tried(1, "java_from_stores", &["java", "javac"], java::sums);
}

#[test]
fn node_from_stores() {
    tried(2, "node_from_stores", &["node"], node::sums);
}

#[test]
fn sqlite_from_stores() {
    tried(1, "sqlite_from_stores", &["sqlite3"], sqlite::tables);
}

#[test]
fn a_compiler_from_stores() {
    tried(2, "a_compiler_from_stores", &["rustc"], compiler::library);
}

/// Walks a Python heap in a fraction of its memory, from and to this store, `{}` in which is a directory.
fn walked_from(test: &'static str, store: &str) -> Option<Report> {
    let trial = Trial::new(test, &["python3"])?.from(store);
    let (limit, thousands) = if is_long() { ("64M", "300") } else { ("16M", "10") };
    let (walks, program) = (rounds(2, 4).to_string(), source("walk.py"));
    let words = [&*python(&trial), &program, thousands, &walks];
    let alone = trial.alone(&words);
    assert!(alone.status.success(), "by itself: {alone:?}");
    let (output, report) = trial.limited(limit, &words);
    assert_same(&alone, &output);
    report.assert_sound();
    trial.place.assert_clean();
    Some(report)
}

/// What a store counts.
fn figure(report: &Report, name: &str) -> u64 {
    let figure = &report.0["store_figures"][name];
    figure.as_u64().unwrap_or_else(|| panic!("no {name} in {}", report.0))
}

#[test]
fn a_heap_in_ram_lz4() {
    walked_from("a_heap_in_ram_lz4", "ram:lz4");
}

#[test]
fn a_heap_in_ram_zstd() {
    walked_from("a_heap_in_ram_zstd", "ram:zstd?dict=off");
}

#[test]
fn a_heap_in_ram_zstd_with_a_dictionary() {
    walked_from("a_heap_in_ram_zstd_with_a_dictionary", "ram:zstd?dict=15K");
}

/// Its memory limit is far below what goes out, so pages are written back whatever their age.
#[test]
fn a_heap_in_zram_over_a_file() {
    let store = "zram?idle=1s&writeback_idle=2s&mem_limit=2M:file:{}?reserve=0&size=1G";
    let Some(report) = walked_from("a_heap_in_zram_over_a_file", store) else { return };
    assert!(figure(&report, "bd_writes") > 0 && figure(&report, "bd_reads") > 0, "{}", report.0);
    assert!((1..=2 << 20).contains(&figure(&report, "mem_used_max")), "{}", report.0);
    assert_eq!(figure(&report, "failed_reads"), 0);
}

#[test]
fn a_heap_in_a_file() {
    walked_from("a_heap_in_a_file", "file:{}?reserve=0&size=1G");
}

/// The upper tiers together have room for a part, however fast the program is.
#[test]
fn a_heap_in_three_tiers() {
    let store = "tier?age=1s:ram:lz4?capacity=512K>ram:zstd?capacity=512K>file:{}?reserve=0&size=1G";
    let Some(report) = walked_from("a_heap_in_three_tiers", store) else { return };
    for name in ["tier0_hits", "tier2_hits", "tier0_capacity_bytes"] {
        assert!(figure(&report, name) > 0, "{name} in {}", report.0);
    }
}

/// An array of words, filled, changed and looked through by awk. It rests in between: a fast machine is through with it before anybody has looked how much it has.
#[test]
fn an_array_in_every_store() {
    let test = "an_array_in_every_store";
    let Some(mut trial) = Trial::new(test, &["awk"]) else { return };
    let script = format!(
        r#"BEGIN {{
            for (i = 0; i < {0}; i++) words[i] = sprintf("%d-%x", i * 7919 % 1000003, i * 31)
            system("sleep 1")
            for (r = 1; r < 5; r++) {{
                for (i = 0; i < {0}; i++) if (i % r == 0) {{ sum += length(words[i]) * (i % 13); words[i] = words[i] r }}
                print r, sum, words[r * 1000]
            }}
        }}"#,
        rounds(120_000, 1_000_000)
    );
    let words = ["awk", &script];
    let alone = trial.alone(&words);
    assert!(alone.status.success(), "by itself: {alone:?}");
    for store in [
        "ram:lz4",
        "ram:zstd",
        "ram:zstd?level=3&dict=4K&dense=off",
        "zram",
        "zram?algo=zstd&recompress=all&idle=0s&writeback=all:ram:zstd",
        "zram?mem_limit=1M:file:{}?reserve=0",
        "file:{}?reserve=0",
        "file:{}?reserve=0&compress=off&encrypt=off&direct=off",
        "checked+ram:lz4",
        "metered+sealed+ram:lz4",
        "tier?age=1s:ram:lz4?capacity=1M>ram:zstd?capacity=1M>file:{}?reserve=0",
        "tier?age=0s&rate=0&admit=1:ram:lz4>zram:ram:zstd",
    ] {
        trial = trial.from(store);
        let (output, report) = trial.limited("8M", &words);
        assert_same(&alone, &output);
        assert_eq!(report.number("poisoned_pages"), 0, "{store}: {}", report.0);
        assert!(report.number("pages_out") > 0 && report.number("pages_in") > 0, "{store}: {}", report.0);
    }
    trial.place.assert_clean();
}
