//! What makes a store zram: the laws, each kind of background work by a clock set by hand, and zram's own figures.
#![cfg(all(feature = "ram-lz4", feature = "ram-zstd"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod pages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use userswap_store::testkit::{Ask, Reference, fetch_and_wait};
use userswap_store::{Budget, Fetch, Handle, Store, StoreError, Waiter, Wanted};
use userswap_stores::spec::{Spec, parse};
use userswap_stores::zram::Zram;

use pages::{key, page, put, put_page};

/// What `spec` says, over this store, by a clock that is set by hand, in seconds.
fn zram(spec: &str, backing: Option<Arc<dyn Store>>) -> (Arc<AtomicU64>, Zram) {
    let Spec::Zram(spec) = parse(spec).unwrap() else { panic!("{spec} isn't zram") };
    let clock = Arc::new(AtomicU64::new(0));
    let its = Arc::clone(&clock);
    let now = Arc::new(move || Duration::from_secs(its.load(Ordering::Relaxed)));
    (clock, Zram::over(*spec, backing, 4096, now).unwrap())
}

fn with_limit(spec: &str, ask: &Ask, backing: Option<Arc<dyn Store>>) -> Arc<dyn Store> {
    let Spec::Zram(mut spec) = parse(spec).unwrap() else { panic!("{spec} isn't zram") };
    spec.mem_limit = ask.capacity;
    let started = std::time::Instant::now();
    Arc::new(Zram::over(*spec, backing, 4096, Arc::new(move || started.elapsed())).unwrap())
}

fn ram() -> Arc<dyn Store> {
    userswap_stores::open("ram:lz4", 4096).unwrap()
}

mod as_it_comes {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| with_limit("zram", ask, None));
}

mod that_compresses_all_again {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| with_limit("zram?recompress=all&idle=0s", ask, None));
}

mod of_zstd {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| with_limit("zram?algo=zstd&level=1&idle=0s", ask, None));
}

mod that_writes_all_back {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| with_limit("zram?writeback=all:ram:lz4", ask, Some(ram())));
}

mod over_a_store_that_answers_late {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| {
        let late = Reference::new(&Ask::default(), None).answering_late();
        with_limit("zram?writeback=all:ram:lz4", ask, Some(Arc::new(late)))
    });
}

#[cfg(feature = "file")]
mod over_a_file {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| {
        let file = format!("file:{}?reserve=0&size=16M", std::env::temp_dir().to_str().unwrap());
        let file = userswap_stores::open(&file, 4096).unwrap();
        with_limit("zram?writeback=idle&writeback_idle=0s:ram:lz4", ask, Some(file))
    });
}

fn figures(store: &dyn Store) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    store.figures(&mut |name, figure| assert!(all.insert(name.to_owned(), figure).is_none(), "{name} twice"));
    all
}

fn figure(store: &dyn Store, name: &str) -> u64 {
    figures(store)[name]
}

/// Words of a small vocabulary: lz4 makes them small, zstd smaller.
fn words(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = ((state >> 20) % 600 + 1).wrapping_mul(0x0123_4567_89ab_cdef) >> 8;
        format!("{word:014x} of swap ").into_bytes()
    };
    (0..200).flat_map(word).take(4096).collect()
}

/// Six random bits a byte: nothing for lz4 to find, and a quarter for zstd to save.
fn letters(number: u64) -> Vec<u8> {
    page(number).iter().map(|byte| 0x40 | byte & 0x3f).collect()
}

/// A hundred each of words, letters and noise, from 0, 100 and 200 on.
fn put_some(store: &dyn Store) -> Vec<(u64, Vec<u8>, Handle)> {
    let bytes = |number| match number / 100 {
        0 => words(number),
        1 => letters(number),
        _ => page(number),
    };
    (0..300).map(|number| (number, bytes(number), put_page(store, number, &bytes(number)).unwrap())).collect()
}

fn assert_there(store: &dyn Store, pages: &[(u64, Vec<u8>, Handle)]) {
    for (number, bytes, handle) in pages {
        assert!(fetch_and_wait(store, *handle, key(*number)).unwrap() == *bytes, "page {number}");
    }
}

