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

pub(crate) fn put(store: &dyn Store, number: u64) -> Result<Handle, StoreError> {
    let mut handles = [None];
    store.put(&[Page { key: key(number), bytes: &page(number) }], &mut handles)?;
    Ok(handles[0].unwrap())
}
