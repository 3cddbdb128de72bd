//! This process's own mappings: owned ones, and the calls that move, replace and drop memory under a program's feet.

use std::io;
use std::ptr::{self, NonNull};

use bitflags::bitflags;

use crate::span::to_usize;
use crate::{Error, Span};

/// A private anonymous mapping of this process; unmapped when dropped.
///
/// It hands out no slices: what lies in it may be changed by faults, by moves and by other threads.
#[derive(Debug)]
pub struct Mapping {
    span: Span,
}

bitflags! {
    /// What may be done with the memory of a mapping.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Protection: libc::c_int {
        /// Read it.
        const READ = libc::PROT_READ;
        /// Write it.
        const WRITE = libc::PROT_WRITE;
        /// Run it.
        const EXEC = libc::PROT_EXEC;
    }
}

impl Protection {
    /// Nothing at all: address space alone.
    pub const NONE: Protection = Protection::empty();
    /// Read and write.
    pub const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
}

impl Mapping {
    /// `len` bytes (whole pages) wherever the kernel likes.
    pub fn new(len: u64, protection: Protection) -> Result<Mapping, Error> {
        // SAFETY: no MAP_FIXED, nothing is replaced.
        unsafe { map(0, len, protection, 0) }
            .map_err(|e| Error::system("mapping memory", e))
            .and_then(Mapping::at)
    }

