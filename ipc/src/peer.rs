//! Who is at the other end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::sys;
use crate::transport::{Connection, Deadline, TransportError, Wait, poll};

/// The process that connected: its numbers as they were then, and a descriptor that means it and no other.
#[derive(Debug)]
pub struct Peer {
    pid: u32,
    uid: u32,
    gid: u32,
    pidfd: OwnedFd,
}

impl Peer {
    /// Asks the kernel who is at the other end of `connection`.
    ///
    /// Before Linux 6.5 the pidfd is opened by number, which another process may have by then if the first one has exited; that
    /// one would have had to hand its connection to a third.
    ///
    /// # Errors
    /// [`TransportError::Peer`], also when the peer is gone or isn't visible in this pid namespace.
    pub fn of(connection: &Connection) -> Result<Self, TransportError> {
        let socket = connection.as_fd();
        let creds = sys::peer_credentials(socket).map_err(TransportError::Peer)?;
        let hidden =
            || TransportError::Peer(io::Error::other("the peer is not visible in this pid namespace"));
        let number = u32::try_from(creds.pid).map_err(|_| hidden())?;
        let pid = Pid::from_raw(creds.pid).ok_or_else(hidden)?;
        let pidfd = match sys::peer_pidfd(socket) {
            Err(e) if e.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => {
                rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)
            }
            answer => answer,
        };
        Ok(Self { pid: number, uid: creds.uid, gid: creds.gid, pidfd: pidfd.map_err(TransportError::Peer)? })
    }

    /// Who connected to a daemon that is dead, as that had asked: `pidfd` is the one it got.
    pub fn resume(pid: u32, uid: u32, gid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, uid, gid, pidfd }
    }

    /// Its process id here, when it connected.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its user id when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group id when it connected.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The process; readable once it has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has exited.
    pub fn has_exited(&self) -> bool {
        poll(self.pidfd.as_fd(), PollFlags::IN, Deadline::new(Wait::No)).unwrap_or(false)
    }

    /// Kills it.
    ///
    /// # Errors
    /// [`TransportError::System`]; that it has exited is none.
    pub fn kill(&self) -> Result<(), TransportError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(TransportError::system("killing a client")(e)),
        }
    }
}
