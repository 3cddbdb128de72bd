//! What is put comes back, whatever kind of storage it is, and what is dropped is given back.

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Fetch, Page, Store, StoreError, Wanted};
use userswap_stores::file::File;

use crate::support::{Place, assert_page, figure, key, page, post, put, settle, spec, unnamed};

const KINDS: [&str; 4] = ["&compress=off&encrypt=off", "&encrypt=off", "&compress=off", ""];

#[test]
fn what_is_written_is_read_back() {
    for kind in KINDS {
        let store = unnamed(kind);
        let handle = put(&store, 7).unwrap();
        assert_page(&store, handle, 7);
        assert_eq!(store.capabilities().encrypts, !kind.contains("encrypt=off"), "{kind}");
    }
}

/// A thousand pages, most of them compressible to some other length, come back shuffled and are dropped.
#[test]
fn a_thousand_of_all_lengths_come_back_in_any_order() {
    for kind in KINDS {
        let store = unnamed(&format!("{kind}&size=8M"));
        let bytes = |number: u64| {
            let mut bytes = page(number);
            bytes[usize::try_from(number * 4).unwrap()..].fill(0);
            bytes
        };
        let mut handles: Vec<_> = (1..=1000)
            .map(|number| {
                let mut handles = [None];
                store.put(&[Page { key: key(number), bytes: &bytes(number) }], &mut handles).unwrap();
                (number, handles[0].unwrap())
            })
            .collect();
        handles.sort_by_key(|(number, _)| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (number, handle) in &handles {
            let found = fetch_and_wait(&store, *handle, key(*number)).unwrap();
            assert!(found == bytes(*number), "{kind}: page {number}");
        }
        assert!(figure(&store, "reads") > 300, "{kind}: most were read from the file");
        handles.iter().for_each(|(_, handle)| store.free(&[*handle]));
        settle(&store);
        let stats = store.stats();
        assert_eq!((stats.pages, stats.stored_bytes, stats.device_bytes), (0, 0, 0), "{kind}");
        assert_eq!(store.usage().unwrap(), taken_by_nothing(), "{kind}");
    }
}

/// What an empty file takes.
fn taken_by_nothing() -> u64 {
    unnamed("").usage().unwrap()
}

#[test]
fn dropping_128_kib_is_seen_in_the_usage() {
    for kind in KINDS {
        let store = unnamed(&format!("{kind}&size=2M"));
        let handles: Vec<_> = (0..300).map(|number| put(&store, number).unwrap()).collect();
        settle(&store);
        let before = store.usage().unwrap();
        assert!(before >= 1 << 20, "{kind}: {before}");
        // More than that: holes cost a file system a block or two of its own for its list of extents.
        store.free(&handles[..48]);
        settle(&store);
        let after = store.usage().unwrap();
        assert!(after + (128 << 10) <= before, "{kind}: from {before} to {after}");
    }
}

/// A page on the device isn't legible there, unless that was asked for.
#[test]
fn the_file_shows_pages_only_where_it_isnt_encrypted() {
    for kind in ["&compress=off", "&compress=off&encrypt=off"] {
        let place = Place::new();
        let path = place.at("store");
        let store = File::open(&spec(&format!("{path}?size=2M&reserve=0{kind}")), 4096).unwrap();
        let handles: Vec<_> = (0..100).map(|number| put(&store, number).unwrap()).collect();
        settle(&store);
        let bytes = std::fs::read(&path).unwrap();
        let shown = (0..100).any(|number| {
            let part = &page(number)[64..96];
            bytes.windows(part.len()).any(|window| window == part)
        });
        assert_eq!(shown, kind.contains("encrypt=off"), "{kind}");
        handles.iter().zip(0..).for_each(|(handle, number)| assert_page(&store, *handle, number));
        drop(store);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}

/// Neighbours come by one read.
#[test]
fn a_run_is_one_read() {
    let store = unnamed("&size=4M");
    let bytes: Vec<_> = (0..600).map(page).collect();
    let pages: Vec<_> = (0..).zip(&bytes).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
    let mut handles = vec![None; 600];
    store.put(&pages, &mut handles).unwrap();
    settle(&store);
    let wanted: Vec<_> =
        (0..8).map(|at| Wanted { handle: handles[at].unwrap(), key: key(at as u64) }).collect();
    let mut out = vec![0; 8 * 4096];
    let mut results: Vec<Result<Fetch, StoreError>> = (0..8).map(|_| Ok(Fetch::Ready)).collect();
    let (waiter, arrived) = post();
    store.fetch_run(&wanted, &mut out, &mut results, &waiter).unwrap();
    drop(waiter);
    assert!(results.iter().all(|result| matches!(result, Ok(Fetch::Pending))), "{results:?}");
    let mut arrived: Vec<_> = arrived.iter().collect();
    arrived.sort_unstable();
    assert_eq!(arrived, (0..8).map(|at| (at, true)).collect::<Vec<_>>());
    assert_eq!(figure(&store, "reads"), 1);
}

/// Room is used again, again and again, without ever taking more than there is.
#[test]
fn a_small_file_is_written_over_many_times() {
    let store = unnamed("&size=2M&compress=off");
    let mut held = Vec::new();
    for number in 0..3000 {
        held.push((number, put(&store, number).unwrap()));
        if held.len() > 300 {
            // In no order, so that segments have to be cleaned.
            let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let (_, handle) = held.swap_remove(usize::try_from(at).unwrap() % held.len());
            store.free(&[handle]);
        }
        assert!(store.stats().device_bytes <= 2 << 20);
    }
    for (number, handle) in held {
        assert_page(&store, handle, number);
    }
    assert!(figure(&store, "cleaned_bytes") > 0);
}
