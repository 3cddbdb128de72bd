//! Pages that leave as they came aren't written again.

use std::collections::HashMap;

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, StoreError};

use crate::support::{figure, page, settle, troubled, unnamed};

fn key(number: u64, generation: u32) -> PageKey {
    PageKey { owner: OwnerId(1), page: number, generation }
}

fn put(store: &dyn Store, key: PageKey, bytes: &[u8]) -> Result<Handle, StoreError> {
    let mut handles = [None];
    store.put(&[Page { key, bytes }], &mut handles)?;
    Ok(handles[0].unwrap())
}

/// Fetches a page and frees its object, as bringing it back does.
fn take(store: &dyn Store, handle: Handle, key: PageKey) -> Vec<u8> {
    let bytes = fetch_and_wait(store, handle, key).unwrap();
    store.free(&[handle]);
    bytes
}

#[test]
fn a_page_that_leaves_as_it_came_is_not_written_again_and_a_changed_one_is() {
    let store = unnamed("");
    let mut handles: Vec<Handle> =
        (0..600).map(|number| put(&store, key(number, 1), &page(number)).unwrap()).collect();
    settle(&store);
    let written = figure(&store, "written_bytes");
    assert!(written > 0);
    for generation in 2..6 {
        for number in 0..600 {
            let at = usize::try_from(number).unwrap();
            // Half of them stay, so that no segment is free.
            if number % 2 == 0 {
                let bytes = take(&store, handles[at], key(number, generation - 1));
                let old = handles[at];
                handles[at] = put(&store, key(number, generation), &bytes).unwrap();
                let stale = fetch_and_wait(&store, old, key(number, generation));
                assert!(matches!(stale, Err(StoreError::NotFound { .. })), "{stale:?}");
                let older = fetch_and_wait(&store, handles[at], key(number, generation - 1));
                assert!(older.is_err(), "by an older generation");
                let other = fetch_and_wait(&store, handles[at], key(number + 1, generation));
                assert!(other.is_err(), "as another page");
            }
        }
        settle(&store);
    }
    assert_eq!(figure(&store, "unchanged_pages"), 4 * 300);
    assert_eq!(figure(&store, "written_bytes"), written);
    assert_eq!(store.stats().pages, 600);
    let mut bytes = take(&store, handles[0], key(0, 5));
    bytes[4095] ^= 1;
    let handle = put(&store, key(0, 6), &bytes).unwrap();
    assert_eq!(fetch_and_wait(&store, handle, key(0, 6)).unwrap(), bytes);
    assert_eq!(figure(&store, "unchanged_pages"), 4 * 300);
}

#[test]
fn a_page_that_somebody_else_has_still_gets_a_record_of_its_own() {
    let store = unnamed("");
    let shared = put(&store, key(7, 1), &page(7)).unwrap();
    let bytes = fetch_and_wait(&store, shared, key(7, 1)).unwrap();
    let own = put(&store, key(7, 2), &bytes).unwrap();
    assert_eq!((figure(&store, "unchanged_pages"), store.stats().pages), (0, 2));
    store.free(&[shared]);
    assert_eq!(take(&store, own, key(7, 2)), bytes);
    assert_eq!(store.stats().pages, 0);
}

#[test]
fn without_its_key_nothing_lives_again() {
    let (_, store) = troubled("");
    let handle = put(&store, key(7, 1), &page(7)).unwrap();
    let bytes = take(&store, handle, key(7, 1));
    store.forget_key();
    assert!(put(&store, key(7, 2), &bytes).is_err());
}

/// Space is used again, segments are cleaned and given back, while pages come and leave, changed or not, and what a page was is told right each time.
#[test]
fn whatever_becomes_of_their_segments_pages_are_what_they_were() {
    let store = unnamed("&size=4M&compress=off");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut model: HashMap<u64, (Handle, u32, Vec<u8>)> = HashMap::new();
    let mut generation = 0;
    for step in 0..20_000 {
        let number = below(400);
        generation += 1;
        let mut bytes = page(number);
        if let Some((handle, older, expected)) = model.remove(&number) {
            bytes = take(&store, handle, key(number, older));
            assert!(bytes == expected, "step {step}: page {number}");
            if below(2) == 0 {
                bytes[usize::try_from(below(4096)).unwrap()] ^= 1;
            }
        }
        // Some stay with their owner for a while.
        if below(8) > 0 {
            let handle = put(&store, key(number, generation), &bytes).unwrap();
            model.insert(number, (handle, generation, bytes));
        }
        if below(500) == 0 {
            store.maintain(Budget::UNLIMITED);
        }
        assert_eq!(store.stats().pages, model.len() as u64);
    }
    assert!(figure(&store, "unchanged_pages") > 3_000 && figure(&store, "cleaned_bytes") > 0);
    for (number, (handle, generation, expected)) in model {
        assert!(take(&store, handle, key(number, generation)) == expected, "page {number}");
    }
    assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
}
