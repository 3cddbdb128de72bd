//! `sealed+…`: pages that nobody inside can read or forge.

use std::sync::Arc;

use userswap_store::{
    Budget, Capabilities, Fetch, Handle, Integrity, Maintained, Page, PageKey, Stats, Store, StoreError,
    Waiter, Wanted,
};

use super::guarded::{Guard, Guarded};
use crate::seal::{Number, Seal, TAG};

/// Seals each page for the store inside, with a key that is made for it and kept in locked memory.
///
/// 42 bytes of memory a page: the tag, the number the nonce is made of, the handle inside.
pub struct Sealed(Guarded<Pages>);

impl Sealed {
    /// The layer around this store.
    ///
    /// # Errors
    /// [`Io`](StoreError::Io) if there is no randomness or no memory can be locked for the key.
    pub fn new(inner: Arc<dyn Store>) -> Result<Self, StoreError> {
        Ok(Self(Guarded::new(inner, Pages(Seal::new(true)?))))
    }

    /// Forgets the key: what is inside is unreadable from now on, for everybody, and nothing more can be put.
    pub fn forget_key(&self) {
        self.0.guard().0.forget_key();
    }
}

struct Pages(Seal);

impl Guard for Pages {
    type Mark = (Number, [u8; TAG]);
    const CHANGES: bool = true;

    fn describe(&self, capabilities: &mut Capabilities) {
        capabilities.name = format!("sealed+{}", capabilities.name).into();
        capabilities.integrity = Integrity::Authenticated;
        capabilities.encrypts = true;
        capabilities.detects_same_filled = false;
        capabilities.deduplicates = false;
    }

    fn mark(&self, _: PageKey, _: &[u8]) -> Result<Self::Mark, StoreError> {
        Err(StoreError::Unsupported { what: "sealing a page where it is" })
    }

    fn change(&self, key: PageKey, page: &mut [u8]) -> Result<Self::Mark, StoreError> {
        let number = self.0.next_number();
        Ok((number, self.0.close(key, number, 0, page)?))
    }

    fn restore(&self, key: PageKey, (number, tag): Self::Mark, page: &mut [u8]) -> Result<(), &'static str> {
        self.0.open(key, number, 0, page, &tag)
    }
}

super::forwarded!(Sealed);