fn maintain(store: &dyn Store) -> u64 {
    let done = store.maintain(Budget::UNLIMITED);
    assert!(!done.more);
    done.moved_bytes
}

#[test]
fn what_lies_idle_is_compressed_again() {
    let (clock, store) = zram("zram?dict=off", None);
    let pages = put_some(&store);
    let before = store.stats().stored_bytes;
    clock.store(59, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(figure(&store, "recompressed_pages"), 0);
    assert_there(&store, &pages[..30]);
    clock.store(80, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(figure(&store, "recompressed_pages"), 170, "70 of words and 100 of letters are idle");
    let after = store.stats();
    assert!(after.stored_bytes < before * 9 / 10, "{} of {before}", after.stored_bytes);
    assert_eq!(after.incompressible_pages, 100);
    assert_there(&store, &pages[30..]);
    // The 30 become idle 60 s after they were fetched.
    clock.store(118, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(figure(&store, "recompressed_pages"), 170);
    clock.store(141, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(figure(&store, "recompressed_pages"), 200);
    assert_there(&store, &pages);
}

#[test]
fn what_did_not_shrink_is_never_tried_again() {
    let (clock, store) = zram("zram?recompress=all&idle=0s&dict=off", None);
    let pages = put_some(&store);
    clock.store(1, Ordering::Relaxed);
    assert!(maintain(&store) > 0);
    // Something new starts another tour, which is for that alone.
    for second in 2..5 {
        let number = 1000 + second;
        let handle = put_page(&store, number, &page(number)).unwrap();
        clock.store(second, Ordering::Relaxed);
        assert_eq!(maintain(&store), 8 * 4096, "work for one page");
        store.free(&[handle]);
    }
    assert_there(&store, &pages);
}

#[test]
fn kinds_and_threshold_choose_what_is_compressed_again() {
    for (options, expected) in [
        ("recompress=none", 0),
        ("recompress=huge", 100),
        ("recompress=huge_idle", 100),
        ("recompress=idle", 200),
        ("recompress=idle,huge", 200),
        ("recompress=idle&threshold=4000", 100),
        ("recompress=idle&threshold=5000", 0),
        ("recompress=all&dense=off", 0),
    ] {
        let (clock, store) = zram(&format!("zram?dict=off&{options}"), None);
        let pages = put_some(&store);
        clock.store(30, Ordering::Relaxed);
        maintain(&store);
        let of_huge = if options.ends_with("huge") { 100 } else { 0 };
        let recompressed = |store: &Zram| figures(store).get("recompressed_pages").copied().unwrap_or(0);
        assert_eq!(recompressed(&store), of_huge, "{options}: young");
        clock.store(90, Ordering::Relaxed);
        maintain(&store);
        assert_eq!(recompressed(&store), expected, "{options}: idle");
        assert_there(&store, &pages);
    }
}

/// A dictionary is trained on pages that came as lz4, and is for those that are compressed again.
#[test]
fn owners_of_many_pages_are_recompressed_with_a_dictionary() {
    let held = |options: &str| {
        let (clock, store) = zram(&format!("zram?idle=1s&{options}"), None);
        let pages: Vec<_> = (0..6000)
            .map(|number| (number, words(number), put_page(&store, number, &words(number)).unwrap()))
            .collect();
        for second in 1..20 {
            clock.store(second, Ordering::Relaxed);
            maintain(&store);
        }
        assert_there(&store, &pages);
        store.stats().stored_bytes
    };
    let (with, without) = (held("dict=15K"), held("dict=off"));
    assert!(with < without * 19 / 20, "{with} with a dictionary, {without} without");
}

#[test]
fn kinds_choose_what_is_written_back() {
    for (kinds, young, idle) in [
        ("none", 0, 0),
        ("huge", 200, 200),
        ("huge_idle", 0, 200),
        // The letters aren't known to be incompressible until they were tried.
        ("incompressible", 0, 0),
        ("idle", 0, 300),
        ("all", 300, 300),
    ] {
        let spec = format!("zram?recompress=none&writeback_idle=60s&writeback={kinds}:ram:lz4");
        let (clock, store) = zram(&spec, Some(ram()));
        let pages = put_some(&store);
        for (second, expected) in [(30, young), (90, idle)] {
            clock.store(second, Ordering::Relaxed);
            maintain(&store);
            assert_eq!(store.bd_stat().bd_count, expected, "{kinds} at {second}");
            assert_eq!(store.stats().pages, 300);
        }
        assert_there(&store, &pages);
        assert_eq!(store.bd_stat().bd_reads, idle, "{kinds}");
    }
}

#[test]
fn what_is_incompressible_for_good_is_written_back() {
    let (clock, store) = zram("zram?idle=0s&dict=off&writeback=incompressible:ram:lz4", Some(ram()));
    let pages = put_some(&store);
    clock.store(200, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(store.bd_stat().bd_count, 100, "noise, and no letters");
    assert_eq!(store.mm_stat().huge_pages, 0);
    assert_there(&store, &pages);
}

#[test]
fn no_more_is_written_back_a_day_than_was_said() {
    let (clock, store) = zram("zram?recompress=none&writeback=all&writeback_limit=40K:ram:lz4", Some(ram()));
    let pages = put_some(&store);
    for day in 0..4 {
        for hour in 1..3 {
            clock.store(day * 86_400 + hour * 3_600, Ordering::Relaxed);
            maintain(&store);
            assert_eq!(store.bd_stat().bd_writes, (day + 1) * 10);
            assert_eq!(figure(&store, "writeback_allowance_bytes"), 0);
        }
    }
    assert_there(&store, &pages);
}

#[test]
fn at_the_memory_limit_the_oldest_go() {
    let (clock, store) = zram("zram?mem_limit=1M&recompress=none:ram:lz4", Some(ram()));
    let pages: Vec<_> = (0..1000)
        .map(|number| {
            clock.store(number / 10, Ordering::Relaxed);
            (number, page(number), put(&store, number).unwrap())
        })
        .collect();
    let mm = store.mm_stat();
    assert!(mm.mem_used_total <= 1 << 20 && mm.mem_used_max <= 1 << 20, "{mm:?}");
    let gone = store.bd_stat().bd_count;
    assert!(gone > 700, "{gone}");
    assert_there(&store, &pages);
    // The last ones hardly: they were the youngest wherever anybody looked.
    let before = store.bd_stat().bd_reads;
    assert_there(&store, &pages[950..]);
    assert!(store.bd_stat().bd_reads - before <= 10, "{} of the last", store.bd_stat().bd_reads - before);
}

#[test]
fn without_a_store_behind_it_a_full_one_says_so() {
    let (_, store) = zram("zram?mem_limit=1M", None);
    let pages: Vec<_> =
        (0..).map_while(|number| Some((number, page(number), put(&store, number).ok()?))).collect();
    assert!(pages.len() > 200, "{}", pages.len());
    assert!(store.mm_stat().mem_used_max <= 1 << 20);
    assert_eq!(store.io_stat().failed_writes, 1);
    assert_there(&store, &pages);
}

/// What can't be written back stays.
#[test]
fn a_store_that_refuses_costs_nothing() {
    let failing = userswap_stores::open("chaos?put_errors=1+ram:lz4", 4096).unwrap();
    let (clock, store) = zram("zram?recompress=none&writeback=all:ram:lz4", Some(failing));
    let pages = put_some(&store);
    clock.store(1, Ordering::Relaxed);
    maintain(&store);
    assert_eq!((store.bd_stat().bd_count, store.bd_stat().bd_writes), (0, 0));
    assert!(store.io_stat().failed_writes > 0);
    assert_there(&store, &pages);
}

#[test]
fn what_was_written_back_is_freed_there() {
    let backing = ram();
    let (clock, store) = zram("zram?recompress=none&writeback=all:ram:lz4", Some(Arc::clone(&backing)));
    let pages = put_some(&store);
    clock.store(1, Ordering::Relaxed);
    maintain(&store);
    assert_eq!(backing.stats().pages, 300);
    let wrong = fetch_and_wait(&store, pages[0].2, key(1));
    assert!(matches!(wrong, Err(StoreError::NotFound { .. })));
    for (_, _, handle) in &pages {
        store.free(&[*handle]);
    }
    assert_eq!((backing.stats().pages, store.stats().pages, store.stats().bad_frees), (0, 0, 0));
    assert_eq!(store.io_stat().notify_free, 300);
}

#[test]
fn a_run_may_lie_in_both() {
    let late = Arc::new(Reference::new(&Ask::default(), None).answering_late());
    let (clock, store) = zram("zram?recompress=none&writeback=huge:ram:lz4", Some(late));
    let pages = put_some(&store);
    clock.store(1, Ordering::Relaxed);
    maintain(&store);
    let wanted: Vec<_> =
        pages.iter().rev().map(|(number, _, handle)| Wanted { handle: *handle, key: key(*number) }).collect();
    let mut out = vec![0; wanted.len() * 4096];
    let mut results: Vec<_> = wanted.iter().map(|_| Ok(Fetch::Pending)).collect();
    store.fetch_run(&wanted, &mut out, &mut results, &Waiter::none()).unwrap();
    for (place, ((_, bytes, _), result)) in pages.iter().rev().zip(&results).enumerate() {
        let is_ready = *result.as_ref().unwrap() == Fetch::Ready;
        assert!(is_ready || place < 200, "{place}");
        assert!(!is_ready || out[place * 4096..(place + 1) * 4096] == **bytes, "{place}");
    }
    // The other store keeps some waiting.
    assert!(results.iter().any(|result| matches!(result, Ok(Fetch::Pending))));
}

#[test]
fn statistics_have_zrams_meaning() {
    let (clock, store) = zram("zram?idle=0s&dict=off&writeback=huge:ram:lz4", Some(ram()));
    let pages = put_some(&store);
    let same: Vec<_> = (0..5).map(|number| put_page(&store, 500 + number, &[7; 4096]).unwrap()).collect();
    let mm = store.mm_stat();
    assert_eq!((mm.orig_data_size, mm.same_pages, mm.mem_limit), (305 * 4096, 5, 0));
    assert_eq!((mm.huge_pages, mm.huge_pages_since), (200, 200));
    assert!(mm.compr_data_size < mm.mem_used_total && mm.mem_used_total <= mm.mem_used_max, "{mm:?}");
    clock.store(1, Ordering::Relaxed);
    maintain(&store);
    let (after, bd) = (store.mm_stat(), store.bd_stat());
    assert_eq!((after.orig_data_size, after.huge_pages, after.huge_pages_since), (305 * 4096, 0, 200));
    assert_eq!((bd.bd_count, bd.bd_reads, bd.bd_writes), (100, 0, 100));
    assert!(after.compr_data_size < mm.compr_data_size && after.mem_used_max >= mm.mem_used_max);
    assert!(store.put(&[], &mut [None]).is_err());
    store.free(&same);
    assert_there(&store, &pages);
    let all = figures(&store);
    for (name, figure) in store.mm_stat().columns().into_iter().chain(store.io_stat().columns()) {
        assert_eq!(all[name], figure, "{name}");
    }
    assert_eq!((all["invalid_io"], all["notify_free"], all["bd_reads"]), (1, 5, 100));
}

/// Fetches while pages are compressed again and written back: never another's bytes, never lost.
#[test]
fn fetches_and_background_work_at_once() {
    let spec = "zram?recompress=all&idle=0s&writeback=incompressible:ram:lz4";
    let (clock, store) = zram(spec, Some(ram()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                clock.fetch_add(1, Ordering::Relaxed);
                store.maintain(Budget::UNLIMITED);
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|owner| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..30 {
                        let first = (owner * 100 + round) * 1000;
                        let bytes = |number| if number % 2 == 0 { words(number) } else { page(number) };
                        let pages: Vec<_> = (first..first + 20)
                            .map(|number| {
                                (number, bytes(number), put_page(store, number, &bytes(number)).unwrap())
                            })
                            .collect();
                        assert_there(store, &pages);
                        assert_there(store, &pages);
                        let handles: Vec<_> = pages.iter().map(|(_, _, handle)| *handle).collect();
                        store.free(&handles);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(store.bd_stat().bd_writes > 0 && figure(&store, "recompressed_pages") > 0);
    assert_eq!((store.stats().pages, store.stats().fetch_errors, store.bd_stat().bd_count), (0, 0, 0));
}
