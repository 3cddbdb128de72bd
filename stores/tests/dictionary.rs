//! Dictionaries: who gets one, what it saves, and that nothing is ever decoded with the wrong one.
#![cfg(feature = "ram-zstd")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, StoreError};
use userswap_stores::ram::{Builder, Codec, Ram};

const PAGE: usize = 4096;
const PIECE: u64 = 5;
const MADE_WITH: u64 = 4;

fn builder() -> Builder {
    Ram::with_codec(Codec::Zstd { level: -1 }).dictionary_from(100).dense(None)
}

fn key(owner: u64, page: u64) -> PageKey {
    PageKey { owner: OwnerId(owner), page, generation: 1 }
}

fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A page of words from a language of 300, which none of its words says twice in a page: alone it hardly compresses.
fn page(language: u64, number: u64) -> Vec<u8> {
    let mut state = language * 1_000_003 + number;
    let mut bytes = Vec::with_capacity(PAGE + 32);
    while bytes.len() < PAGE {
        let word = step(&mut state) % 300;
        let mut letters = language << 32 | word;
        let len = 12 + word as usize % 16;
        bytes.extend((0..len).map(|_| b'a' + (step(&mut letters) % 26) as u8));
    }
    bytes.truncate(PAGE);
    bytes
}

fn put(store: &Ram, key: PageKey, bytes: &[u8]) -> Handle {
    let mut handle = [None];
    store.put(&[Page { key, bytes }], &mut handle).unwrap();
    handle[0].unwrap()
}

/// Puts pages `numbers` of an owner that speaks this language.
fn put_all(store: &Ram, owner: u64, language: u64, numbers: std::ops::Range<u64>) -> Vec<(PageKey, Handle)> {
    let put = |at| (key(owner, at), put(store, key(owner, at), &page(language, at)));
    numbers.map(put).collect()
}

fn check(store: &Ram, language: u64, held: &[(PageKey, Handle)]) {
    for (key, handle) in held {
        assert!(fetch_and_wait(store, *handle, *key).unwrap() == page(language, key.page), "{key}");
    }
}

fn tidy(store: &Ram) {
    while store.maintain(Budget::bytes(1 << 20)).more {}
    store.maintain(Budget::UNLIMITED);
}

fn free_all(store: &Ram, held: &[(PageKey, Handle)]) {
    store.free(&held.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
}

/// Where the objects of this form are in the file, and the keys in their headers.
fn objects(file: &File, form: u64) -> Vec<(u64, PageKey)> {
    let mut found = Vec::new();
    let mut at = 4096;
    let mut header = [0; 24];
    let seek = |from| rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from));
    while let Ok(data) = seek(at) {
        at = data;
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(at)).unwrap();
        while at + 24 <= end {
            file.read_exact_at(&mut header, at).unwrap();
            let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
            let half = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (packed, mark) = (word(8), half(20));
            let key = PageKey { owner: OwnerId(word(0)), page: packed >> 20, generation: half(16) };
            // Owners of these tests are small numbers; what is inside a payload looks otherwise.
            if packed & 7 == form && mark != 0 && (1..100).contains(&word(0)) && packed >> 3 & 0x1ffff != 0 {
                found.push((at, key));
            }
            at += 16;
        }
        at = end;
    }
    found
}

fn pieces(store: &Ram) -> Vec<(u64, PageKey)> {
    objects(store.arena_file(), PIECE)
}

fn left_behind(store: Ram) -> File {
    let file = store.arena_file().try_clone().unwrap();
    drop(store);
    file
}

#[test]
fn pages_before_and_after_training_come_back() {
    let store = builder().build().unwrap();
    let mut held = put_all(&store, 1, 7, 0..400);
    assert!(pieces(&store).is_empty(), "nothing is trained by putting");
    let before = store.stats();
    tidy(&store);
    let after = store.stats();
    assert_eq!(pieces(&store).len(), 4, "15 KiB in pieces of a page");
    assert!(after.stored_bytes * 10 < before.stored_bytes * 8, "{before:?} {after:?}");
    check(&store, 7, &held);
    let more = put_all(&store, 1, 7, 400..800);
    let each = (store.stats().stored_bytes - after.stored_bytes) / 400;
    assert!(each * 10 < before.stored_bytes / 400 * 8, "{each} bytes a page put with the dictionary");
    held.extend(more);
    tidy(&store);
    check(&store, 7, &held);
    assert_eq!(store.stats().fetch_errors, 0);
}

