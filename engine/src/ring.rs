//! The ring that messages are read into: memory that outlives the thread, and the process, that read them.
//!
//! A message that was read is told nowhere else. Entries are cleared only once what they say is in the books, so whoever
//! holds the memory (a memfd, which another process may keep) can tell after a crash what was read and not yet applied.

use memmap2::MmapMut;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use userswap_uffd::RawMessage;

/// Messages one read can bring.
pub(crate) const RING_MESSAGES: usize = 128;

const RING_BYTES: usize = RING_MESSAGES * size_of::<RawMessage>();

/// One address space's ring.
pub(crate) struct Ring {
    memory: OwnedFd,
    map: MmapMut,
    /// Entries written by the last read and not cleared yet.
    used: usize,
}

impl Ring {
    /// An empty ring in a memfd of its own.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let memory = rustix::fs::memfd_create("userswap-ring", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, RING_BYTES as u64)?;
        // SAFETY: needed because the file behind a shared mapping could be changed or cut by whoever else has it open. This
        // memfd is ours; a keeper that holds it neither writes nor truncates, and any bytes are valid messages.
        let map = unsafe { MmapMut::map_mut(&memory)? };
        Ok(Self { memory, map, used: 0 })
    }

    /// Room for the next read. Whatever was there is cleared.
    pub(crate) fn room(&mut self) -> &mut [RawMessage] {
        self.clear();
        // SAFETY: needed so that the kernel writes the messages into the shared memory itself. The mapping is page-aligned,
        // RING_BYTES long and borrowed mutably for as long as the slice lives; RawMessage is 32 bytes of which any value is valid.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast::<RawMessage>(), RING_MESSAGES) }
    }

    /// The first `count` entries were written.
    pub(crate) fn filled(&mut self, count: usize) {
        self.used = count.min(RING_MESSAGES);
    }

    /// What they say is in the books.
    pub(crate) fn clear(&mut self) {
        let bytes = self.used * size_of::<RawMessage>();
        self.map[..bytes].fill(0);
        self.used = 0;
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_until_cleared() {
        let mut ring = Ring::new().unwrap();
        ring.room()[0] = RawMessage::from_bytes([7; 32]);
        ring.filled(1);
        assert_eq!(&ring.map[..32], &[7; 32]);
        ring.clear();
        assert_eq!(&ring.map[..32], &[0; 32]);
    }
}
