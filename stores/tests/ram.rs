//! What `ram` promises beyond the kit's laws.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use userswap_store::testkit::{fetch_and_wait, images};
use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, StoreError};
use userswap_stores::ram::{Codec, Ram};

const PAGE: usize = 4096;

fn key(page: u64, generation: u32) -> PageKey {
    PageKey { owner: OwnerId(3), page, generation }
}

fn put(store: &Ram, key: PageKey, bytes: &[u8]) -> Handle {
    let mut handle = [None];
    store.put(&[Page { key, bytes }], &mut handle).unwrap();
    handle[0].unwrap()
}

fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A page that compresses to roughly `seed`-dependent sizes, all over the range.
fn page(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let random = step(&mut state) as usize % PAGE;
    (0..PAGE).map(|at| if at < random { step(&mut state) as u8 } else { seed as u8 }).collect()
}

/// What the kernel says the arena's file takes.
fn file_bytes(store: &Ram) -> u64 {
    store.arena_file().metadata().unwrap().blocks() * 512
}

#[test]
fn memory_after_ten_times_the_content_was_replaced() {
    let store = Ram::builder().build().unwrap();
    let mut held: Vec<_> = (0..8000).map(|at| (key(at, 0), put(&store, key(at, 0), &page(at)))).collect();
    let mut state = 1;
    for generation in 1..80_000 {
        let at = step(&mut state) as usize % held.len();
        store.free(&[held[at].1]);
        let key = key(at as u64, generation);
        held[at] = (key, put(&store, key, &page(u64::from(generation))));
        if generation % 4000 == 0 {
            store.maintain(Budget::bytes(4 << 20));
        }
    }
    let before = store.stats();
    store.maintain(Budget::UNLIMITED);
    let after = store.stats();
    let ratio = |stats: &userswap_store::Stats| stats.memory_bytes as f64 / stats.stored_bytes as f64;
    assert!(ratio(&before) <= 1.15, "{before:?}");
    assert!(ratio(&after) <= 1.08, "{after:?}");
    assert!(file_bytes(&store) <= after.memory_bytes, "{} in the file, {after:?}", file_bytes(&store));
}

#[test]
fn a_shrunken_store_gives_its_memory_back() {
    let store = Ram::builder().build().unwrap();
    let held: Vec<_> = (0..6000).map(|at| put(&store, key(at, 0), &page(at))).collect();
    let full = file_bytes(&store);
    // Every tenth stays, so that hardly a slab is empty.
    let (stay, go): (Vec<_>, Vec<_>) = (0_u64..).zip(held).partition(|(at, _)| at.is_multiple_of(10));
    go.iter().for_each(|(_, handle)| store.free(&[*handle]));
    let mut calls = 0;
    while store.maintain(Budget::bytes(100_000)).more {
        calls += 1;
    }
    assert!(calls > 5, "the budget is kept");
    store.maintain(Budget::UNLIMITED);
    let stats = store.stats();
    assert!(file_bytes(&store) < full / 8, "{} of {full} bytes are left", file_bytes(&store));
    // Half a frame for each of some 150 classes, and the index's smallest size, weigh in a store of a megabyte.
    assert!(stats.memory_bytes < stats.stored_bytes * 105 / 100 + (400 << 10), "{stats:?}");
    for (at, handle) in &stay {
        assert_eq!(fetch_and_wait(&store, *handle, key(*at, 0)).unwrap(), page(*at));
    }
    store.free(&stay.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
    store.maintain(Budget::UNLIMITED);
    // The head with a class for each slab is all that stays.
    assert!(file_bytes(&store) <= 3 * 4096, "{} bytes in an empty store", file_bytes(&store));
}

#[test]
fn memory_is_what_the_kernel_says_it_is() {
    let store = Ram::builder().build().unwrap();
    let empty = store.stats().memory_bytes;
    for at in 0..4000 {
        put(&store, key(at, 0), &page(at));
    }
    store.maintain(Budget::UNLIMITED);
    let (counted, taken) = (store.stats().memory_bytes - empty, file_bytes(&store));
    // Counted besides: eight bytes an entry, a bit a slot, and what they are kept in. Not counted: the file's head.
    assert!(taken <= counted + 2 * 4096, "{counted} counted, {taken} taken");
    assert!(counted <= taken + taken / 40, "{counted} counted, {taken} taken");
}

#[test]
fn same_filled_pages_take_no_memory() {
    let store = Ram::builder().build().unwrap();
    let empty = store.stats().memory_bytes;
    for at in 0..1000 {
        put(&store, key(at, 0), &[at as u8; PAGE]);
    }
    let stats = store.stats();
    assert_eq!((stats.memory_bytes - empty, stats.stored_bytes, stats.same_filled_pages), (0, 0, 1000));
}

#[test]
fn every_damaged_byte_of_an_object_is_noticed() {
    for codec in codecs() {
        let store = Ram::with_codec(codec).build().unwrap();
        let bytes = page(2000);
        let handle = put(&store, key(1, 1), &bytes);
        let stored = store.stats().stored_bytes;
        let start = find_object(store.arena_file(), key(1, 1));
        for at in start..start + stored {
            let mut byte = [0];
            store.arena_file().read_exact_at(&mut byte, at).unwrap();
            store.arena_file().write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            let found = fetch_and_wait(&store, handle, key(1, 1));
            assert!(
                matches!(found, Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. })),
                "{codec:?} {at}"
            );
            store.arena_file().write_all_at(&byte, at).unwrap();
        }
        assert_eq!(fetch_and_wait(&store, handle, key(1, 1)).unwrap(), bytes);
        assert_eq!(store.stats().fetch_errors, stored);
    }
}

