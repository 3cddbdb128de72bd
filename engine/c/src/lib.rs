//! `include/userswap.h`: regions of memory that page themselves, for programs in C and C++.
//!
//! Everything here is a few lines over [`PagedRegion`]; the header has the rules. Panics can't happen in answer to arguments, and would end the
//! program, since no unwinding leaves a C function.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fmt::Display;
use std::ptr;
use userswap_engine::{Expected, PagedRegion, Pinned};

/// `userswap_region`.
pub struct Region(PagedRegion);

/// `userswap_pin`.
pub struct Pin {
    _pinned: Pinned<'static>,
}

/// `userswap_usage`.
#[repr(C)]
pub struct Usage {
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Bytes out.
    pub out_bytes: u64,
}

const INLINE: c_uint = 1;

thread_local! {
    static ERROR: RefCell<CString> = RefCell::default();
}

/// Keeps what went wrong for `userswap_error`.
fn failed<T>(answer: T, error: impl Display) -> T {
    let text = error.to_string().replace('\0', " ");
    ERROR.set(CString::new(text).unwrap_or_default());
    answer
}

/// # Safety
/// `store` is NULL or a string that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_new(
    bytes: u64,
    store: *const c_char,
    limit: u64,
    flags: c_uint,
) -> *mut Region {
    if bytes == 0 || store.is_null() || flags & !INLINE != 0 {
        return failed(ptr::null_mut(), "a length, a store and flags that there are, please");
    }
    // SAFETY: needed because it comes from C; by the caller's promise it is a string.
    let Ok(store) = unsafe { CStr::from_ptr(store) }.to_str() else {
        return failed(ptr::null_mut(), "the store's name isn't text");
    };
    let store = match userswap_stores::open(store, userswap_uffd::page_size()) {
        Ok(store) => store,
        Err(error) => return failed(ptr::null_mut(), error),
    };
    let mut builder = PagedRegion::builder(bytes, store);
    if flags & INLINE != 0 {
        builder = builder.inline();
    }
    if limit != 0 {
        builder = builder.limit(limit);
    }
    match builder.build() {
        Ok(region) => Box::into_raw(Box::new(Region(region))),
        Err(error) => failed(ptr::null_mut(), error),
    }
}

/// # Safety
/// `region` is NULL, or from `userswap_region_new` and not freed yet; nobody touches it or has a pin of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_free(region: *mut Region) {
    if !region.is_null() {
        // SAFETY: needed because C has no owners; by the caller's promise this is the last use of what `new` made.
        drop(unsafe { Box::from_raw(region) });
    }
}

/// # Safety
/// `region` is a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_data(region: *const Region) -> *mut c_void {
    // SAFETY: needed because it comes from C; by the caller's promise it is a region.
    unsafe { &*region }.0.as_ptr().cast()
}

/// # Safety
/// `region` is a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_len(region: *const Region) -> usize {
    // SAFETY: as above.
    unsafe { &*region }.0.len()
}

/// # Safety
/// `region` is a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_evict(region: *const Region, offset: usize, len: usize) -> i64 {
    // SAFETY: as above.
    match unsafe { &*region }.0.evict(offset..offset.saturating_add(len)) {
        Ok(moved) => i64::try_from(moved.moved).unwrap_or(i64::MAX),
        Err(error) => failed(-1, error),
    }
}

/// # Safety
/// `region` is a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_bring_in(region: *const Region, offset: usize, len: usize) -> i64 {
    // SAFETY: as above.
    match unsafe { &*region }.0.bring_in(offset..offset.saturating_add(len)) {
        Ok(brought) => i64::try_from(brought).unwrap_or(i64::MAX),
        Err(error) => failed(-1, error),
    }
}

/// # Safety
/// `region` is a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_advise(
    region: *const Region,
    offset: usize,
    len: usize,
    expected: c_int,
) -> c_int {
    let expected = match expected {
        0 => Expected::Unknown,
        1 => Expected::Sequential,
        2 => Expected::Random,
        3 => Expected::WillNeed,
        _ => return failed(-1, "no such advice"),
    };
    // SAFETY: as above.
    match unsafe { &*region }.0.advise(offset..offset.saturating_add(len), expected) {
        Ok(()) => 0,
        Err(error) => failed(-1, error),
    }
}

/// # Safety
/// `region` is a region, of which nobody uses the range meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_discard(region: *const Region, offset: usize, len: usize) -> c_int {
    // SAFETY: as above; that nobody uses the range is what the callee wants, too.
    match unsafe { (*region).0.discard_shared(offset..offset.saturating_add(len)) } {
        Ok(()) => 0,
        Err(error) => failed(-1, error),
    }
}

/// # Safety
/// `region` is a region, and is freed after the pin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_pin(region: *const Region, offset: usize, len: usize) -> *mut Pin {
    // SAFETY: as above; that the region outlives the pin is the caller's promise, since C has no lifetimes.
    let region: &'static Region = unsafe { &*region };
    match region.0.pin(offset..offset.saturating_add(len)) {
        Ok(pinned) => Box::into_raw(Box::new(Pin { _pinned: pinned })),
        Err(error) => failed(ptr::null_mut(), error),
    }
}

/// # Safety
/// `pin` is NULL, or from `userswap_region_pin` and not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_pin_free(pin: *mut Pin) {
    if !pin.is_null() {
        // SAFETY: as in `userswap_region_free`.
        drop(unsafe { Box::from_raw(pin) });
    }
}

/// # Safety
/// `region` is a region, `usage` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn userswap_region_usage(region: *const Region, usage: *mut Usage) {
    // SAFETY: as above.
    let held = unsafe { &*region }.0.usage();
    let answer = Usage { resident_bytes: held.resident_bytes, out_bytes: held.out_bytes };
    // SAFETY: by the caller's promise.
    unsafe { usage.write(answer) };
}

/// What went wrong last in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn userswap_error() -> *const c_char {
    ERROR.with_borrow(|error| error.as_ptr())
}
