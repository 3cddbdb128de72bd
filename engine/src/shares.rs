//! Objects that more than one address space names: what a fork leaves behind.
//!
//! A store's handle has one owner; here the owners beyond the first are counted. Only pages that went through a fork
//! ever come here (they carry a flag), so the table is as large as what is shared, and nobody else pays for it.

use parking_lot::Mutex;
use std::collections::HashMap;
use userswap_store::Handle;

/// How many more address spaces than one name an object.
#[derive(Default)]
pub struct Shares {
    extra: Mutex<HashMap<Handle, u32>>,
}

impl Shares {
    /// One more names it.
    pub fn add(&self, handle: Handle) {
        *self.extra.lock().entry(handle).or_insert(0) += 1;
    }

    /// One lets go of it. Whether that was the last, who must free it.
    pub fn last(&self, handle: Handle) -> bool {
        let mut extra = self.extra.lock();
        match extra.get_mut(&handle) {
            None => true,
            Some(more) => {
                *more -= 1;
                if *more == 0 {
                    extra.remove(&handle);
                }
                false
            }
        }
    }

    /// Objects with more than one name.
    pub fn len(&self) -> usize {
        self.extra.lock().len()
    }

    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_three_frees() {
        let shares = Shares::default();
        shares.add(Handle::MIN);
        shares.add(Handle::MIN);
        assert!(!shares.last(Handle::MIN));
        assert!(!shares.last(Handle::MIN));
        assert!(shares.last(Handle::MIN));
        assert!(shares.is_empty());
    }
}
