//! Equal pages stored once: the laws, and what is shared with whom.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use userswap_store::testkit::{Ask, fetch_and_wait};
use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store};
use userswap_stores::ram::Ram;

use pages::{key, page, put_page};

fn sharing() -> Ram {
    Ram::builder().deduplicate(true).build().unwrap()
}

mod lz4 {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> {
        let builder = Ram::builder().deduplicate(true);
        Arc::new(match ask.capacity {
            Some(bytes) => builder.capacity(bytes).build().unwrap(),
            None => builder.build().unwrap(),
        })
    });
}

#[cfg(feature = "ram-zstd")]
mod zstd_with_dictionaries {
    use super::*;
    use userswap_stores::ram::Codec;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> {
        let builder = Ram::with_codec(Codec::Zstd { level: 1 }).deduplicate(true);
        let builder = builder.dictionary(Some(2048)).dictionary_from(12);
        Arc::new(match ask.capacity {
            Some(bytes) => builder.capacity(bytes).build().unwrap(),
            None => builder.build().unwrap(),
        })
    });
}

#[cfg(feature = "ram-zstd")]
mod zram_that_writes_all_back {
    use super::*;

    userswap_store::conformance!(|_: &Ask| {
        userswap_stores::open("zram?dedup=on&writeback=all&recompress=all:ram:lz4", 4096).unwrap()
    });
}

fn figure(store: &dyn Store, wanted: &str) -> u64 {
    let mut found = None;
    store.figures(&mut |name, figure| found = if name == wanted { Some(figure) } else { found });
    found.unwrap()
}

fn there(store: &dyn Store, number: u64, handle: Handle, bytes: &[u8]) {
    assert!(fetch_and_wait(store, handle, key(number)).unwrap() == bytes, "page {number}");
}

#[test]
fn equal_pages_take_one_object_until_the_last_is_gone() {
    let (store, bytes) = (sharing(), page(7));
    let handles: Vec<_> = (0..100).map(|number| put_page(&store, number, &bytes).unwrap()).collect();
    let stats = store.stats();
    assert_eq!((stats.pages, stats.puts), (100, 100));
    assert_eq!((figure(&store, "deduplicated_pages"), figure(&store, "deduplicated_objects")), (100, 1));
    assert_eq!(stats.stored_bytes, 4096 + 24 + 100 * 32);
    for (number, handle) in (0..).zip(&handles) {
        there(&store, number, *handle, &bytes);
    }
    let wrong = fetch_and_wait(&store, handles[3], key(4));
    assert!(wrong.is_err());
    // The first is no different from the others.
    store.free(&handles[..99]);
    assert_eq!((store.stats().pages, store.stats().frees), (1, 99));
    store.maintain(Budget::UNLIMITED);
    there(&store, 99, handles[99], &bytes);
    // One more while there is one; and one when there is none.
    let again = put_page(&store, 500, &bytes).unwrap();
    assert_eq!(figure(&store, "deduplicated_objects"), 1);
    store.free(&[handles[99], again]);
    let stats = store.stats();
    assert_eq!((stats.pages, stats.stored_bytes, stats.puts, stats.frees), (0, 0, 101, 101));
    let last = put_page(&store, 600, &bytes).unwrap();
    assert_eq!(figure(&store, "deduplicated_pages"), 0);
    there(&store, 600, last, &bytes);
}

#[test]
fn different_owners_share_nothing() {
    let (store, bytes) = (sharing(), page(7));
    for owner in 1..4 {
        let mut handle = [None];
        let key = PageKey { owner: OwnerId(owner), page: 1, generation: 1 };
        store.put(&[Page { key, bytes: &bytes }], &mut handle).unwrap();
    }
    assert_eq!((figure(&store, "deduplicated_pages"), store.stats().stored_bytes), (0, 3 * (4096 + 24)));
}

#[test]
fn without_being_asked_for_nothing_is_shared() {
    let store = Ram::builder().build().unwrap();
    assert!(!store.capabilities().deduplicates && sharing().capabilities().deduplicates);
    for number in 0..3 {
        put_page(&store, number, &page(7)).unwrap();
    }
    assert_eq!(store.stats().stored_bytes, 3 * (4096 + 24));
}

/// What is remembered of pages that are gone is given back.
#[test]
fn what_is_remembered_goes_with_the_pages() {
    let store = sharing();
    let mut held = Vec::new();
    for round in 0..4 {
        let handles: Vec<_> =
            (0..5000).map(|number| put_page(&store, number, &page(round * 5000 + number)).unwrap()).collect();
        store.free(&handles);
        store.maintain(Budget::UNLIMITED);
        held.push(store.stats().memory_bytes);
    }
    assert!(held.iter().all(|bytes| *bytes == held[0]), "{held:?}");
    assert!(held[0] < 100_000, "{held:?}");
}

#[test]
fn an_arena_of_shared_pages_is_not_taken_for_one_that_can_be_read() {
    let store = sharing();
    let file = store.arena_file().try_clone().unwrap();
    put_page(&store, 1, &page(1)).unwrap();
    drop(store);
    assert!(Ram::builder().rebuild(file).is_err());
    assert!(Ram::builder().deduplicate(true).recoverable(true).build().is_err());
}

/// Pages that are equal, put and freed by several threads while everything moves.
#[test]
fn many_threads_share() {
    #[cfg(feature = "ram-zstd")]
    let store = userswap_stores::open("zram?dedup=on&recompress=all:ram:lz4", 4096).unwrap();
    #[cfg(not(feature = "ram-zstd"))]
    let store: Arc<dyn Store> = Arc::new(sharing());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.maintain(Budget::UNLIMITED);
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..100 {
                        let first = (worker * 100 + round) * 1000;
                        let bytes = |number: u64| page(number % 7);
                        let handles: Vec<_> = (first..first + 20)
                            .map(|number| put_page(&**store, number, &bytes(number)).unwrap())
                            .collect();
                        for (number, handle) in (first..).zip(&handles) {
                            there(&**store, number, *handle, &bytes(number));
                        }
                        store.free(&handles);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    store.maintain(Budget::UNLIMITED);
    let stats = store.stats();
    assert_eq!((stats.pages, stats.stored_bytes, stats.bad_frees), (0, 0, 0));
    assert_eq!((stats.puts, stats.frees), (6000, 6000));
}
