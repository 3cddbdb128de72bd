//! The mirrored contract: two interfaces, four methods, one struct.
//!
//! Names, fields, their order and types, and which calls are answered are those of `userspace_swap.mojom`. Everything
//! that was added lives in [`extension`](crate::extension) under interface numbers of its own, so that
//! [`Contract::Strict`] can mean these four methods and nothing else.

/// Which messages a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Contract {
    /// The four mirrored methods alone.
    Strict,
    /// The mirror, and the extensions the client's `Hello` negotiated.
    #[default]
    Extended,
}

/// Names an interface on the wire (the header's interface id).
///
/// In Mojo the id tells apart the interfaces associated with one pipe and is handed out at run time. Here one socket
/// always carries the same few interfaces, so the numbers are fixed: 0 is Mojo's number for a pipe's primary interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceId(pub u32);

impl InterfaceId {
    /// `UserspaceSwapInitialization`, called by the client.
    pub const INITIALIZATION: Self = Self(0);
    /// `UserspaceSwap`, called by the daemon.
    pub const SWAP: Self = Self(1);
    /// Extension calls a client makes; see [`extension`](crate::extension).
    pub const CLIENT_EXTENSION: Self = Self(0x100);
    /// Extension calls the daemon makes.
    pub const DAEMON_EXTENSION: Self = Self(0x101);

    /// Whether the mirrored contract has this interface.
    pub const fn is_mirrored(self) -> bool {
        self.0 == Self::INITIALIZATION.0 || self.0 == Self::SWAP.0
    }
}

/// How a method is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// No answer.
    OneWay,
    /// Answered; the caller may go on meanwhile.
    Answered,
    /// Answered; the caller waits (`[Sync]`).
    Sync,
}

/// One method: where it is found, what it is called, how it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method {
    /// The interface it belongs to.
    pub interface: InterfaceId,
    /// Its number there (the header's name field): its place in the interface's declaration.
    pub ordinal: u32,
    /// Its declared name, for messages to people.
    pub name: &'static str,
    /// How it is called.
    pub kind: CallKind,
}

impl Method {
    const fn new(interface: InterfaceId, ordinal: u32, name: &'static str, kind: CallKind) -> Self {
        Self { interface, ordinal, name, kind }
    }

    /// `UserspaceSwapInitialization.TransferUserfaultFD`
    pub const TRANSFER_USERFAULT_FD: Self =
        Self::new(InterfaceId::INITIALIZATION, 0, "TransferUserfaultFD", CallKind::Sync);
    /// `UserspaceSwap.MovePTEsLeavingMapping`
    pub const MOVE_PTES_LEAVING_MAPPING: Self =
        Self::new(InterfaceId::SWAP, 0, "MovePTEsLeavingMapping", CallKind::OneWay);
    /// `UserspaceSwap.MapArea`
    pub const MAP_AREA: Self = Self::new(InterfaceId::SWAP, 1, "MapArea", CallKind::OneWay);
    /// `UserspaceSwap.GetPartitionAllocSuperPagesUsed`
    pub const GET_PARTITION_ALLOC_SUPER_PAGES_USED: Self =
        Self::new(InterfaceId::SWAP, 2, "GetPartitionAllocSuperPagesUsed", CallKind::Answered);

    /// Extension: `Hello`.
    pub const HELLO: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 0, "Hello", CallKind::Sync);
    /// Extension: `Staging`.
    pub const STAGING: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 1, "Staging", CallKind::Sync);
    /// Extension: `Hint`.
    pub const HINT: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 2, "Hint", CallKind::OneWay);
    /// Extension: `Agent`.
    pub const AGENT: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 3, "Agent", CallKind::Sync);
    /// Extension: `Exclude`.
    pub const EXCLUDE: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 4, "Exclude", CallKind::Answered);
    /// Extension: `Retire`.
    pub const RETIRE: Self = Self::new(InterfaceId::CLIENT_EXTENSION, 5, "Retire", CallKind::Answered);
    /// Extension: `Move`.
    pub const MOVE: Self = Self::new(InterfaceId::DAEMON_EXTENSION, 0, "Move", CallKind::Answered);
    /// Extension: `Drop`.
    pub const DROP: Self = Self::new(InterfaceId::DAEMON_EXTENSION, 1, "Drop", CallKind::Answered);
    /// Extension: `Unshare`.
    pub const UNSHARE: Self = Self::new(InterfaceId::DAEMON_EXTENSION, 2, "Unshare", CallKind::Answered);
}

