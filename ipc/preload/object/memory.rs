//! What the program does to its memory and the kernel doesn't report.

use core::ffi::{c_int, c_void};

use crate::control::Request;
use crate::next::answer;
use crate::state::STATE;
use crate::sys::{self, Errno, PAGE, call, nr};
use crate::wire::Region;

const FOREVER: u32 = 0;
const MOMENT: u32 = 1;

/// madvise(2). What changes the kind of memory a range is, in a way that moved pages would not follow, has the range brought
/// back first and left alone from then on.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int {
    if changes_kind(advice) {
        exclude(at.addr(), len, FOREVER);
    }
    // SAFETY: the caller's promise.
    answer(unsafe { sys::advise(at.expose_provenance(), len, advice as usize) }) as c_int
}

fn changes_kind(advice: c_int) -> bool {
    matches!(
        advice as usize,
        sys::DONTFORK | sys::WIPEONFORK | sys::DONTDUMP | sys::MERGEABLE | sys::GUARD_INSTALL
    )
}

/// mremap(2). It refuses a range of which a part is registered, as if it weren't mapped; so a range that is refused for that is
/// brought back and tried again.
///
/// To a fixed address it may have moved a part of the range, or unmapped what was there, before it refuses the rest: where there is
/// an agent that is tried only with a range that is one mapping. Others are refused, as kernels before 6.17 refuse them all.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    at: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    /// The daemon leaves the range alone for longer than a few tries take.
    const TRIES: u32 = 3;
    let args = [at.expose_provenance(), old_len, new_len, flags as usize, to.expose_provenance(), 0];
    let mut left = TRIES;
    let result = loop {
        // SAFETY: the caller's promise.
        let result = unsafe { remap(args) };
        left -= 1;
        if result != Err(Errno::FAULT) || left == 0 || !exclude(at.addr(), old_len, MOMENT) {
            break result;
        }
    };
    core::ptr::with_exposed_provenance_mut(answer(result) as usize)
}

/// # Safety
/// As the C library's mremap.
unsafe fn remap(args: [usize; 6]) -> Result<usize, Errno> {
    let [at, old_len, _, flags, ..] = args;
    let is_watched = STATE.control().is_some_and(|control| control.agent().is_some());
    if flags & sys::MREMAP_FIXED != 0 && old_len != 0 && is_watched {
        // SAFETY: the same size at the same place: nothing happens, but that several mappings are refused.
        unsafe { call(nr::MREMAP, [at, old_len, old_len, 0, 0, 0]) }?;
    }
    // SAFETY: the caller's promise.
    unsafe { call(nr::MREMAP, args) }
}

/// Has a range brought back and left alone; whether it was. Without an agent nothing was ever moved.
fn exclude(at: usize, len: usize, term: u32) -> bool {
    let Some(control) = STATE.control() else { return false };
    let start = at & !(PAGE - 1);
    let Some(end) = at.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE)) else {
        return false;
    };
    let region = Region { address: start as u64, length: (end - start) as u64 };
    region.is_whole() && control.ask(Request::Exclude(region, term))
}
