//! What is said to the service manager that started this program, by the protocol of sd_notify(3), and what it is given to keep.
//!
//! Nothing is ever waited for: who doesn't read isn't told.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: OwnedFd,
    address: SocketAddrUnix,
    /// How many descriptors it keeps, if it says so.
    keeps: Option<usize>,
    /// The process that started it.
    process: u32,
}

impl Notifier {
    /// To who is named by `NOTIFY_SOCKET`, if that is set.
    ///
    /// # Errors
    /// When it names nothing that can be sent to.
    pub fn of_environment() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            [b'/', ..] => SocketAddrUnix::new(name.as_bytes())?,
            _ => return Err(io::Error::other("NOTIFY_SOCKET is neither a path nor an abstract address")),
        };
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let keeps = std::env::var("FDSTORE").ok().and_then(|count| count.parse().ok());
        Ok(Some(Self { socket, address, keeps, process: std::process::id() }))
    }

    /// Clients may come.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Whether this process is a worker whose keeper is gone, while what both had is kept for the next.
    pub fn is_left_to_the_next(&self) -> bool {
        if self.keeps() == 0 || std::process::id() == self.process {
            return false;
        }
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        u32::try_from(parent) != Ok(self.process)
    }

    /// How many descriptors are sure to be kept. Managers that don't say how many they keep (systemd before 254) may keep none.
    pub(super) fn keeps(&self) -> usize {
        self.keeps.unwrap_or(0)
    }

    /// Whether it may be of use to give it something to keep.
    pub(super) fn may_keep(&self) -> bool {
        self.keeps != Some(0)
    }

    /// Gives it a descriptor to keep under a name. It isn't looked at: not even at whether it is at its end.
    pub(super) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(descriptor))
    }

    /// Has it keep what has this name no longer.
    pub(super) fn forget(&self, name: &str) -> Result<(), Errno> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn say(&self, text: &str) {
        if let Err(error) = self.send(text, None) {
            tracing::warn!(%error, text, "the service manager could not be told");
        }
    }

    fn send(&self, text: &str, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let text = [IoSlice::new(text.as_bytes())];
        loop {
            match rustix::net::sendmsg_addr(&self.socket, &self.address, &text, &mut control, flags) {
                Err(Errno::INTR) => {}
                answer => return answer.map(|_| ()),
            }
        }
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
