//! The one module with unsafe code: what neither the standard library, rustix nor userswap-uffd offers as safe calls.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use userswap_uffd::own::{madvise, map_none_over, mincore, mremap_dontunmap};
use userswap_uffd::{Advice, Error, MoveMode, Outcome, Span, Uffd};

use crate::receiver::Memory;

/// Who connected, as the kernel noted it then.
pub(crate) struct Credentials {
    /// 0: not visible in this pid namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// SO_PEERCRED. Not rustix's: its pid can't be 0, the kernel's can.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let creds: libc::ucred = socket_option(socket, libc::SO_PEERCRED)?;
    Ok(Credentials { pid: creds.pid, uid: creds.uid, gid: creds.gid })
}

/// SO_PEERPIDFD, from Linux 6.5 on: the process that connected, however the pid was used since.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// Not in libc for every target.
    const SO_PEERPIDFD: libc::c_int = 77;
    let fd: RawFd = socket_option(socket, SO_PEERPIDFD)?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket option of a plain C type.
fn socket_option<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut len = size;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `value`.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value.as_mut_ptr().cast(), &mut len)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if len != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the kernel wrote all of it; T is one of the integer structs above, for which any bytes are a value.
    Ok(unsafe { value.assume_init() })
}

/// Runs `spawn` with all signals blocked in this thread, so that a thread made there starts, and stays, with none.
pub(crate) fn with_signals_blocked<R>(spawn: impl FnOnce() -> R) -> io::Result<R> {
    let mut old = MaybeUninit::<libc::sigset_t>::uninit();
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set it is given; pthread_sigmask reads it and initialises `old`.
    let error = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr())
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let result = spawn();
    // SAFETY: `old` was initialised above. Putting back what was there can't fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut()) };
    Ok(result)
}

/// The real [`Memory`]: this process's own.
///
/// Safe functions around calls that take memory from under the program. The program asked for that when it connected; the
/// receiver holds every range against the swap and staging area first; whoever touches what was moved waits for the daemon
/// to bring it back. That the daemon moves nothing it doesn't serve can't be seen from here: it is trusted with the client's
/// memory, as the contract has it.
#[derive(Debug)]
pub(crate) struct OwnMemory {
    uffd: Uffd,
}

impl OwnMemory {
    /// Moves by `uffd`, which this process created and the daemon made the handshake on.
    pub(crate) fn new(uffd: Uffd) -> Self {
        Self { uffd }
    }
}

impl Memory for OwnMemory {
    fn move_ptes(&mut self, src: Span, dest: u64) -> Result<(), Error> {
        // SAFETY: see the type; the destination lies in the swap area, which holds nothing of the program's.
        unsafe { mremap_dontunmap(src, dest) }
    }

    fn map_none(&mut self, area: Span) -> Result<(), Error> {
        // SAFETY: the area lies in the swap area, which holds nothing of the program's.
        unsafe { map_none_over(area) }
    }

    fn dont_need(&mut self, area: Span) -> Result<(), Error> {
        // SAFETY: the area lies in the swap or staging area, which hold nothing of the program's.
        unsafe { madvise(area, Advice::DontNeed) }
    }

    fn uffd_move(&mut self, src: Span, dest: u64) -> Outcome {
        // SAFETY: see the type; the destination lies in the staging area, which holds nothing of the program's.
        unsafe { self.uffd.move_to_empty(dest, src.start(), src.len(), MoveMode::default()) }
    }

    fn in_core(&mut self, area: Span, pages: &mut Vec<bool>) -> Result<(), Error> {
        mincore(area, pages)
    }
}

/// Keeps `area` out of core dumps. Children inherit it: what stands there when the parent exits is read from their copies.
pub(crate) fn keep_out_of_dumps(area: Span) -> Result<(), Error> {
    // SAFETY: the area is this crate's own; no debugger relies on it.
    unsafe { madvise(area, Advice::DontDump) }
}
