//! One message a packet: Unix sockets of type SOCK_SEQPACKET, handles as descriptors beside the bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::contract::Contract;
use crate::wire::{Envelope, MAX_HANDLES, MAX_MESSAGE_BYTES, RequestId, ValidationError, WireMessage};

/// What went wrong between two sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody listens there.
    #[error("connecting to {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody listens there already.
    #[error("{} is in use: somebody is listening there", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that isn't a socket is there.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket couldn't be made or announced.
    #[error("listening on {}: {doing}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A packet larger than any message; the rest of it is lost.
    #[error("a packet of more than {MAX_MESSAGE_BYTES} bytes")]
    MessageTruncated,
    /// More descriptors than any message has, or more than this process may open.
    #[error("descriptors were cut off: more than {MAX_HANDLES}, or none can be opened any more")]
    HandlesTruncated,
    /// A message that is too large to be sent.
    #[error("a message of {bytes} bytes and {handles} handles is too large to send")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// Its handles.
        handles: usize,
    },
    /// The peer takes no more messages for now.
    #[error("the peer took no message for {0:?}")]
    SendTimedOut(Duration),
    /// The bytes aren't a message.
    #[error("not a message")]
    Invalid(#[from] ValidationError),
    /// Nothing more can be sent: the peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer can't be identified.
    #[error("asking who the peer is")]
    Peer(#[source] io::Error),
    /// A system call failed.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl TransportError {
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { doing, source: errno.into() }
    }
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// So long.
    For(Duration),
    /// As long as it takes.
    Forever,
}

/// What came of waiting for a packet or a message.
#[derive(Debug)]
pub enum Received<T> {
    /// It came.
    Got(T),
    /// Nothing came in time.
    Nothing,
    /// The peer closed the connection.
    Closed,
}

/// A packet: how many bytes of the buffer it fills, and the descriptors that came with it.
#[derive(Debug)]
pub struct Packet {
    /// Bytes at the buffer's start.
    pub len: usize,
    /// All close-on-exec.
    pub handles: Vec<OwnedFd>,
}

