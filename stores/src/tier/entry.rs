//! What is kept of a page.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use userswap_store::{Handle, OwnerId, PageKey};

/// Where a page is, and since when: forty bytes.
pub(super) struct Entry {
    pub(super) inside: Handle,
    owner: OwnerId,
    page: u64,
    generation: u32,
    /// Second of the clock when it was put.
    put: u32,
    /// When it was last put, moved or fetched.
    used: AtomicU32,
    pub(super) tier: u8,
    /// It came back soon the last time, and so goes down later.
    pub(super) kept: bool,
    fetched: AtomicBool,
}

impl Entry {
    /// A page that is put now.
    pub(super) fn new(key: PageKey, tier: u8, inside: Handle, kept: bool, now: u32) -> Self {
        let PageKey { owner, page, generation } = key;
        let (used, fetched) = (AtomicU32::new(now), AtomicBool::new(false));
        Self { inside, owner, page, generation, put: now, used, tier, kept, fetched }
    }

    pub(super) fn key(&self) -> PageKey {
        PageKey { owner: self.owner, page: self.page, generation: self.generation }
    }

    /// The same page, moved now.
    pub(super) fn moved(key: PageKey, tier: u8, inside: Handle, put: u32, now: u32) -> Self {
        Self { put, ..Self::new(key, tier, inside, false, now) }
    }

    /// It is being fetched: it is young again.
    pub(super) fn touch(&self, now: u32) {
        self.used.store(now, Ordering::Relaxed);
        self.fetched.store(true, Ordering::Relaxed);
    }

    pub(super) fn put_at(&self) -> u32 {
        self.put
    }

    /// Seconds since it was last put, moved or fetched.
    pub(super) fn unused(&self, now: u32) -> u32 {
        now.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Seconds from its being put to its being fetched, if it was.
    pub(super) fn stay(&self) -> Option<u32> {
        let used = self.used.load(Ordering::Relaxed);
        self.fetched.load(Ordering::Relaxed).then(|| used.saturating_sub(self.put))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_forty_bytes() {
        assert_eq!(size_of::<Option<Entry>>(), 40);
    }
}