#[test]
fn an_owner_that_changes_gets_another_and_the_old_one_goes_with_its_last_page() {
    let store = builder().build().unwrap();
    let first = put_all(&store, 1, 7, 0..300);
    tidy(&store);
    let old = pieces(&store)[0].1.generation;
    let mut second = Vec::new();
    for round in 0..20 {
        second.extend(put_all(&store, 1, 8, 1000 + round * 100..1100 + round * 100));
        tidy(&store);
    }
    let ids = |store: &Ram| {
        let mut ids: Vec<u32> = pieces(store).iter().map(|(_, key)| key.generation).collect();
        ids.dedup();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert!(ids(&store).iter().any(|id| *id != old), "a second dictionary");
    check(&store, 7, &first);
    check(&store, 8, &second);
    free_all(&store, &first);
    tidy(&store);
    assert_eq!(ids(&store).len(), 1);
    assert!(!ids(&store).contains(&old));
    check(&store, 8, &second);
}

#[test]
fn everything_freed_leaves_nothing() {
    let store = builder().build().unwrap();
    let empty = store.stats().memory_bytes;
    for language in 1..4 {
        let held: Vec<_> = (1..4).flat_map(|owner| put_all(&store, owner, language, 0..150)).collect();
        for _ in 0..3 {
            tidy(&store);
        }
        assert_eq!(pieces(&store).len(), 12, "a dictionary for each of three owners");
        free_all(&store, &held);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0), "with the last object");
        assert!(pieces(&store).is_empty());
        tidy(&store);
        assert_eq!(store.stats().memory_bytes, empty);
    }
}

#[test]
fn owners_of_few_pages_and_stores_without_dictionaries_have_none() {
    let store = builder().build().unwrap();
    put_all(&store, 1, 7, 0..90);
    put_all(&store, 2, 7, 0..110);
    tidy(&store);
    assert!(pieces(&store).iter().all(|(_, key)| key.owner == OwnerId(2)));
    assert_eq!(pieces(&store).len(), 4);
    let without = builder().dictionary(None).build().unwrap();
    put_all(&without, 1, 7, 0..300);
    tidy(&without);
    assert!(pieces(&without).is_empty());
}

/// Owners were forgotten between two calls as long as they had put few pages, so that slow ones never got a dictionary.
#[test]
fn an_owner_that_puts_slowly_gets_one_too() {
    let store = builder().build().unwrap();
    let mut held = Vec::new();
    for at in 0..30 {
        held.extend(put_all(&store, 1, 7, at * 4..at * 4 + 4));
        store.maintain(Budget::UNLIMITED);
    }
    assert_eq!(pieces(&store).len(), 4);
    check(&store, 7, &held);
}

#[test]
fn pages_a_dictionary_does_not_help_get_none() {
    let store = builder().build().unwrap();
    let mut state = 5;
    for at in 0..300 {
        let half = PAGE / 2;
        let noise: Vec<u8> = (0..PAGE).map(|at| if at < half { step(&mut state) as u8 } else { 0 }).collect();
        put(&store, key(1, at), &noise);
    }
    tidy(&store);
    assert!(pieces(&store).is_empty());
}

#[test]
fn impossible_sizes_are_refused() {
    for size in [0, 1023, (1 << 20) + 1] {
        assert!(matches!(builder().dictionary(Some(size)).build(), Err(StoreError::Unsupported { .. })));
    }
}