/// One end of a connection. Sending from several threads is fine; receiving is for one at a time.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the socket at `path`, or at the abstract address behind an `@`.
    ///
    /// # Errors
    /// [`TransportError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, TransportError> {
        let failed =
            |errno: Errno| TransportError::Connect { path: path.to_path_buf(), source: errno.into() };
        let address = match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
            _ => SocketAddrUnix::new(path),
        };
        let address = address.map_err(failed)?;
        let socket = new_socket().map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Two ends connected to each other.
    ///
    /// # Errors
    /// [`TransportError::System`].
    pub fn pair() -> Result<(Self, Self), TransportError> {
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(TransportError::system("making a pair of sockets"))?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// A connected SOCK_SEQPACKET socket that somebody else made.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`], [`TransportError::Closed`], [`TransportError::SendTimedOut`] (with [`Wait::No`] at once).
    pub fn send(&self, bytes: &[u8], handles: &[BorrowedFd<'_>], wait: Wait) -> Result<(), TransportError> {
        if bytes.len() > MAX_MESSAGE_BYTES || handles.len() > MAX_HANDLES {
            return Err(TransportError::TooLarge { bytes: bytes.len(), handles: handles.len() });
        }
        let deadline = Deadline::new(wait);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !handles.is_empty() && !control.push(SendAncillaryMessage::ScmRights(handles)) {
            return Err(TransportError::TooLarge { bytes: bytes.len(), handles: handles.len() });
        }
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    if !self.poll(PollFlags::OUT, deadline)? {
                        return Err(TransportError::SendTimedOut(deadline.length()));
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(TransportError::Closed),
                Err(e) => return Err(TransportError::system("sending a message")(e)),
            }
        }
    }

    /// Receives one packet into `buffer`, which should hold [`MAX_MESSAGE_BYTES`]. An empty packet reads like the end.
    ///
    /// # Errors
    /// [`TransportError::MessageTruncated`] and [`TransportError::HandlesTruncated`]: what came is closed and lost.
    pub fn receive(&self, buffer: &mut [u8], wait: Wait) -> Result<Received<Packet>, TransportError> {
        let deadline = Deadline::new(wait);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_HANDLES))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let message = match rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags) {
                Ok(message) => message,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    if self.poll(PollFlags::IN, deadline)? {
                        continue;
                    }
                    return Ok(Received::Nothing);
                }
                Err(Errno::CONNRESET | Errno::NOTCONN) => return Ok(Received::Closed),
                Err(e) => return Err(TransportError::system("receiving a message")(e)),
            };
            // Taken before anything is judged: what isn't taken on is closed by being dropped.
            let mut handles = Vec::new();
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    handles.extend(descriptors);
                }
            }
            if message.flags.contains(ReturnFlags::TRUNC) {
                return Err(TransportError::MessageTruncated);
            }
            if message.flags.contains(ReturnFlags::CTRUNC) {
                return Err(TransportError::HandlesTruncated);
            }
            if message.bytes == 0 {
                return Ok(Received::Closed);
            }
            return Ok(Received::Got(Packet { len: message.bytes, handles }));
        }
    }

    /// Encodes and sends a message.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn send_message<M: WireMessage<OwnedFd>>(
        &self,
        message: M,
        request: RequestId,
        wait: Wait,
    ) -> Result<(), TransportError> {
        let encoded = message.encode(request);
        let handles: Vec<BorrowedFd<'_>> = encoded.handles.iter().map(AsFd::as_fd).collect();
        self.send(&encoded.bytes, &handles, wait)
    }

    /// Receives a message, with `buffer` as room for its bytes.
    ///
    /// # Errors
    /// As [`Connection::receive`], and [`TransportError::Invalid`].
    pub fn receive_message<M: WireMessage<OwnedFd>>(
        &self,
        buffer: &mut [u8],
        contract: Contract,
        wait: Wait,
    ) -> Result<Received<Envelope<M>>, TransportError> {
        Ok(match self.receive(buffer, wait)? {
            Received::Got(packet) => {
                let bytes = buffer.get(..packet.len).unwrap_or_default();
                Received::Got(M::decode(bytes, packet.handles, contract)?)
            }
            Received::Nothing => Received::Nothing,
            Received::Closed => Received::Closed,
        })
    }

    /// Ends the connection for both sides, whoever else holds its descriptor. What was sent is still received.
    pub fn shut_down(&self) {
        // An error says that it had ended already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Whether the socket was ready for `events`, or at its end, before the deadline.
    fn poll(&self, events: PollFlags, deadline: Deadline) -> Result<bool, TransportError> {
        poll(self.socket.as_fd(), events, deadline)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.socket
    }
}

/// A point in time to wait for, from a [`Wait`].
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    wait: Wait,
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(wait: Wait) -> Self {
        let at = match wait {
            Wait::No => Some(Instant::now()),
            // A time too far off to be told is as good as never.
            Wait::For(length) => Instant::now().checked_add(length),
            Wait::Forever => None,
        };
        Self { wait, at }
    }

    fn length(&self) -> Duration {
        match self.wait {
            Wait::No => Duration::ZERO,
            Wait::For(length) => length,
            Wait::Forever => Duration::MAX,
        }
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Wait {
        match self.at {
            Some(at) => Wait::For(at.saturating_duration_since(Instant::now())),
            None => Wait::Forever,
        }
    }
}

pub(crate) fn poll(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Deadline,
) -> Result<bool, TransportError> {
    loop {
        let timeout = match deadline.left() {
            Wait::For(left) => Some(timespec(left)),
            _ => None,
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, events)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(TransportError::system("waiting for a socket")(e)),
        }
    }
}

/// A duration as the kernel takes it; what is too long to be said is the longest that can be.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    let longest = Timespec { tv_sec: i64::MAX / 4, tv_nsec: 0 };
    match i64::try_from(duration.as_secs()) {
        Ok(tv_sec) if tv_sec < longest.tv_sec => Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() },
        _ => longest,
    }
}

pub(crate) fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}