/// A range of the client's memory, as the wire carries it: nothing about it has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MemoryRegion {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl MemoryRegion {
    /// The range of `length` bytes from `address`.
    pub const fn new(address: u64, length: u64) -> Self {
        Self { address, length }
    }

    /// The address behind the last byte, `None` if there is none that fits.
    pub const fn end(&self) -> Option<u64> {
        self.address.checked_add(self.length)
    }

    /// Whether every byte of `other` lies in this range. A range that wraps contains nothing and lies nowhere.
    pub fn contains(&self, other: &Self) -> bool {
        match (self.end(), other.end()) {
            (Some(end), Some(other_end)) => self.address <= other.address && other_end <= end,
            _ => false,
        }
    }

    /// Whether the two share a byte; touching is not sharing. A range that wraps is taken to reach the top.
    pub fn overlaps(&self, other: &Self) -> bool {
        let end = self.end().unwrap_or(u64::MAX);
        let other_end = other.end().unwrap_or(u64::MAX);
        self.length > 0 && other.length > 0 && self.address < other_end && other.address < end
    }
}

impl std::fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.address, self.length)
    }
}

/// Parameters of `TransferUserfaultFD`: the client's userfaultfd and swap area, or why there is none.
///
/// `H` is what stands for a handle: an owned descriptor between processes, anything in a test of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferUserfaultFd<H> {
    /// The errno of creating the userfaultfd, 0 if it was created.
    pub uffd_error: u64,
    /// The userfaultfd. Declared non-nullable, yet absent when there was an error to report instead: the receiver looks
    /// at the errors first and then insists on it.
    pub uffd_handle: Option<H>,
    /// The errno of mapping the swap area, 0 if it was mapped.
    pub mmap_error: u64,
    /// The swap area; `{0, 0}` with either error.
    pub swap_area: MemoryRegion,
}

/// Parameters of `MovePTEsLeavingMapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovePtesLeavingMapping {
    /// The range whose pages move; its mapping stays.
    pub src: MemoryRegion,
    /// Where they move to, a place in the swap area.
    pub dest: u64,
}

/// Parameters of `MapArea`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapArea {
    /// The part of the swap area to map anew with no access.
    pub area: MemoryRegion,
}

/// Parameters of `GetPartitionAllocSuperPagesUsed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetPartitionAllocSuperPagesUsed {
    /// The most superpages (2 MiB each) the answer may cover; negative for no limit, 0 for an empty answer.
    pub max_superpages: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_compare_without_wrapping() {
        let area = MemoryRegion::new(0x1000, 0x2000);
        assert!(area.contains(&MemoryRegion::new(0x1000, 0x2000)));
        assert!(area.contains(&MemoryRegion::new(0x2000, 0x1000)));
        assert!(!area.contains(&MemoryRegion::new(0x2000, 0x1001)));
        assert!(!area.contains(&MemoryRegion::new(0x2000, u64::MAX)));
        assert!(!MemoryRegion::new(1, u64::MAX).contains(&area));
        assert!(!area.overlaps(&MemoryRegion::new(0, 0x1000)));
        assert!(!area.overlaps(&MemoryRegion::new(0x3000, 0x1000)));
        assert!(area.overlaps(&MemoryRegion::new(0x2fff, 1)));
        assert!(area.overlaps(&MemoryRegion::new(0x2000, u64::MAX)));
    }
}
