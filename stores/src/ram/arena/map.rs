//! The arena's memory: a memfd, mapped once, handed out as slices by slot. All of the crate's unsafe code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};

use super::Slot;

/// A memfd whose first `head` bytes are read and written as a file and whose rest is mapped.
pub(super) struct Mapping {
    file: File,
    raw: MmapRaw,
    head: u64,
}

impl Mapping {
    /// A new sparse memfd of `head` bytes and `body` mapped bytes, neither of which takes memory until it is written.
    pub(super) fn create(head: u64, body: usize) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create(
            "userswap-arena",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?);
        file.set_len(head.saturating_add(body as u64))?;
        // Nobody can shrink the file under the mapping, so no access to it can raise SIGBUS for that.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::adopt(file, head, body)
    }

    /// Maps a memfd made by [`create`](Self::create).
    pub(super) fn adopt(file: File, head: u64, body: usize) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) || file.metadata()?.len() != head.saturating_add(body as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a sealed arena of this size"));
        }
        let raw = MmapOptions::new().offset(head).len(body).no_reserve_swap().map_raw(&file)?;
        Ok(Self { file, raw, head })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    /// The slot's bytes.
    pub(super) fn bytes<'a>(&'a self, slot: &'a Slot) -> &'a [u8] {
        let (start, len) = self.checked(slot);
        // SAFETY: needed because the pool lends out thousands of disjoint parts of one mapping to several threads at once, which no
        // safe type over a mapping does. Sound because (1) `checked` keeps the range inside the mapping, which lives as long as `self`;
        // (2) all bytes of a shared file mapping are initialised; (3) a `Slot` is neither Clone nor constructible outside `arena`,
        // `Slab::take` gives each place out once until `Slab::give` takes the `Slot` back, so whoever borrows it borrows the only name
        // of those bytes, and the borrow checker keeps `bytes_mut` of the same slot away; (4) the memfd is never handed out writable while the
        // arena lives, except through `Ram::arena_file`, whose contract forbids writing, so nobody else changes the bytes.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(start), len) }
    }

    /// The slot's bytes, to be written.
    pub(super) fn bytes_mut<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        let (start, len) = self.checked(slot);
        // SAFETY: as in `bytes`; the exclusive borrow of the only `Slot` naming these bytes makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr().add(start), len) }
    }

    /// The slot's place in the mapping; empty if it isn't in it, which a slot of this arena always is.
    fn checked(&self, slot: &Slot) -> (usize, usize) {
        let (start, len) = (slot.offset(), slot.len());
        match start.checked_add(len) {
            Some(end) if end <= self.raw.len() => (start, len),
            _ => (0, 0),
        }
    }

    /// Has the kernel fill the range with pages now, in one call; a page that can't be had now faults in later.
    pub(super) fn populate(&self, start: usize, len: usize) {
        // Only an optimisation: older kernels (before 5.14) say EINVAL.
        let _ = self.raw.advise_range(Advice::PopulateWrite, start, len);
    }

    /// Gives the range's memory back to the kernel; it reads as zeros afterwards.
    pub(super) fn punch(&self, start: usize, len: usize) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, self.head + start as u64, len as u64)?)
    }

    /// The first range of body bytes at or after `from` that has memory behind it.
    pub(super) fn next_data(&self, from: usize) -> io::Result<Option<(usize, usize)>> {
        let seek = |position| match rustix::fs::seek(&self.file, position) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        };
        let Some(start) = seek(SeekFrom::Data(self.head + from as u64))? else { return Ok(None) };
        let end = seek(SeekFrom::Hole(start))?.unwrap_or(self.head + self.len() as u64);
        let in_body =
            |position: u64| usize::try_from(position.saturating_sub(self.head)).unwrap_or(self.len());
        Ok(Some((in_body(start), in_body(end))))
    }

    /// Reads from the head.
    pub(super) fn read_head(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Writes to the head.
    pub(super) fn write_head(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}
