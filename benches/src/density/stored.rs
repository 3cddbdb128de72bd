//! Pages in a store.

use super::Kept;
use crate::error::Error;
use std::sync::Arc;
use userswap_store::{Budget, Fetch, Handle, OwnerId, Page, PageKey, Store, StoreError, Waiter};

/// A store with an image in it, tidied up.
pub(super) struct Stored {
    store: Arc<dyn Store>,
    handles: Vec<Handle>,
}

impl Stored {
    /// The bytes of memory it takes, too: all that the store says.
    pub(super) fn new(spec: &str, pages: &[&[u8]]) -> Result<(Self, u64), Error> {
        let store = userswap_stores::open(spec, super::PAGE)?;
        let failed = |error: StoreError| Error::Input(format!("{spec}: {error}"));
        let mut handles = Vec::with_capacity(pages.len());
        for (at, bytes) in pages.iter().enumerate() {
            let mut handle = [None];
            store.put(&[Page { key: key(at), bytes }], &mut handle).map_err(failed)?;
            handles.extend(handle.into_iter().flatten());
        }
        // Dictionaries are made, and what was put before compressed with them.
        while store.maintain(Budget::bytes(16 << 20)).more {}
        let bytes = store.stats().memory_bytes;
        Ok((Self { store, handles }, bytes))
    }
}

impl Kept for Stored {
    fn read(&mut self, page: usize, out: &mut [u8]) -> Result<(), Error> {
        match self.store.fetch(self.handles[page], key(page), out, &Waiter::none()) {
            Ok(Fetch::Ready) => Ok(()),
            Ok(_) => Err(Error::Input("a store that doesn't answer at once can't be compared here".into())),
            Err(error) => Err(Error::Input(format!("page {page}: {error}"))),
        }
    }
}

fn key(page: usize) -> PageKey {
    PageKey { owner: OwnerId(1), page: page as u64, generation: 1 }
}