fn codecs() -> Vec<Codec> {
    vec![
        Codec::Lz4,
        #[cfg(feature = "ram-zstd")]
        Codec::Zstd { level: -1 },
    ]
}

/// Where in the file the object with this key's header is: owner and generation are enough.
fn find_object(file: &File, key: PageKey) -> u64 {
    let mut header = [0; 24];
    let is_it = |header: &[u8; 24]| {
        header[..8] == key.owner.0.to_le_bytes() && header[16..20] == key.generation.to_le_bytes()
    };
    let mut at = 4096;
    loop {
        file.read_exact_at(&mut header, at).unwrap();
        if is_it(&header) && header[20..] != [0; 4] {
            return at;
        }
        at += 16;
        // The arena's head is mostly a hole, and so is its end.
        if at.is_multiple_of(4096) {
            at = std::cmp::max(at, next_data(file, at));
        }
    }
}

fn next_data(file: &File, from: u64) -> u64 {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)).unwrap()
}

/// The memfd of a store that is gone.
fn left_behind(store: Ram) -> File {
    let file = store.arena_file().try_clone().unwrap();
    drop(store);
    file
}

#[test]
fn a_successor_finds_every_page() {
    for codec in codecs() {
        let store = Ram::with_codec(codec).recoverable(true).build().unwrap();
        let mut pages: Vec<Vec<u8>> = images(PAGE).into_iter().map(|image| image.bytes).collect();
        pages.extend((0..2000).map(page));
        let handles: Vec<_> = (0..).zip(&pages).map(|(at, bytes)| put(&store, key(at, 5), bytes)).collect();
        // Holes, moved objects and reused slabs.
        let (stay, go): (Vec<_>, Vec<_>) = (0_u64..).zip(handles).partition(|(at, _)| at % 3 != 1);
        store.free(&go.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        store.maintain(Budget::UNLIMITED);
        let before = store.stats();
        let (store, found) = Ram::with_codec(Codec::Lz4).rebuild(left_behind(store)).unwrap();
        let keys: Vec<_> = found.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, stay.iter().map(|(at, _)| key(*at, 5)).collect::<Vec<_>>());
        for (key, handle) in &found {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), pages[key.page as usize]);
        }
        let after = store.stats();
        assert_eq!((after.pages, after.stored_bytes), (before.pages, before.stored_bytes));
        assert_eq!(after.same_filled_pages, before.same_filled_pages);
        assert!(after.memory_bytes <= before.memory_bytes + before.memory_bytes / 50);
        // And it goes on as a store.
        for (at, bytes) in (10_000..).zip(&pages) {
            let handle = put(&store, key(at, 1), bytes);
            assert_eq!(fetch_and_wait(&store, handle, key(at, 1)).unwrap(), *bytes);
            store.free(&[handle]);
        }
        store.free(&found.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        store.maintain(Budget::UNLIMITED);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
        assert!(file_bytes(&store) <= 3 * 4096);
    }
}

/// One that was refused for a few hundred bytes had every program that had pages in it ended.
#[test]
fn a_successor_keeps_what_it_finds_though_it_is_more_than_fits() {
    for codec in codecs() {
        let store = Ram::with_codec(codec).recoverable(true).build().unwrap();
        for at in 0..2000 {
            put(&store, key(at, 5), &page(at));
        }
        let little = store.stats().memory_bytes / 2;
        let (store, found) = Ram::with_codec(codec).capacity(little).rebuild(left_behind(store)).unwrap();
        assert_eq!(found.len(), 2000);
        for (key, handle) in &found {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), page(key.page));
        }
        let more = page(7);
        let mut handles = [None];
        let refused = store.put(&[Page { key: key(3000, 1), bytes: &more }], &mut handles);
        assert!(matches!(refused, Err(StoreError::Full { available: 0, .. })), "{refused:?}");
        store.free(&found.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        store.maintain(Budget::UNLIMITED);
        put(&store, key(3000, 1), &more);
        assert!(store.stats().memory_bytes <= little);
    }
}

