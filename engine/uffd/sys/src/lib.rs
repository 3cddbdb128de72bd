//! The part of `<linux/userfaultfd.h>` that the `userfaultfd` crate speaks, written by hand.
//!
//! It stands in for the `userfaultfd-sys` that runs bindgen, so that building needs no libclang. The kernel's
//! binary interface never changes under a name, so every request number and every size is asserted below at compile time: a
//! slip here is a build error and not a wrong ioctl.
#![no_std]
#![allow(non_camel_case_types, non_upper_case_globals, missing_docs)]

/// The ioctl type byte of a userfaultfd.
pub const UFFDIO: u8 = 0xAA;
/// The ioctl type byte of `/dev/userfaultfd`.
pub const USERFAULTFD_IOC: u8 = 0xAA;
/// The one version of the interface there has ever been.
pub const UFFD_API: u64 = 0xAA;
/// Flag of `userfaultfd(2)`: only faults of user code are handled.
pub const UFFD_USER_MODE_ONLY: u32 = 1;

pub const _UFFDIO_REGISTER: u64 = 0x00;
pub const _UFFDIO_UNREGISTER: u64 = 0x01;
pub const _UFFDIO_WAKE: u64 = 0x02;
pub const _UFFDIO_COPY: u64 = 0x03;
pub const _UFFDIO_ZEROPAGE: u64 = 0x04;
pub const _UFFDIO_WRITEPROTECT: u64 = 0x06;
pub const _UFFDIO_CONTINUE: u64 = 0x07;
pub const _UFFDIO_API: u64 = 0x3F;

pub const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub const UFFD_EVENT_FORK: u8 = 0x13;
pub const UFFD_EVENT_REMAP: u8 = 0x14;
pub const UFFD_EVENT_REMOVE: u8 = 0x15;
pub const UFFD_EVENT_UNMAP: u8 = 0x16;

pub const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

pub const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
pub const UFFD_FEATURE_EVENT_REMAP: u64 = 1 << 2;
pub const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub const UFFD_FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
pub const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
pub const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
pub const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;

pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
pub const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_COPY_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_range {
    pub start: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_register {
    pub range: uffdio_range,
    pub mode: u64,
    pub ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_copy {
    pub dst: u64,
    pub src: u64,
    pub len: u64,
    pub mode: u64,
    pub copy: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_zeropage {
    pub range: uffdio_range,
    pub mode: u64,
    pub zeropage: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_writeprotect {
    pub range: uffdio_range,
    pub mode: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_continue {
    pub range: uffdio_range,
    pub mode: u64,
    pub mapped: i64,
}

/// What `read(2)` gives: 32 bytes, packed in the kernel's header.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct uffd_msg {
    pub event: u8,
    pub reserved1: u8,
    pub reserved2: u16,
    pub reserved3: u32,
    pub arg: uffd_msg_arg,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_arg {
    pub pagefault: uffd_msg_pagefault,
    pub fork: uffd_msg_fork,
    pub remap: uffd_msg_remap,
    pub remove: uffd_msg_remove,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_pagefault {
    pub flags: u64,
    pub address: u64,
    pub feat: uffd_msg_feat,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_feat {
    pub ptid: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffd_msg_fork {
    pub ufd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffd_msg_remap {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffd_msg_remove {
    pub start: u64,
    pub end: u64,
}

// Sizes and request numbers, the latter as the header's macros give them on every architecture with the usual ioctl
// encoding: direction << 30 | size << 16 | type << 8 | number.
const _: () = {
    const READ: u32 = 2 << 30;
    const READ_WRITE: u32 = 3 << 30;
    const fn request<T>(direction: u32, number: u64) -> u32 {
        direction | (size_of::<T>() as u32) << 16 | (UFFDIO as u32) << 8 | number as u32
    }
    assert!(request::<uffdio_api>(READ_WRITE, _UFFDIO_API) == 0xc018_aa3f);
    assert!(request::<uffdio_register>(READ_WRITE, _UFFDIO_REGISTER) == 0xc020_aa00);
    assert!(request::<uffdio_range>(READ, _UFFDIO_UNREGISTER) == 0x8010_aa01);
    assert!(request::<uffdio_range>(READ, _UFFDIO_WAKE) == 0x8010_aa02);
    assert!(request::<uffdio_copy>(READ_WRITE, _UFFDIO_COPY) == 0xc028_aa03);
    assert!(request::<uffdio_zeropage>(READ_WRITE, _UFFDIO_ZEROPAGE) == 0xc020_aa04);
    assert!(request::<uffdio_writeprotect>(READ_WRITE, _UFFDIO_WRITEPROTECT) == 0xc018_aa06);
    assert!(request::<uffdio_continue>(READ_WRITE, _UFFDIO_CONTINUE) == 0xc020_aa07);
    assert!(size_of::<uffd_msg>() == 32);
    assert!(align_of::<uffdio_copy>() == 8);
    assert!(core::mem::offset_of!(uffd_msg, arg) == 8);
    assert!(core::mem::offset_of!(uffd_msg_pagefault, feat) == 16);
};
