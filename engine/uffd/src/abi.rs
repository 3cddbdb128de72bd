//! What the kernel's headers say and neither `libc` nor the `userfaultfd` crate does: request numbers, argument structures.
//!
//! Everything here mirrors `<linux/userfaultfd.h>` and `<linux/fs.h>`; sizes are asserted at compile time.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct uffdio_api`: the handshake.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Api {
    pub(crate) api: u64,
    pub(crate) features: u64,
    pub(crate) ioctls: u64,
}

/// `struct uffdio_copy` and `struct uffdio_move`, which have the same shape.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) dst: u64,
    pub(crate) src: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    /// Written by the kernel: bytes done or a negative errno.
    pub(crate) result: i64,
}

/// `struct uffdio_zeropage`, `uffdio_continue` and `uffdio_poison`, which have the same shape.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    /// Written by the kernel: bytes done or a negative errno.
    pub(crate) result: i64,
}

/// `struct pm_scan_arg` of PAGEMAP_SCAN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScanArg {
    pub(crate) size: u64,
    pub(crate) flags: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Written by the kernel: where the walk ended.
    pub(crate) walk_end: u64,
    pub(crate) vec: u64,
    pub(crate) vec_len: u64,
    pub(crate) max_pages: u64,
    pub(crate) category_inverted: u64,
    pub(crate) category_mask: u64,
    pub(crate) category_anyof_mask: u64,
    pub(crate) return_mask: u64,
}

/// `struct page_region` of PAGEMAP_SCAN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageRegion {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

pub(crate) const UFFD_API: u64 = 0xAA;
pub(crate) const UFFD_USER_MODE_ONLY: libc::c_int = 1;

/// DONTWAKE is bit 0 of the mode of every operation that has one, except write-protect.
pub(crate) const MODE_DONTWAKE: u64 = 1 << 0;
/// COPY and CONTINUE: the page arrives write-protected.
pub(crate) const MODE_WP: u64 = 1 << 1;
/// MOVE: a hole in the source is skipped and counts as done.
pub(crate) const MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;

pub(crate) const UFFD_NEW: u32 = request(NONE, 0xAA, 0x00, 0);
pub(crate) const UFFD_API_REQUEST: u32 = request(READ_WRITE, 0xAA, 0x3F, size_of::<Api>());
pub(crate) const UFFD_COPY: u32 = request(READ_WRITE, 0xAA, 0x03, size_of::<Transfer>());
pub(crate) const UFFD_ZEROPAGE: u32 = request(READ_WRITE, 0xAA, 0x04, size_of::<Fill>());
pub(crate) const UFFD_MOVE: u32 = request(READ_WRITE, 0xAA, 0x05, size_of::<Transfer>());
pub(crate) const UFFD_CONTINUE: u32 = request(READ_WRITE, 0xAA, 0x07, size_of::<Fill>());
pub(crate) const UFFD_POISON: u32 = request(READ_WRITE, 0xAA, 0x08, size_of::<Fill>());
pub(crate) const PAGEMAP_SCAN: u32 = request(READ_WRITE, b'f', 16, size_of::<ScanArg>());

/// Every ioctl request that this crate makes, for filters of system calls. Those that serve a fault come first: a filter goes through them in order.
pub const REQUESTS: &[u32] = &[
    UFFD_COPY,
    UFFD_ZEROPAGE,
    // WAKE, REGISTER, UNREGISTER and WRITEPROTECT go by way of the crate userfaultfd.
    request(READ, 0xAA, 0x02, 16),
    request(READ_WRITE, 0xAA, 0x00, 32),
    request(READ, 0xAA, 0x01, 16),
    request(READ_WRITE, 0xAA, 0x06, 24),
    UFFD_MOVE,
    PAGEMAP_SCAN,
    UFFD_CONTINUE,
    UFFD_POISON,
    UFFD_NEW,
    UFFD_API_REQUEST,
];

const NONE: u32 = 0;
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

#[expect(clippy::cast_possible_truncation, reason = "sizes here are below 128, and the values are asserted")]
const fn request(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number as u32
}

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(size_of::<Transfer>() == 40);
    assert!(size_of::<Fill>() == 32);
    assert!(size_of::<ScanArg>() == 96);
    assert!(size_of::<PageRegion>() == 24);
    assert!(UFFD_NEW == 0x0000_aa00);
    assert!(UFFD_API_REQUEST == 0xc018_aa3f);
    assert!(UFFD_COPY == 0xc028_aa03);
    assert!(UFFD_ZEROPAGE == 0xc020_aa04);
    assert!(UFFD_MOVE == 0xc028_aa05);
    assert!(UFFD_CONTINUE == 0xc020_aa07);
    assert!(UFFD_POISON == 0xc020_aa08);
    assert!(PAGEMAP_SCAN == 0xc060_6610);
};

/// One ioctl with a structure that the kernel reads and writes; the value it returned.
///
/// # Safety
///
/// `request` must be one whose argument is a `T`, and whatever the request does beyond reading and writing `argument` must be
/// sound for the caller.
pub(crate) unsafe fn ioctl<T>(fd: impl AsFd, request: u32, argument: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the pointer is to a live, exclusively borrowed T, which by the caller's promise is what the request takes.
    let answer =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
