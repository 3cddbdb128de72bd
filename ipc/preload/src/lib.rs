//! The client end of userswap for programs that know nothing of it: a shared object that is loaded beside the program, carried
//! here as bytes.
//!
//! The object is a crate of its own without standard library, dependencies, allocation or thread-local storage. It names no other
//! library, not even the C library: what it takes from the program's is looked up by weak references. This crate's
//! build script compiles it with the Rust compiler at hand and puts it in [`SHARED_OBJECT`].
//!
//! # Use
//!
//! Write [`SHARED_OBJECT`] to a file that the program and its descendants can read, and start the program with two variables:
//!
//! | variable | value |
//! |---|---|
//! | `LD_PRELOAD` | the file's path, absolute |
//! | `USERSWAP_SOCKET` | `[FILTERS[+PATIENCE]:]ADDRESS`: where the daemon listens, a SOCK_SEQPACKET socket; `@NAME` is an abstract address, which a program keeps reaching after chroot(2), anything else a path |
//!
//! `FILTERS` is how many seccomp filters the starter itself runs under, 0 if not given; [`socket_value`] looks. A program that finds
//! more was restricted by somebody in between, who doesn't know of the agent, and stays out. `PATIENCE` is how many seconds a program
//! may wait for memory once the daemon's process has ended, 60 if not given, 0 for ever; then it is ended, with a line on standard error.
//!
//! Without `USERSWAP_SOCKET` the object does nothing.
//!
//! # What it does in a program
//!
//! - Its constructor starts one thread, the *agent*, and takes no part of the program's time otherwise. The agent waits 20 ms, so that
//!   processes that don't live longer cost the daemon nothing, then connects. It speaks the extended contract with
//!   `Agent` (see `userswap_ipc::extension`): passes a userfaultfd to the daemon, moves what it is ordered to by UFFDIO_MOVE, and keeps
//!   the userfaultfd as long as the process lives: if the daemon dies, whoever touches moved memory waits and nobody
//!   reads zeros. After so many seconds the process is ended, if one of its threads waits for memory, or as soon as one does.
//! - The agent has all signals blocked, no thread-local storage, no capabilities once it is set up, and a file table of its own: the
//!   program neither sees nor closes what is ours. It is called `userswap`. Its memory is named to the daemon as never to be
//!   moved.
//! - fork, _Fork, daemon, forkpty: the child gets an agent of its own. vfork and posix_spawn share the parent's memory and need none.
//!   The child of a bare clone(2) gets none; its memory is served, and nothing more of it moved.
//! - execve and its family, posix_spawn: the two variables are put back where a program has cleared them. They are taken away where
//!   the new program couldn't load the object (it isn't there after a chroot) or must not (a seccomp filter was set).
//! - madvise with DONTFORK, WIPEONFORK, DONTDUMP, MERGEABLE, GUARD_INSTALL: the range is brought back first and left alone from then on.
//! - mremap of a range that is several mappings only because a part of it is registered, which the kernel refuses, at times with some
//!   of it moved already: it goes piece by piece.
//! - pthread_create, thrd_create: the thread is entered in a table first, and the pages of its control block aren't moved, for
//!   the kernel writes there when the thread is too far gone to be served: the join would be lost.
//! - prctl(PR_SET_SECCOMP), seccomp, setns, unshare of what needs a process of one thread (a user namespace): everything is
//!   brought back and the agent ends, before the call is made. The same through syscall(2).
//! - syscall(SYS_exit) of the program's last thread ends the process, which the agent would keep alive.
//!
//! Whatever fails leaves the program to itself: it runs unmanaged, and the daemon has nobody connected.
//!
//! # Limits
//!
//! - Programs that must have one thread. The agent is one more, which a program sees in `/proc/self/task`, in its limit of
//!   processes, and where the kernel demands a single thread of calls that aren't in the list above.
//! - A program whose only thread ends by exit(2), made neither through the C library nor as exit_group(2), leaves its agent behind.
//! - Static programs don't load it. Set-user-ID programs don't either: the loader ignores the variable there, and they run as always.
//! - Of a program of another architecture (32-bit) the loader says that the object can't be preloaded, and goes on.
//! - What a C library does inside itself is not seen: realloc's mremap (it falls back to copying), the guard pages of thread
//!   stacks, system(3) and popen(3) of a program that has cleared its environment, calls made without the C library's `syscall`.
//! - A thread that ends while it holds a robust mutex in private memory that is out: the kernel doesn't mark the mutex. Robust mutexes
//!   in shared memory, which is where they are of use, are never moved.
//! - In another network namespace an abstract address isn't reached: forked children there are served by the userfaultfd that the
//!   kernel made for them, programs executed there run unmanaged.
//! - A thread of the program that changes its user or group changes it for the threads the C library knows. The agent keeps the
//!   user it was started under, without capabilities.
//! - x86-64 Linux from 5.11 on; to move anything, UFFDIO_MOVE: 6.8.

/// The shared object's bytes, an ELF file; `None` where it can't be built: on anything but Linux on x86-64.
#[cfg(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64"))]
pub const SHARED_OBJECT: Option<&[u8]> =
    Some(include_bytes!(concat!(env!("OUT_DIR"), "/libuserswap_preload.so")));

/// The shared object's bytes, an ELF file; `None` where it can't be built: on anything but Linux on x86-64.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64")))]
pub const SHARED_OBJECT: Option<&[u8]> = None;

/// The value of [`SOCKET_VARIABLE`] for programs started by this process: the address, behind the number of seccomp filters
/// that this process runs under and its programs therefore may.
#[must_use]
pub fn socket_value(address: &str) -> String {
    format!("{}:{address}", filters())
}

/// The same where programs may wait so long once the daemon's process has ended.
#[must_use]
pub fn socket_value_with(address: &std::ffi::OsStr, patience: std::time::Duration) -> std::ffi::OsString {
    let mut value = std::ffi::OsString::from(format!("{}+{}:", filters(), patience.as_secs()));
    value.push(address);
    value
}

/// How many seccomp filters this process is under. Without /proc it can't be told; programs can't tell either, then.
fn filters() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The variable that names the daemon's socket.
pub const SOCKET_VARIABLE: &str = "USERSWAP_SOCKET";

/// The variable that gets the object loaded.
pub const PRELOAD_VARIABLE: &str = "LD_PRELOAD";
