//! The integers of the engine, each with a name of its own, and every conversion between them.

use std::fmt;

/// A page's place in its region object, counted in pages from the region's first. It stays the same when the
/// mapping moves to another address, which is why work in flight is keyed by it and never by an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// As an index into a table.
    pub fn at(self) -> usize {
        self.0 as usize
    }

    /// The page `n` pages on.
    pub fn plus(self, n: u32) -> Self {
        Self(self.0 + n)
    }

    /// How many pages lie between `earlier` and this page.
    pub fn since(self, earlier: Self) -> u32 {
        self.0 - earlier.0
    }
}

impl fmt::Debug for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// Names a region object within its address space, for logs and traces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub u32);

/// Names a slot within the address space that uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u32);

/// One page of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotPage {
    /// The slot.
    pub slot: SlotId,
    /// Pages from the slot's start.
    pub offset: u32,
}

impl SlotPage {
    /// Packed for the page table: slot in the upper half, offset in the lower.
    pub fn pack(self) -> u64 {
        (u64::from(self.slot.0) << 32) | u64::from(self.offset)
    }

    /// The inverse of [`pack`](Self::pack).
    #[allow(clippy::cast_possible_truncation)] // the two halves are what is wanted
    pub fn unpack(value: u64) -> Self {
        Self { slot: SlotId((value >> 32) as u32), offset: value as u32 }
    }
}

/// Tells one tenancy of a page from the next: a page that leaves, returns and leaves again has another generation, so
/// work begun for the first can't be mistaken for work on the second. 24 bits, shared by a process and its forked
/// descendants; a clash needs 16 million move-outs between two looks at one page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(u32);

impl Generation {
    /// From a counter, of which the lowest 24 bits are kept.
    pub fn from_count(count: u32) -> Self {
        Self(count & 0x00ff_ffff)
    }

    /// The value, below 2²⁴.
    pub fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_page_survives_packing() {
        let page = SlotPage { slot: SlotId(0xdead_beef), offset: 511 };
        assert_eq!(SlotPage::unpack(page.pack()), page);
    }

    #[test]
    fn generation_keeps_24_bits() {
        assert_eq!(Generation::from_count(0x0100_0001).get(), 1);
    }
}
