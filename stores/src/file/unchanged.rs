//! Pages that came back and may leave again as they came.
//!
//! A record that was freed stays where it is until its segment is written anew. So it is remembered of each page that is fetched where its record lay, and a hash of the page;
//! when the page is put again and has the same hash, its record lives again, and nothing is compressed, sealed or written.
//!
//! * The hash is POLYVAL under a key of the store's own, which nobody sees the results of: two pages that differ have the same with a chance of 2⁻¹²⁰.
//! * What is compared is the page itself. Whether it was written to could be asked of the kernel only before it is moved out, and a write in between would be missed.
//! * A record is bound to the generation that it was sealed under. Which that was is kept beside the handle it has now.

use std::collections::HashMap;

use parking_lot::Mutex;
use polyval::universal_hash::UniversalHash;
use polyval::{Key, Polyval};
use userswap_store::{Handle, OwnerId, PageKey, StoreError};

use super::log::Trace;
use crate::seal::make_key;

/// What is remembered of pages, and of records that live again.
pub(super) struct Unchanged {
    key: Key,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    came: HashMap<(OwnerId, u64), Came>,
    sealed: HashMap<Handle, Sealed>,
}

/// A page that was fetched.
pub(super) struct Came {
    pub(super) trace: Trace,
    /// Under which its record is sealed.
    pub(super) generation: u32,
    hash: [u8; 16],
}

/// The generation that a record's page has now, and the one it is sealed under.
#[derive(Clone, Copy)]
struct Sealed {
    now: u32,
    then: u32,
}

/// Pages remembered at most. Who has more starts again.
const MOST: usize = 1 << 18;

impl Unchanged {
    pub(super) fn new() -> Result<Self, StoreError> {
        let mut key = Key::default();
        make_key(&mut key)?;
        Ok(Self { key, known: Mutex::default() })
    }

    /// The key that a handle's record was sealed under, of a page that is asked for by `key`. `None` if the handle is another's.
    pub(super) fn sealed_under(&self, handle: Handle, key: PageKey) -> Option<PageKey> {
        match self.known.lock().sealed.get(&handle) {
            None => Some(key),
            Some(sealed) => {
                (sealed.now == key.generation).then_some(PageKey { generation: sealed.then, ..key })
            }
        }
    }

    /// A page was fetched whose record was sealed under `key`.
    pub(super) fn came(&self, key: PageKey, trace: Trace, page: &[u8]) {
        let hash = self.hash(page);
        let mut known = self.known.lock();
        if known.came.len() >= MOST {
            known.came.clear();
        }
        known.came.insert((key.owner, key.page), Came { trace, generation: key.generation, hash });
    }

    /// A page is put: what is known of it, if it is as it came. From now on nothing is.
    pub(super) fn leaves(&self, key: PageKey, page: &[u8]) -> Option<Came> {
        let came = self.known.lock().came.remove(&(key.owner, key.page))?;
        (came.hash == self.hash(page)).then_some(came)
    }

    /// Its record lives again, by this handle and key.
    pub(super) fn lives(&self, handle: Handle, key: PageKey, came: &Came) {
        let sealed = Sealed { now: key.generation, then: came.generation };
        self.known.lock().sealed.insert(handle, sealed);
    }

    /// A dead process has left a page whose record is sealed under another generation than it has.
    pub(super) fn found(&self, handle: Handle, now: u32, then: u32) {
        if now != then {
            self.known.lock().sealed.insert(handle, Sealed { now, then });
        }
    }

    /// Handles that name nothing any more.
    pub(super) fn freed(&self, handles: &[Handle]) {
        let mut known = self.known.lock();
        for handle in handles {
            known.sealed.remove(handle);
        }
    }

    /// Forgets pages whose records are overwritten.
    pub(super) fn forget(&self, is_there: impl Fn(&Trace) -> bool) {
        let mut known = self.known.lock();
        known.came.retain(|_, came| is_there(&came.trace));
        known.came.shrink_to_fit();
        known.sealed.shrink_to_fit();
    }

    /// Memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        let known = self.known.lock();
        let came = known.came.capacity() * (size_of::<(OwnerId, u64)>() + size_of::<Came>() + 1);
        (came + known.sealed.capacity() * (size_of::<Handle>() + size_of::<Sealed>() + 1)) as u64
    }

    fn hash(&self, page: &[u8]) -> [u8; 16] {
        let mut hash = Polyval::new(&self.key);
        hash.update_padded(page);
        hash.finalize().into()
    }
}
