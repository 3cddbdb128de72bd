//! What laws do to a store, and what they say when it goes wrong.

use super::{Verdict, fetch_and_wait};
use crate::{Budget, Handle, OwnerId, Page, PageKey, Store, StoreError};

/// In what way a law is broken, if it is.
pub(super) type Outcome = Result<(), String>;

pub(super) fn verdict(outcome: Outcome) -> Verdict {
    outcome.map_or_else(Verdict::Broken, |()| Verdict::Kept)
}

pub(super) fn key(page: u64) -> PageKey {
    PageKey { owner: OwnerId(1), page, generation: 1 }
}

pub(super) fn put_one(store: &dyn Store, key: PageKey, bytes: &[u8]) -> Result<Handle, StoreError> {
    let mut handle = [None];
    store.put(&[Page { key, bytes }], &mut handle)?;
    handle[0].ok_or(StoreError::Unsupported { what: "giving a handle for a page it took" })
}

pub(super) fn put_all(store: &dyn Store, pages: &[Page<'_>]) -> Result<Vec<Handle>, StoreError> {
    let mut handles = vec![None; pages.len()];
    store.put(pages, &mut handles)?;
    let all: Option<Vec<_>> = handles.into_iter().collect();
    all.ok_or(StoreError::Unsupported { what: "giving a handle for each page it took" })
}

pub(super) fn expect_page(store: &dyn Store, handle: Handle, key: PageKey, bytes: &[u8]) -> Outcome {
    let found = fetch_and_wait(store, handle, key).map_err(|error| error.to_string())?;
    let mut in_handler = vec![0xa5; found.len()];
    match store.fetch_in_handler(handle, key, &mut in_handler) {
        Some(Ok(())) if in_handler != found => return Err("in a handler it is another page".into()),
        Some(Err(error)) => return Err(format!("in a handler: {error}")),
        Some(Ok(())) | None => {}
    }
    match found.iter().zip(bytes).position(|(found, put)| found != put) {
        Some(at) => Err(format!("byte {at} is {:#x} and was put as {:#x}", found[at], bytes[at])),
        None => Ok(()),
    }
}

/// Pages, raw bytes, stored bytes.
pub(super) fn gauges(store: &dyn Store) -> [u64; 3] {
    let stats = store.stats();
    [stats.pages, stats.raw_bytes, stats.stored_bytes]
}

/// Has the store do all its background work.
pub(super) fn settle(store: &dyn Store) -> Outcome {
    for _ in 0..1000 {
        if !store.maintain(Budget::UNLIMITED).more {
            return Ok(());
        }
    }
    Err("after a thousand calls there is still work to maintain".into())
}
