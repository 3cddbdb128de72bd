//! Processes that share a file table: what one of them opens, or is handed by the kernel, outlives it.

use crate::Error;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Which of the two one is, after [`fork_sharing_files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The process that called; the other one's number.
    Parent(u32),
    /// The new process.
    Child,
}

/// As fork(2), but that both have the same file table from then on: a descriptor opened by one is the other's, too, and is closed only when one of them
/// closes it, not when one of them dies. Execution of another program ends that.
///
/// The child gets SIGTERM when the parent ends.
///
/// # Errors
/// [`Error::System`].
///
/// # Safety
/// * This process has one thread, and no more than one when it is called again.
/// * Values that own a descriptor exist twice afterwards, and for each one process at most may drop it, or the number may be another's by then.
pub unsafe fn fork_sharing_files() -> Result<Forked, Error> {
    // Where the C library keeps the thread's number. It writes the child's own there when it forks; called directly, the kernel has to.
    let mut number: *mut libc::c_int = ptr::null_mut();
    // SAFETY: the kernel writes a pointer to where it is told to. Without the call, which not every kernel has, it stays null.
    let known = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &mut number) } == 0 && !number.is_null();
    let mut flags = libc::CLONE_FILES | libc::SIGCHLD;
    if known {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    // SAFETY: needed because no library's fork shares the file table. Without CLONE_VM the child goes on on a copy of this very stack, as after fork;
    // the caller vouches for the rest.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, number, 0usize) };
    match u32::try_from(child) {
        Err(_) => Err(Error::system("starting a process that shares its files", io::Error::last_os_error())),
        Ok(0) => {
            // SAFETY: takes an integer and changes nothing but what this process is told.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            Ok(Forked::Child)
        }
        Ok(pid) => Ok(Forked::Parent(pid)),
    }
}

/// prctl's, not in libc for every target.
const PR_GET_TID_ADDRESS: libc::c_int = 40;

/// The numbers of this process's open descriptors.
///
/// # Errors
/// When they can't be listed.
pub fn descriptors() -> Result<Vec<RawFd>, Error> {
    let failed = |e: io::Error| Error::system("listing open descriptors", e);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    // One of them was the listing's own.
    numbers.retain(|number| is_open(*number));
    Ok(numbers)
}

/// Whether the number is that of an open descriptor.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: asks about a number, whatever it is.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

/// Closes every descriptor but those in `kept`: what a dead process had open that shared this file table.
///
/// # Errors
/// When they can't be listed.
///
/// # Safety
/// No value of this process owns one that isn't in `kept`.
pub unsafe fn close_all_but(kept: &[RawFd]) -> Result<usize, Error> {
    let mut closed = 0;
    for number in descriptors()? {
        if !kept.contains(&number) {
            // SAFETY: nobody owns it, by the caller's promise.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
            closed += 1;
        }
    }
    Ok(closed)
}

/// Has this process execute another program, which gets every descriptor that is open; signals that are blocked stay so. Returns only if it can't be.
///
/// # Errors
/// Why not. Descriptors are closed on execution again then, all but the first three.
///
/// # Safety
/// This process has one thread, and shares its file table with no other.
pub unsafe fn become_program(program: &CStr, arguments: &[CString], environment: &[CString]) -> Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    if let Err(error) = set_close_on_exec(false) {
        return error;
    }
    // SAFETY: needed because the standard library's exec lets signals in before. Both lists end with a null pointer and live until the call returns, as do the
    // strings they point to.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    let error = Error::system("executing another program", io::Error::last_os_error());
    match set_close_on_exec(true) {
        Ok(()) => error,
        Err(error) => error,
    }
}

/// Says of every descriptor but the first three whether it is closed when another program is executed.
///
/// # Errors
/// When they can't be listed.
pub fn set_close_on_exec(yes: bool) -> Result<(), Error> {
    for number in descriptors()? {
        if number > 2 {
            // SAFETY: changes a flag of a descriptor, which nothing here relies on.
            unsafe { libc::fcntl(number, libc::F_SETFD, if yes { libc::FD_CLOEXEC } else { 0 }) };
        }
    }
    Ok(())
}

/// Takes a descriptor over that a dead process had open. `None` if there is none of this number.
///
/// # Safety
/// No value of this process owns it, and it is taken once.
pub unsafe fn take_over(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is open and nobody else's, by the caller's promise.
    is_open(number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Puts descriptors under other numbers, all at once: each pair is the number it has, and the one it is to have.
///
/// # Errors
/// When a number is in use, twice in the list, or higher than this process may have. Nothing is lost then, but numbers may be other ones.
///
/// # Safety
/// No value of this process owns any of them.
pub unsafe fn renumber(pairs: &[(RawFd, RawFd)]) -> Result<(), Error> {
    let failed = |e: io::Error| Error::system("putting a descriptor under its number", e);
    let above = pairs.iter().map(|(from, to)| *from.max(to)).max().unwrap_or(0) + 1;
    let mut aside = Vec::with_capacity(pairs.len());
    for (from, to) in pairs {
        // SAFETY: makes a new number for what is open; the old one is nobody's, by the caller's promise.
        let number = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, above) };
        if number == -1 {
            return Err(failed(io::Error::last_os_error()));
        }
        aside.push((number, *to));
    }
    for (from, _) in pairs {
        // SAFETY: as above.
        unsafe { libc::close(*from) };
    }
    for (number, to) in aside {
        if is_open(to) {
            return Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        // SAFETY: the target isn't open, so nothing is closed by it; the number aside is this function's own.
        let put = unsafe { libc::dup3(number, to, libc::O_CLOEXEC) };
        if put == -1 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: as above.
        unsafe { libc::close(number) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn descriptors_change_places() {
        let file = |name: &str| std::fs::File::open(name).unwrap();
        // Numbers that no other test comes upon.
        let high = |file: std::fs::File, number: RawFd| {
            // SAFETY: a number far above those in use.
            let moved = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
            assert_eq!(moved, number);
        };
        high(file("/dev/null"), 700);
        high(file("/dev/zero"), 701);
        // SAFETY: nobody owns these.
        unsafe { renumber(&[(700, 701), (701, 705)]) }.unwrap();
        let name = |number: RawFd| std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        assert_eq!((name(701), name(705), is_open(700)), ("/dev/null".into(), "/dev/zero".into(), false));
        // SAFETY: as above.
        unsafe { renumber(&[(705, 701)]) }.unwrap_err();
        // SAFETY: as above; taken once.
        let left = unsafe { take_over(701) }.unwrap().into_raw_fd();
        // SAFETY: as above.
        drop(unsafe { OwnedFd::from_raw_fd(left) });
    }
}
