//! Names of pages: what a caller calls them, what a store calls them.

use std::fmt;
use std::num::NonZeroU64;

/// What a store calls a stored page: eight bytes, and so is an `Option<Handle>`.
///
/// The value means something to the store that made it, and to nobody else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(NonZeroU64);

impl Handle {
    /// The handle with the smallest raw value, 1.
    pub const MIN: Self = Self(NonZeroU64::MIN);

    /// The handle with this raw value, or `None` for 0.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match NonZeroU64::new(raw) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The raw value, never 0. [`Handle::from_raw`] of it is this handle.
    pub const fn into_raw(self) -> u64 {
        self.0.get()
    }
}

impl From<NonZeroU64> for Handle {
    fn from(raw: NonZeroU64) -> Self {
        Self(raw)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:#x})", self.0)
    }
}

/// Whose page it is: an address space, or an object shared by several.
///
/// Callers never give one number to two owners during the life of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The identity a page's bytes are bound to: a store that seals pages authenticates it, one that survives its process
/// finds pages by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// Whose page.
    pub owner: OwnerId,
    /// The page's number (address ÷ page size, or offset in an object ÷ page size): below 2⁴⁴.
    pub page: u64,
    /// Which contents of that page: callers count it up each time the page is put, so of two stored pages that differ only
    /// here the larger (in wrapping order) is the newer.
    pub generation: u32,
}

impl PageKey {
    /// Page numbers are below this: 56 bits of address in 4 KiB pages, all a five-level page table gives a program.
    pub const PAGE_LIMIT: u64 = 1 << 44;
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x} of owner {} (generation {})", self.page, self.owner, self.generation)
    }
}

/// A page on its way in.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Its identity.
    pub key: PageKey,
    /// Its contents, [`page_size`](crate::Capabilities::page_size) bytes.
    pub bytes: &'a [u8],
}

/// A page on its way out, in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What the store calls it.
    pub handle: Handle,
    /// The identity it was put under.
    pub key: PageKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_handle_is_eight_bytes() {
        assert_eq!(size_of::<Option<Handle>>(), 8);
    }

    #[test]
    fn raw_values_round_trip_and_zero_is_no_handle() {
        for raw in [1, 0x1234, u64::MAX] {
            assert_eq!(Handle::from_raw(raw).map(Handle::into_raw), Some(raw));
        }
        assert_eq!(Handle::from_raw(0), None);
        assert_eq!(Handle::from_raw(1), Some(Handle::MIN));
    }
}
