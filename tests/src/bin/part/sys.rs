//! What a part does to itself as a process.

use userswap_tests::pages::Pages;
use userswap_uffd::Mapping;

/// Gives every privilege up and is another user from now on.
pub(crate) fn become_user(id: u32) {
    // SAFETY: needed because the C library has no safe form. No memory is passed; the process has one thread.
    let answers = unsafe { [libc::setgroups(0, std::ptr::null()), libc::setgid(id), libc::setuid(id)] };
    assert_eq!(answers, [0; 3], "{}", std::io::Error::last_os_error());
    // Forgotten with the privileges.
    die_with_parent();
}

/// Has this process killed when the test that started it ends, however that is.
pub(crate) fn die_with_parent() {
    // SAFETY: needed because the C library has no safe form. No memory is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Forks as programs do, runs `child` in the child, and ends the child with what it answers.
///
/// The child has one thread and may hold locks of threads it hasn't: `child` neither allocates nor prints, unless it fails.
pub(crate) fn fork(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: needed because fork copies a process in the middle of what its threads do. The child calls nothing that takes locks.
    forked(unsafe { libc::fork() }, || i32::from(!child()))
}

/// As [`fork`], past the C library. That holds the allocator's locks over the system call, which ends only when the fork has been
/// read of: handlers that live in the forking process and wait for the allocator would never get to that.
pub(crate) fn fork_bare(child: impl FnOnce() -> bool) -> i32 {
    fork_bare_to_say(|| i32::from(!child()))
}

/// As [`fork_bare`], for a child that ends with this status.
pub(crate) fn fork_bare_to_say(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: as in `fork`. The C library in the child believes itself to be its parent, and nobody asks it for anything.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    forked(i32::try_from(pid).unwrap_or(-1), child)
}

fn forked(pid: i32, child: impl FnOnce() -> i32) -> i32 {
    match pid {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: needed to end the child without what the parent has registered for its own end.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

/// Waits for a child. Whether it ended well.
pub(crate) fn reap(pid: i32) -> bool {
    reap_status(pid) == Some(0)
}

/// Waits for a child. The status it ended with, if it wasn't ended.
pub(crate) fn reap_status(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: needed because the C library has no safe form; it writes the one integer given.
    let answer = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(answer, pid, "{}", std::io::Error::last_os_error());
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

/// Reads one byte of standard input, past any buffer. Whether there was one.
pub(crate) fn told() -> bool {
    let mut byte = [0u8; 1];
    // SAFETY: needed where nothing may be locked or allocated; the kernel writes the one byte given.
    unsafe { libc::read(0, byte.as_mut_ptr().cast(), 1) == 1 }
}

/// Prints a line, past any buffer.
pub(crate) fn tell(line: &'static str) {
    // SAFETY: as in `told`; the kernel reads the bytes given.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Whether page *n* of each holds `of(n)`; says nothing, since a forked child may not.
pub(crate) fn all_hold(pages: Pages, of: impl Fn(u64) -> u64) -> bool {
    (0..pages.len()).all(|page| pages.read(page) == Ok(of(page)))
}

/// The pages of a mapping that stays.
pub(crate) fn pages_of(mapping: &Mapping) -> Pages {
    // SAFETY: read-write memory nobody else refers to, mapped as long as the part lives.
    unsafe { Pages::new(mapping.span()) }
}