#[test]
fn a_successor_drops_what_is_not_whole() {
    let store = Ram::builder().build().unwrap();
    for at in 0..50 {
        put(&store, key(at, at as u32), &page(at + 9));
    }
    let torn = find_object(store.arena_file(), key(20, 20));
    store.arena_file().write_all_at(&[0x77; 8], torn + 30).unwrap();
    let unmarked = find_object(store.arena_file(), key(30, 30));
    store.arena_file().write_all_at(&[0; 4], unmarked + 20).unwrap();
    let (store, found) = Ram::builder().rebuild(left_behind(store)).unwrap();
    let pages: Vec<_> = found.iter().map(|(key, _)| key.page).collect();
    assert_eq!(pages, (0..50).filter(|page| ![20, 30].contains(page)).collect::<Vec<_>>());
    assert_eq!(store.stats().pages, 48);
}

/// A program can put an object's image into its own page; in a slab that becomes another class's it must not pass for one.
#[test]
fn a_page_that_looks_like_objects_is_not_taken_for_them() {
    let store = Ram::builder().build().unwrap();
    let mut object = vec![0; 24 + 8];
    // A sound same-filled object of somebody else's, all over pages that don't compress, in every alignment.
    let victim = Ram::builder().recoverable(true).build().unwrap();
    put(&victim, key(7, 0x1234), &[9; PAGE]);
    let at = find_object(victim.arena_file(), key(7, 0x1234));
    victim.arena_file().read_exact_at(&mut object, at).unwrap();
    let mut state = 3;
    let mut handles = Vec::new();
    for at in 0..1000 {
        let mut hostile: Vec<u8> = (0..PAGE).map(|_| step(&mut state) as u8).collect();
        for place in (at * 16 % 800 + 8..PAGE - 32).step_by(800) {
            hostile[place..place + 32].copy_from_slice(&object);
        }
        handles.push(put(&store, key(at as u64, 1), &hostile));
    }
    assert_eq!(store.stats().incompressible_pages, 1000);
    store.free(&handles);
    for at in 100..3000 {
        put(&store, key(at, 2), &page(at));
    }
    let kept = store.stats().pages - store.stats().same_filled_pages;
    let (store, found) = Ram::builder().rebuild(left_behind(store)).unwrap();
    assert_eq!(found.len() as u64, kept);
    assert!(found.iter().all(|(key, _)| key.generation == 2));
    drop(store);
}

#[test]
fn an_arena_in_use_and_a_file_that_is_none_are_refused() {
    let store = Ram::builder().build().unwrap();
    let busy = Ram::builder().rebuild(store.arena_file().try_clone().unwrap()).err().unwrap();
    assert!(
        matches!(&busy, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy)
    );
    assert!(matches!(Ram::builder().rebuild(File::open("/dev/null").unwrap()), Err(StoreError::Io { .. })));
}

#[test]
fn impossible_settings_are_refused() {
    for page_size in [0, 128, 4095, 131_072] {
        let refused = Ram::builder().page_size(page_size).build().err().unwrap();
        assert!(matches!(refused, StoreError::Unsupported { .. }));
    }
    #[cfg(feature = "ram-zstd")]
    assert!(Ram::with_codec(Codec::Zstd { level: 20 }).build().is_err());
    let store = Ram::builder().build().unwrap();
    let beyond = key(PageKey::PAGE_LIMIT, 0);
    let mut handle = [None];
    let refused = store.put(&[Page { key: beyond, bytes: &[1; PAGE] }], &mut handle);
    assert!(matches!(refused, Err(StoreError::Unsupported { .. })));
    assert_eq!(handle, [None]);
}

#[test]
fn fetches_go_on_while_objects_are_moved() {
    let store = Ram::builder().build().unwrap();
    let held: Vec<_> = (0..3000).map(|at| put(&store, key(at, 0), &page(at))).collect();
    let (stay, go): (Vec<_>, Vec<_>) = (0_u64..).zip(held).partition(|(at, _)| at.is_multiple_of(4));
    let gone: Vec<_> = go.into_iter().map(|(_, handle)| handle).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    for (at, handle) in &stay {
                        assert_eq!(fetch_and_wait(&store, *handle, key(*at, 0)).unwrap(), page(*at));
                    }
                }
            });
        }
        let mut moved = 0;
        for some in gone.chunks(250) {
            store.free(some);
            moved += store.maintain(Budget::UNLIMITED).moved_bytes;
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        assert!(moved > 0, "something was moved");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of an object overwritten at will: the page, or an error.
    #[test]
    fn damage_is_an_error_or_harmless(seed in 0..500_u64, at in 0..1500_u64, bytes in prop::collection::vec(any::<u8>(), 1..40)) {
        let store = Ram::builder().capacity(8 << 20).build().unwrap();
        let handle = put(&store, key(1, 77), &page(seed));
        let neighbour = put(&store, key(2, 78), &page(seed + 1));
        let start = find_object(store.arena_file(), key(1, 77));
        let len = store.stats().stored_bytes / 2;
        store.arena_file().write_all_at(&bytes, start + at % len).unwrap();
        for (handle, key, seed) in [(handle, key(1, 77), seed), (neighbour, key(2, 78), seed + 1)] {
            if let Ok(found) = fetch_and_wait(&store, handle, key) {
                prop_assert_eq!(found, page(seed));
            }
        }
        store.free(&[handle, neighbour]);
        prop_assert_eq!(store.stats().pages, 0);
    }
}