    /// `len` bytes at a random page above 4 GiB within 47 bits, over nothing that is mapped.
    ///
    /// `random` gives 64 random bits a call. Only "taken" is tried again, at most 64 times; any other refusal is an error at once.
    pub fn at_random_noreplace(
        len: u64,
        protection: Protection,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<Mapping, Error> {
        const LOWEST: u64 = 1 << 32;
        const HIGHEST: u64 = 1 << 47;
        // Validates the length; the address is as good as any.
        Span::new(LOWEST, len)?;
        let room = HIGHEST.saturating_sub(LOWEST).saturating_sub(len) >> crate::page_shift();
        for _ in 0..64 {
            let at = LOWEST + ((random() % room.max(1)) << crate::page_shift());
            if Span::new(at, len).is_err() {
                continue;
            }
            // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
            match unsafe { map(at, len, protection, libc::MAP_FIXED_NOREPLACE) } {
                // Kernels before 4.17 take the flag for a hint.
                Ok(got) if got.start() != at => drop(Mapping::at(got)?),
                Ok(got) => return Mapping::at(got),
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(e) => return Err(Error::system("mapping a swap area", e)),
            }
        }
        Err(Error::system("mapping a swap area", io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// Where it is.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        let pointer = ptr::with_exposed_provenance_mut(to_usize(self.span.start()));
        // A mapping is never at address 0, see `at`.
        NonNull::new(pointer).unwrap_or(NonNull::dangling())
    }

    /// Leaves the memory mapped for good and says where it is.
    pub fn leak(self) -> Span {
        let span = self.span;
        std::mem::forget(self);
        span
    }

    fn at(span: Span) -> Result<Mapping, Error> {
        if span.start() == 0 {
            return Err(Error::system("mapping memory", io::Error::from_raw_os_error(libc::EFAULT)));
        }
        Ok(Mapping { span })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours since it was mapped, and whoever followed `as_ptr` answers for being done with it.
        let _ = unsafe { unmap(self.span) };
    }
}

/// Moves the pages of `src` to `dst` and leaves `src` mapped, empty, and registered as it was: MovePTEsLeavingMapping.
///
/// Whatever was mapped at `dst`, `src.len()` bytes of it, is replaced. `EFAULT`: the source isn't one mapping. The caller blocks
/// until the event of it was read, if the range is registered for that.
///
/// # Safety
///
/// The contents of `src` vanish from where code may expect them, and whatever was at `dst` is gone: the caller must have the say over both,
/// and must have registered `src`, so that whoever touches it waits for the pages to come back.
pub unsafe fn mremap_dontunmap(src: Span, dst: u64) -> Result<(), Error> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP | libc::MREMAP_FIXED;
    // SAFETY: by the caller's promise nothing relies on either range.
    let got = unsafe { libc::mremap(address(src.start()), src.bytes(), src.bytes(), flags, address(dst)) };
    if got == libc::MAP_FAILED {
        Err(Error::range("moving pages from", src, io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// Replaces `span` by inaccessible address space, freeing what was there: MapArea.
///
/// # Safety
///
/// Whatever was in `span` is gone; nothing may rely on it.
pub unsafe fn map_none_over(span: Span) -> Result<(), Error> {
    // SAFETY: by the caller's promise nothing relies on the range.
    unsafe { replace(span, Protection::NONE) }
}

/// Replaces `span` by fresh zero memory that can be read and written.
///
/// # Safety
///
/// As for [`map_none_over`].
pub unsafe fn map_anonymous_over(span: Span) -> Result<(), Error> {
    // SAFETY: by the caller's promise nothing relies on the range.
    unsafe { replace(span, Protection::READ_WRITE) }
}

/// Unmaps `span`.
///
/// # Safety
///
/// As for [`map_none_over`]; touching it is fatal afterwards.
pub unsafe fn unmap(span: Span) -> Result<(), Error> {
    // SAFETY: by the caller's promise nothing relies on the range.
    let answer = unsafe { libc::munmap(address(span.start()), span.bytes()) };
    if answer == 0 { Ok(()) } else { Err(Error::range("unmapping", span, io::Error::last_os_error())) }
}

/// Changes what may be done with `span`.
///
/// # Safety
///
/// Code that relies on being able to read, write or run what is there must not run into it.
pub unsafe fn protect(span: Span, protection: Protection) -> Result<(), Error> {
    // SAFETY: by the caller's promise.
    let answer = unsafe { libc::mprotect(address(span.start()), span.bytes(), protection.bits()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Error::range("changing the protection of", span, io::Error::last_os_error()))
    }
}

/// What can be told the kernel of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Drop the contents now; they read as zeros, or fault to the handler where registered.
    DontNeed,
    /// Drop the contents when memory is short.
    Free,
    /// A fork's child doesn't get this range.
    DontFork,
    /// It does again.
    DoFork,
    /// A fork's child gets zeros.
    WipeOnFork,
    /// Not in core dumps.
    DontDump,
    /// In core dumps again.
    DoDump,
    /// Make every page present and writable, and exclusively this process's.
    PopulateWrite,
    /// Make every page present and readable.
    PopulateRead,
    /// Swap out, by the kernel.
    PageOut,
    /// First to go when memory is short.
    Cold,
    /// Will be needed soon.
    WillNeed,
    /// Will be gone through from low addresses to high ones.
    Sequential,
    /// No transparent huge pages.
    NoHugePage,
    /// Transparent huge pages, please.
    HugePage,
    /// Make it huge pages now.
    Collapse,
    /// Guard pages: touching is fatal, no mapping is split. Raises no event.
    GuardInstall,
    /// No guard pages any more.
    GuardRemove,
}

impl Advice {
    pub(crate) const fn number(self) -> libc::c_int {
        match self {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Free => libc::MADV_FREE,
            Advice::DontFork => libc::MADV_DONTFORK,
            Advice::DoFork => libc::MADV_DOFORK,
            Advice::WipeOnFork => libc::MADV_WIPEONFORK,
            Advice::DontDump => libc::MADV_DONTDUMP,
            Advice::DoDump => libc::MADV_DODUMP,
            Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
            Advice::PopulateRead => libc::MADV_POPULATE_READ,
            Advice::PageOut => libc::MADV_PAGEOUT,
            Advice::Cold => libc::MADV_COLD,
            Advice::WillNeed => libc::MADV_WILLNEED,
            Advice::Sequential => libc::MADV_SEQUENTIAL,
            Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
            Advice::HugePage => libc::MADV_HUGEPAGE,
            Advice::Collapse => libc::MADV_COLLAPSE,
            Advice::GuardInstall => 102,
            Advice::GuardRemove => 103,
        }
    }
}

/// madvise(2) on this process.
///
/// # Safety
///
/// [`Advice::DontNeed`], [`Advice::Free`] and [`Advice::GuardInstall`] destroy what is in `span`, and [`Advice::DontFork`] and
/// [`Advice::WipeOnFork`] take it from a forked child: nothing may rely on it.
pub unsafe fn madvise(span: Span, advice: Advice) -> Result<(), Error> {
    // SAFETY: by the caller's promise nothing relies on what the advice destroys.
    let answer = unsafe { libc::madvise(address(span.start()), span.bytes(), advice.number()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Error::range("advising the kernel of", span, io::Error::last_os_error()))
    }
}

/// Which pages of `span` are in memory, one element a page in place of what `resident` held: mincore(2).
///
/// `ENOMEM` (as an error): some of it isn't mapped.
pub fn mincore(span: Span, resident: &mut Vec<bool>) -> Result<(), Error> {
    let mut bytes = vec![0u8; to_usize(span.pages())];
    // SAFETY: the kernel writes one byte a page of the span, for which the vector has room, and reads nothing of the span itself.
    let answer = unsafe { libc::mincore(address(span.start()), span.bytes(), bytes.as_mut_ptr()) };
    if answer != 0 {
        return Err(Error::range("asking which pages are in core of", span, io::Error::last_os_error()));
    }
    resident.clear();
    // Only the lowest bit has a meaning.
    resident.extend(bytes.iter().map(|byte| byte & 1 != 0));
    Ok(())
}

/// # Safety
///
/// Nothing may rely on what is in `span`.
unsafe fn replace(span: Span, protection: Protection) -> Result<(), Error> {
    // SAFETY: by the caller's promise.
    unsafe { map(span.start(), span.len(), protection, libc::MAP_FIXED) }
        .map(drop)
        .map_err(|e| Error::range("mapping over", span, e))
}

/// # Safety
///
/// With MAP_FIXED among `flags`, nothing may rely on what is at `at`.
unsafe fn map(at: u64, len: u64, protection: Protection, flags: libc::c_int) -> io::Result<Span> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED a new mapping replaces nothing; with it the caller promised that nothing relies on what was there.
    let got = unsafe { libc::mmap(address(at), to_usize(len), protection.bits(), flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Span::new(got.expose_provenance() as u64, len).map_err(io::Error::other)
}

/// A bare address: the kernel follows it, this code never does.
fn address(value: u64) -> *mut libc::c_void {
    ptr::without_provenance_mut(to_usize(value))
}
