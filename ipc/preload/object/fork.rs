//! Following forks: the child gets an agent of its own.
//!
//! A vfork's child shares its parent's memory, and the agent with it. A child made by a bare clone gets no agent; the daemon serves
//! its memory by the userfaultfd that the kernel made for it, and moves nothing more of it.

use core::ffi::{c_char, c_int};

use crate::next::set_errno;
use crate::start;
use crate::state::STATE;
use crate::sys::{self, Errno};

/// fork(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fork() -> c_int {
    let Some(next) = STATE.next.fork() else { return missing() };
    // SAFETY: the caller's promise.
    follow(unsafe { next() })
}

/// _Fork(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Fork() -> c_int {
    let Some(next) = STATE.next.bare_fork() else { return missing() };
    // SAFETY: the caller's promise.
    follow(unsafe { next() })
}

/// daemon(3), which forks by itself.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daemon(keep_directory: c_int, keep_files: c_int) -> c_int {
    let Some(next) = STATE.next.daemon() else { return missing() };
    // SAFETY: the caller's promise.
    follow(unsafe { next(keep_directory, keep_files) })
}

/// forkpty(3), which forks by itself.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forkpty(
    primary: *mut c_int,
    name: *mut c_char,
    terminal: *const u8,
    size: *const u8,
) -> c_int {
    let Some(next) = STATE.next.forkpty() else { return missing() };
    // SAFETY: the caller's promise.
    follow(unsafe { next(primary, name, terminal, size) })
}

/// Starts an agent where the answer says that this is a child.
fn follow(answer: c_int) -> c_int {
    if answer == 0 && STATE.is_started() && !STATE.is_retired() && STATE.pid() != sys::getpid() {
        let has_agent = STATE.control().is_some_and(|control| control.agent().is_some());
        if !has_agent {
            start::launch();
        }
    }
    answer
}

fn missing() -> c_int {
    set_errno(Errno::NOSYS.0);
    -1
}
