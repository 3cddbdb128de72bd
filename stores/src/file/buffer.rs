//! Memory that a ring reads into and writes from: aligned for O_DIRECT, and where it is for as long as the kernel may use it.

#![allow(unsafe_code, reason = "tokio-uring's traits for buffers are promises to it")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;
use tokio_uring::buf::{IoBuf, IoBufMut};

use super::book::{Area, Book};

/// What offsets and lengths of I/O are multiples of: enough for every block size in use.
pub(super) const BLOCK: usize = 4096;

/// The next multiple of [`BLOCK`].
pub(super) const fn blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK)
}

/// Bytes of its own pages, zeros at first.
pub(super) struct Buffer {
    bytes: MmapMut,
    /// Where it outlives the process.
    area: Option<Area>,
    /// It was another process's.
    was_left: bool,
}

impl Buffer {
    pub(super) fn new(len: usize) -> std::io::Result<Self> {
        Ok(Self { bytes: MmapMut::map_anon(len)?, area: None, was_left: false })
    }

    /// One of a book's.
    pub(super) fn of_book(book: &Arc<Book>) -> std::io::Result<Self> {
        let (area, bytes) = book.buffer()?;
        Ok(Self { bytes, area: Some(area), was_left: false })
    }

    /// One that a dead process has left.
    pub(super) fn left(area: Area, bytes: MmapMut) -> Self {
        Self { bytes, area: Some(area), was_left: true }
    }

    /// Says of which segment it is, for who comes after this process; and which that was before, if it is being moved.
    pub(super) fn is_of(&self, segment: Option<u32>, before: Option<u32>) {
        if let Some(area) = &self.area {
            area.is_of(segment, before);
        }
    }

    /// Whether the kernel may have to do with its memory for a dead process.
    pub(super) fn was_left(&self) -> bool {
        self.was_left
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

// SAFETY: A ring needs a pointer that stays valid while it owns the value. The bytes are in a mapping of their own that lives as long as the value
// and doesn't move with it; all of them are initialised from the start.
unsafe impl IoBuf for Buffer {
    fn stable_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.bytes.len()
    }

    fn bytes_total(&self) -> usize {
        self.bytes.len()
    }
}

// SAFETY: As above; a buffer has one owner, so nobody else looks at it while the kernel writes to it.
unsafe impl IoBufMut for Buffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {
        // All of it is, always.
    }
}

/// A buffer that doesn't change any more: the ring writes it out while others read it.
#[derive(Clone)]
pub(super) struct Full(pub(super) Arc<Buffer>);

// SAFETY: As for a buffer: the mapping lives as long as any of the references. The kernel only reads it.
unsafe impl IoBuf for Full {
    fn stable_ptr(&self) -> *const u8 {
        self.0.stable_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.bytes_init()
    }

    fn bytes_total(&self) -> usize {
        self.0.bytes_total()
    }
}
