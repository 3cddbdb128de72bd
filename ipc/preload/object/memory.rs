//! What the program does to its memory and the kernel doesn't report.

use core::ffi::{c_int, c_void};

use crate::control::Request;
use crate::next::answer;
use crate::state::STATE;
use crate::sys::{self, PAGE};
use crate::wire::Region;

/// madvise(2). What changes the kind of memory a range is, in a way that moved pages would not follow, has the range brought
/// back first and left alone from then on.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int {
    if changes_kind(advice) {
        exclude(at.addr(), len);
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

/// Has a range brought back and left alone. Without an agent nothing was ever moved.
fn exclude(at: usize, len: usize) {
    let Some(control) = STATE.control() else { return };
    let start = at & !(PAGE - 1);
    let Some(end) = at.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE)) else { return };
    let region = Region { address: start as u64, length: (end - start) as u64 };
    if region.is_whole() {
        control.ask(Request::Exclude(region));
    }
}
