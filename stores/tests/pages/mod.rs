//! Pages by number.

use userswap_store::{Handle, OwnerId, Page, PageKey, Store, StoreError};

pub(crate) fn key(page: u64) -> PageKey {
    PageKey { owner: OwnerId(3), page, generation: 1 }
}

/// Bytes that don't compress, another page for each number.
pub(crate) fn page(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..512).flat_map(step).collect()
}

/// Bytes that compress well, another page for each number.
#[allow(dead_code, reason = "not every test wants it")]
pub(crate) fn soft(number: u64) -> Vec<u8> {
    format!("page {number} of many. ").into_bytes().into_iter().cycle().take(4096).collect()
}

#[allow(dead_code, reason = "not every test wants it")]
pub(crate) fn put_page(store: &dyn Store, number: u64, bytes: &[u8]) -> Result<Handle, StoreError> {
    let mut handles = [None];
    store.put(&[Page { key: key(number), bytes }], &mut handles)?;
    Ok(handles[0].unwrap())
}

#[allow(dead_code, reason = "not every test wants it")]
pub(crate) fn put(store: &dyn Store, number: u64) -> Result<Handle, StoreError> {
    let mut handles = [None];
    store.put(&[Page { key: key(number), bytes: &page(number) }], &mut handles)?;
    Ok(handles[0].unwrap())
}