#[test]
fn a_full_store_does_without() {
    let capacity = 1 << 20;
    let store = builder().capacity(capacity).build().unwrap();
    let mut held = Vec::new();
    for at in 0.. {
        let mut handle = [None];
        let bytes = page(7, at);
        if store.put(&[Page { key: key(1, at), bytes: &bytes }], &mut handle).is_err() {
            break;
        }
        held.push((key(1, at), handle[0].unwrap()));
        if at % 50 == 0 {
            store.maintain(Budget::UNLIMITED);
        }
        assert!(store.stats().memory_bytes <= capacity);
    }
    tidy(&store);
    assert!(store.stats().memory_bytes <= capacity);
    check(&store, 7, &held);
    free_all(&store, &held);
    tidy(&store);
    assert_eq!(store.stats().stored_bytes, 0);
}

#[test]
fn a_successor_reads_what_was_made_with_dictionaries() {
    for codec in [
        Codec::Zstd { level: 3 },
        #[cfg(feature = "ram-lz4")]
        Codec::Lz4,
    ] {
        let store = builder().build().unwrap();
        let (one, two) = (put_all(&store, 1, 7, 0..300), put_all(&store, 2, 8, 0..300));
        tidy(&store);
        tidy(&store);
        let before = store.stats();
        assert_eq!(pieces(&store).len(), 8);
        let (store, found) = Ram::with_codec(codec).dictionary_from(100).rebuild(left_behind(store)).unwrap();
        assert_eq!(found.len(), one.len() + two.len());
        assert_eq!(store.stats().stored_bytes, before.stored_bytes);
        for (key, handle) in &found {
            let language = if key.owner == OwnerId(1) { 7 } else { 8 };
            check(&store, language, &[(*key, *handle)]);
        }
        let more = put_all(&store, 1, 7, 1000..1100);
        tidy(&store);
        check(&store, 7, &more);
        free_all(&store, &found);
        free_all(&store, &more);
        tidy(&store);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
        assert!(pieces(&store).is_empty());
    }
}

/// A process that was killed while it wrote a dictionary, or took one away, leaves a part of one.
#[test]
fn a_dictionary_that_is_not_whole_takes_its_pages_with_it_and_no_others() {
    for damage in [0, 1, 2] {
        let store = builder().build().unwrap();
        let (one, two) = (put_all(&store, 1, 7, 0..300), put_all(&store, 2, 8, 0..300));
        tidy(&store);
        tidy(&store);
        let (at, piece) = *pieces(&store).iter().find(|(_, key)| key.owner == OwnerId(1)).unwrap();
        let with: usize =
            objects(store.arena_file(), MADE_WITH).iter().filter(|(_, key)| key.owner == OwnerId(1)).count();
        let file = store.arena_file().try_clone().unwrap();
        match damage {
            0 => file.write_all_at(&[0; 4], at + 20).unwrap(),
            1 => file.write_all_at(&[0x55; 8], at + 100).unwrap(),
            // Everything is there, under another number.
            _ => file.write_all_at(&(piece.generation ^ 1 << 20).to_le_bytes(), at + 16).unwrap(),
        }
        // The store itself goes on with the dictionary it has in memory.
        check(&store, 7, &one);
        check(&store, 8, &two);
        let (store, found) = builder().rebuild(left_behind(store)).unwrap();
        let left = found.iter().filter(|(key, _)| key.owner == OwnerId(1)).count();
        assert!(with > 200 && left == one.len() - with, "{with} of {} needed it, {left} left", one.len());
        assert_eq!(found.len() - left, two.len());
        for (key, handle) in &found {
            let language = if key.owner == OwnerId(1) { 7 } else { 8 };
            check(&store, language, &[(*key, *handle)]);
        }
        // What isn't an object any more may lie where it was; that apart, the rest of the dictionary is gone.
        let gone = |(place, key): &(u64, PageKey)| key.owner == OwnerId(2) || *place == at;
        assert!(pieces(&store).iter().all(gone));
        free_all(&store, &found);
        tidy(&store);
        assert_eq!(store.stats().stored_bytes, 0);
    }
}

