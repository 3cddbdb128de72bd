//! `include/userswap_store.h` in Rust. What each thing means is said there.

use std::ffi::{c_char, c_void};

use crate::{OwnerId, PageKey};

/// The version of the interface.
pub const ABI: u32 = 1;

/// Bytes of room for a sentence, its 0 included.
pub const WHY: usize = 256;

/// What a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Answer {
    /// Done.
    Ok = 0,
    /// No room now.
    Full = 1,
    /// There is no such object.
    NotFound = 2,
    /// The object isn't what was put.
    Damaged = 3,
    /// Failed; again may help.
    Again = 4,
    /// Failed, and would again.
    Failed = 5,
    /// What was behind the store is gone.
    Closed = 6,
    /// An option that makes no sense.
    Refused = 7,
}

impl Answer {
    /// The answer with this number, if there is one.
    pub const fn from_raw(raw: i32) -> Option<Self> {
        Some(match raw {
            0 => Self::Ok,
            1 => Self::Full,
            2 => Self::NotFound,
            3 => Self::Damaged,
            4 => Self::Again,
            5 => Self::Failed,
            6 => Self::Closed,
            7 => Self::Refused,
            _ => return None,
        })
    }
}

/// Bits of [`RawCapabilities::flags`].
pub struct Flags;

impl Flags {
    /// `get` waits for a device or a peer.
    pub const GET_MAY_WAIT: u32 = 1;
    /// Capacity is counted in `device_bytes`.
    pub const ON_DEVICE: u32 = 2;
    /// What is stored can't be read without a key.
    pub const ENCRYPTS: u32 = 4;
    /// `same_filled_pages` is counted.
    pub const COUNTS_SAME_FILLED: u32 = 8;
    /// All that there are.
    pub const ALL: u32 = 15;
}

/// `struct userswap_store_key`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawKey {
    /// Whose page.
    pub owner: u64,
    /// Its number.
    pub page: u64,
    /// Which contents.
    pub generation: u32,
    /// 0.
    pub reserved: u32,
}

impl From<PageKey> for RawKey {
    fn from(key: PageKey) -> Self {
        Self { owner: key.owner.0, page: key.page, generation: key.generation, reserved: 0 }
    }
}

impl From<RawKey> for PageKey {
    fn from(key: RawKey) -> Self {
        Self { owner: OwnerId(key.owner), page: key.page, generation: key.generation }
    }
}

/// `struct userswap_store_config`
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawConfig {
    /// Of this struct.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// Bytes of a page.
    pub page_size: u64,
    /// The most the store may hold; 0: as much as it likes.
    pub capacity: u64,
    /// Text, ended by a 0.
    pub options: *const c_char,
}

/// `struct userswap_store_capabilities`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawCapabilities {
    /// Of this struct.
    pub size: u32,
    /// [`Flags`].
    pub flags: u32,
    /// The most it will hold; 0: no limit.
    pub capacity: u64,
    /// The most pages a batch has; 0: 1024.
    pub max_batch: u64,
}

/// `struct userswap_store_stats`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawStats {
    /// Of this struct.
    pub size: u32,
    /// 0.
    pub reserved: u32,
    /// The objects.
    pub stored_bytes: u64,
    /// All memory for them.
    pub memory_bytes: u64,
    /// What it takes of a file or a device.
    pub device_bytes: u64,
    /// Pages that take no object.
    pub same_filled_pages: u64,
    /// Pages kept as they came.
    pub incompressible_pages: u64,
}

/// `struct userswap_store_maintained`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawMaintained {
    /// Of this struct.
    pub size: u32,
    /// Not 0: there is more to do.
    pub more: u32,
    /// Bytes of objects moved.
    pub moved_bytes: u64,
    /// Bytes of memory given back.
    pub released_bytes: u64,
}

/// `struct userswap_store_plugin`
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(clippy::type_complexity, reason = "they are C's")]
pub struct Table {
    /// [`ABI`].
    pub abi: u32,
    /// Of this struct.
    pub size: u32,
    /// A short name, ended by a 0.
    pub name: *const c_char,
    /// Makes a store.
    pub open: Option<
        unsafe extern "C" fn(*const RawConfig, *mut RawCapabilities, *mut *mut c_void, *mut c_char) -> i32,
    >,
    /// Ends a store.
    pub close: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Stores a page.
    pub put:
        Option<unsafe extern "C" fn(*mut c_void, *const RawKey, *const u8, *mut u64, *mut c_char) -> i32>,
    /// Stores pages, all or none.
    pub put_batch: Option<
        unsafe extern "C" fn(*mut c_void, u64, *const RawKey, *const *const u8, *mut u64, *mut c_char) -> i32,
    >,
    /// Copies a page out.
    pub get:
        Option<unsafe extern "C" fn(*mut c_void, u64, *const RawKey, *mut u8, *mut u64, *mut c_char) -> i32>,
    /// Forgets an object.
    pub remove: Option<unsafe extern "C" fn(*mut c_void, u64)>,
    /// Says what is held.
    pub stats: Option<unsafe extern "C" fn(*mut c_void, *mut RawStats)>,
    /// Works in the background.
    pub maintain: Option<unsafe extern "C" fn(*mut c_void, u64, *mut RawMaintained)>,
}

/// `userswap_store_plugin`, the one symbol.
pub type Entry = unsafe extern "C" fn(u32) -> *const Table;
