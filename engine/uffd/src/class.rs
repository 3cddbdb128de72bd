//! The scheduling class of a thread: normal, or idle.
//!
//! A thread in the idle class runs when nothing else wants its CPU. The scheduler counts a CPU that runs only such
//! threads as idle, so a thread woken by one stays on that CPU instead of being sent to another: what a fault handler wants.

use std::io;

use crate::Error;

/// A scheduling class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// SCHED_OTHER.
    Normal,
    /// SCHED_IDLE.
    Idle,
}

/// Puts a thread (`None`: this one) into a class. Leaving the idle class takes CAP_SYS_NICE or RLIMIT_NICE of 20 or more.
///
/// # Errors
/// [`Error::System`] with `EPERM` without that, with `ESRCH` if there is no such thread.
pub fn set_class(thread: Option<u32>, class: Class) -> Result<(), Error> {
    let number = thread.map_or(Ok(0), i32::try_from).map_err(|_| Error::Gone { pid: thread.unwrap_or(0) })?;
    let policy = match class {
        Class::Normal => libc::SCHED_OTHER,
        Class::Idle => libc::SCHED_IDLE,
    };
    // SAFETY: all zeros is a valid value of this plain structure, and priority 0 is what both classes want.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives across the call, which reads it and touches no other memory of ours.
    let answer = unsafe { libc::sched_setscheduler(number, policy, &raw const parameters) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Error::system("changing a thread's class", io::Error::last_os_error()))
    }
}

/// Whether this process may put a thread into the idle class and get it out again. Tried on a thread of its own.
pub fn can_leave_idle() -> bool {
    let tried = std::thread::Builder::new()
        .name("userswap-probe".into())
        .spawn(|| set_class(None, Class::Idle).and_then(|()| set_class(None, Class::Normal)).is_ok());
    tried.ok().and_then(|thread| thread.join().ok()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_privileged_process_goes_there_and_back() {
        if rustix::process::geteuid().is_root() {
            assert!(can_leave_idle());
        } else {
            println!("SKIPPED a_privileged_process_goes_there_and_back: not root");
        }
    }

    #[test]
    fn no_such_thread_is_an_error() {
        assert!(set_class(Some(u32::MAX), Class::Normal).is_err());
    }
}
