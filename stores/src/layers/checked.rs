//! `checked+…`: a checksum over key and bytes.

use std::sync::Arc;

use userswap_store::{
    Budget, Capabilities, Fetch, Handle, Integrity, Maintained, Page, PageKey, Stats, Store, StoreError,
    Waiter, Wanted,
};

use super::guarded::{Guard, Guarded};

/// Finds out when a store gives other bytes than it was given: [`Corrupt`](StoreError::Corrupt) instead of them.
///
/// 18 bytes of memory a page.
pub struct Checked(Guarded<Sums>);

impl Checked {
    /// The layer around this store.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self(Guarded::new(inner, Sums))
    }
}

struct Sums;

impl Guard for Sums {
    type Mark = u32;
    const CHANGES: bool = false;

    fn describe(&self, capabilities: &mut Capabilities) {
        capabilities.name = format!("checked+{}", capabilities.name).into();
        capabilities.integrity = capabilities.integrity.max(Integrity::Checksum);
    }

    fn mark(&self, key: PageKey, page: &[u8]) -> Result<u32, StoreError> {
        Ok(sum(key, page))
    }

    fn change(&self, key: PageKey, page: &mut [u8]) -> Result<u32, StoreError> {
        Ok(sum(key, page))
    }

    fn restore(&self, key: PageKey, mark: u32, page: &mut [u8]) -> Result<(), &'static str> {
        if sum(key, page) == mark { Ok(()) } else { Err("checksum") }
    }
}

/// Thirty-two bits of key and page. Any change of up to eight neighbouring bytes changes the sum before its halves are folded.
#[allow(clippy::cast_possible_truncation, reason = "the halves are folded")]
pub(crate) fn sum(key: PageKey, page: &[u8]) -> u32 {
    /// A step is invertible in either argument.
    fn step(sum: u64, word: u64) -> u64 {
        (sum.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    let (words, rest) = page.as_chunks::<8>();
    // Two lanes, so that multiplications overlap.
    let mut lanes = [step(key.owner.0, key.page), step(u64::from(key.generation), page.len() as u64)];
    let (pairs, last) = words.as_chunks::<2>();
    for [even, odd] in pairs {
        lanes[0] = step(lanes[0], u64::from_le_bytes(*even));
        lanes[1] = step(lanes[1], u64::from_le_bytes(*odd));
    }
    for word in last {
        lanes[0] = step(lanes[0], u64::from_le_bytes(*word));
    }
    for byte in rest {
        lanes[1] = step(lanes[1], u64::from(*byte));
    }
    let sum = step(step(lanes[0], lanes[1] >> 29), lanes[1]);
    (sum ^ sum >> 32) as u32
}

super::forwarded!(Checked);

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_store::OwnerId;

    #[test]
    fn sums_differ_where_keys_or_bytes_do() {
        let key = PageKey { owner: OwnerId(1), page: 2, generation: 3 };
        let page = [7_u8; 4099];
        let right = sum(key, &page);
        for other in [
            PageKey { owner: OwnerId(2), ..key },
            PageKey { page: 3, ..key },
            PageKey { generation: 4, ..key },
        ] {
            assert_ne!(sum(other, &page), right);
        }
        for at in 0..page.len() {
            for bit in [0, 7] {
                let mut flipped = page;
                flipped[at] ^= 1 << bit;
                assert_ne!(sum(key, &flipped), right, "bit {bit} of byte {at}");
            }
        }
        assert_ne!(sum(key, &page[..4098]), right);
    }
}