#[test]
fn a_page_of_another_dictionary_is_corrupt_not_wrong() {
    let store = builder().build().unwrap();
    let held = put_all(&store, 1, 7, 0..300);
    tidy(&store);
    let (at, damaged) = objects(store.arena_file(), MADE_WITH)[0];
    let mut id = [0; 4];
    store.arena_file().read_exact_at(&mut id, at + 24).unwrap();
    id[3] ^= 1;
    store.arena_file().write_all_at(&id, at + 24).unwrap();
    for (key, handle) in &held {
        match fetch_and_wait(&store, *handle, *key) {
            Ok(bytes) => assert!(bytes == page(7, key.page)),
            Err(error) => {
                assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
                assert_eq!(*key, damaged);
            }
        }
    }
    assert_eq!(store.stats().fetch_errors, 1);
    free_all(&store, &held);
    assert_eq!(store.stats().pages, 0);
}

#[test]
fn threads_put_fetch_and_free_while_dictionaries_come_and_go() {
    let store = builder().dictionary(Some(4096)).dictionary_from(60).build().unwrap();
    let empty = store.stats().memory_bytes;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let keeper = scope.spawn(|| {
            let mut calls = 0;
            while !done.load(Ordering::Acquire) {
                store.maintain(Budget::bytes(2 << 20));
                calls += 1;
            }
            calls
        });
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    let mut state = worker;
                    // Both threads work for owner 1, and each for one of its own.
                    for round in 0..12 {
                        let language = 5 + round / 4;
                        let first = worker * 1_000_000 + round * 1000;
                        let mut held = put_all(store, 1, language, first..first + 120);
                        held.extend(put_all(store, 2 + worker, language, first..first + 120));
                        for _ in 0..400 {
                            let at = step(&mut state) as usize % held.len();
                            check(store, language, &held[at..=at]);
                        }
                        while let Some(last) = held.pop() {
                            free_all(store, &[last]);
                            if held.len().is_multiple_of(40) {
                                check(store, language, &held);
                            }
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Release);
        assert!(keeper.join().unwrap() > 0);
    });
    let stats = store.stats();
    assert_eq!((stats.pages, stats.stored_bytes, stats.fetch_errors, stats.bad_frees), (0, 0, 0, 0));
    tidy(&store);
    assert_eq!(store.stats().memory_bytes, empty);
    assert!(pieces(&store).is_empty());
}

/// What stays is compressed again once, as dense as it gets, with its owner's dictionary or without one; and then left alone.
#[test]
fn what_stays_gets_dense_and_is_left_alone_then() {
    for dictionary in [Some(8192), None] {
        let make = |dense| builder().dictionary(dictionary).dense(dense).build().unwrap();
        let (plain, dense) = (make(None), make(Some(9)));
        let held: Vec<_> = [&plain, &dense].iter().map(|store| put_all(store, 1, 5, 0..600)).collect();
        tidy(&plain);
        tidy(&dense);
        let (before, after) = (plain.stats(), dense.stats());
        assert!(after.stored_bytes * 20 < before.stored_bytes * 19, "{before:?} {after:?}");
        assert!(after.memory_bytes < before.memory_bytes, "{before:?} {after:?}");
        check(&dense, 5, &held[1]);
        assert_eq!(dense.maintain(Budget::UNLIMITED).moved_bytes, 0, "nothing is left to do");
        // What comes later gets dense too.
        let more = put_all(&dense, 1, 5, 600..700);
        assert!(dense.maintain(Budget::UNLIMITED).moved_bytes > 0);
        check(&dense, 5, &more);
        // A successor knows what is dense.
        let codec = Codec::Zstd { level: -1 };
        let (store, found) = Ram::with_codec(codec).dense(Some(9)).rebuild(left_behind(dense)).unwrap();
        assert_eq!(found.len(), 700);
        check(&store, 5, &found);
        tidy(&store);
        assert!(store.stats().stored_bytes <= after.stored_bytes * 7 / 6 + 100);
        free_all(&store, &found);
        assert!(pieces(&store).is_empty());
        free_all(&plain, &held[0]);
    }
}
