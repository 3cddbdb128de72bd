//! The memory of a ram store as a dead worker left it, with some of it changed: whatever is there, a successor says what it found, and what it found can be
//! fetched, or is refused, and can be freed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use userswap_store::testkit::fetch_and_wait;
use userswap_store::{OwnerId, Page, PageKey, Store};
use userswap_stores::ram::Ram;

/// Edits: an offset of four bytes, a length, the bytes. Offsets are taken within the part that is used.
pub(super) const EDITS: &[&[u8]] =
    &[&[0, 0, 0, 0, 4, 1, 2, 3, 4], &[16, 0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 255]];

const PAGE: usize = 4096;
/// Where edits go: the objects of the pages below lie in the first part.
const USED: u32 = 256 << 10;

pub(super) fn rebuild(edits: &[u8]) {
    let Some(arena) = left() else { return };
    let mut rest = edits;
    while let [a, b, c, d, len, behind @ ..] = rest {
        let (bytes, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        rest = behind;
        let at = u32::from_le_bytes([*a, *b, *c, *d]) % USED;
        if arena.write_all_at(bytes, at.into()).is_err() {
            return;
        }
    }
    let Ok((store, found)) = Ram::builder().recoverable(true).rebuild(arena) else { return };
    assert!(found.len() <= 64, "{} objects of 24 pages", found.len());
    for (key, handle) in &found {
        let _ = fetch_and_wait(&store, *handle, *key);
    }
    for (_, handle) in found {
        store.free(&[handle]);
    }
}

/// What a store leaves that had pages put and one of three freed.
fn left() -> Option<File> {
    let store = Ram::builder().recoverable(true).build().ok()?;
    for page in 0..24_u64 {
        let key = PageKey { owner: OwnerId(1), page, generation: 1 };
        let bytes: Vec<u8> =
            (0..PAGE).map(|at| if at as u64 % 97 < page * 3 { (at * 31) as u8 } else { 5 }).collect();
        let mut handle = [None];
        store.put(&[Page { key, bytes: &bytes }], &mut handle).ok()?;
        if let (0, [Some(handle)]) = (page % 3, handle) {
            store.free(&[handle]);
        }
    }
    Some(store.arena_file().as_fd().try_clone_to_owned().ok()?.into())
}
