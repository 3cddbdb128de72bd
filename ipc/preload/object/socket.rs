//! The agent's connection to the daemon: one message a packet, descriptors beside it.

use core::ptr;

use crate::sys::{Errno, Fd, PollFd, call, nr, poll};

/// The most descriptors in a message.
pub(crate) const MAX_HANDLES: usize = 4;

/// The connection.
pub(crate) struct Socket(Fd);

/// What came of waiting for a message.
pub(crate) enum Received {
    /// A message of so many bytes, and its descriptors.
    Message(usize, [Option<Fd>; MAX_HANDLES]),
    /// Nothing in time.
    Nothing,
    /// The daemon is gone, or sent what can't be taken in.
    Closed,
}

impl Socket {
    /// Connects to an address: `@name` for an abstract one, which no change of root directory puts out of reach, else a path.
    pub(crate) fn connect(address: &[u8]) -> Result<Self, Errno> {
        const AF_UNIX: u16 = 1;
        const SEQPACKET_CLOEXEC: usize = 5 | 0o2_000_000;
        let mut name = [0_u8; 110];
        let [low, high] = AF_UNIX.to_ne_bytes();
        let place = name.get_mut(2..2 + address.len()).ok_or(Errno::INVAL)?;
        place.copy_from_slice(address);
        let mut len = 2 + address.len();
        match name.get_mut(..3) {
            Some([first, second, start]) => {
                (*first, *second) = (low, high);
                match *start {
                    b'@' => *start = 0,
                    // A path may have a 0 at its end.
                    _ if len < 110 => len += 1,
                    _ => {}
                }
            }
            _ => return Err(Errno::INVAL),
        }
        // SAFETY: all arguments are numbers.
        let fd = unsafe { call(nr::SOCKET, [usize::from(AF_UNIX), SEQPACKET_CLOEXEC, 0, 0, 0, 0]) }?;
        let socket = Fd::received(fd as i32);
        let at = name.as_ptr().expose_provenance();
        // SAFETY: the kernel reads `len` bytes, of which there are 110.
        unsafe { call(nr::CONNECT, [socket.number() as usize, at, len, 0, 0, 0]) }?;
        Ok(Self(socket))
    }

    /// The process that listens, as the kernel noted it: readable once it has ended.
    pub(crate) fn listening_process(&self) -> Option<Fd> {
        const SO_PEERPIDFD: usize = 77;
        let (mut number, mut len) = (-1_i32, size_of::<i32>() as u32);
        let at = ptr::from_mut(&mut number).expose_provenance();
        let len = ptr::from_mut(&mut len).expose_provenance();
        let (socket, level) = (self.0.number() as usize, SOL_SOCKET as usize);
        // SAFETY: the kernel writes a descriptor's number and its length.
        let answer = unsafe { call(nr::GETSOCKOPT, [socket, level, SO_PEERPIDFD, at, len, 0]) };
        (answer.is_ok() && number >= 0).then(|| Fd::received(number))
    }

    /// To wait for a message.
    pub(crate) fn fd(&self) -> &Fd {
        &self.0
    }

    /// Sends a message, waiting until there is room for it.
    pub(crate) fn send(&self, bytes: &[u8], handle: Option<&Fd>) -> Result<(), Errno> {
        const NOSIGNAL: usize = 0x4000;
        let mut control = Control::default();
        let mut header = MessageHeader::new(bytes.as_ptr(), bytes.len());
        let mut part = Part { base: header.base, len: header.len };
        if let Some(handle) = handle {
            control.header =
                ControlHeader { len: ControlHeader::SIZE + 4, level: SOL_SOCKET, kind: SCM_RIGHTS };
            control.fds[0] = handle.number();
            header.control = ptr::from_mut(&mut control).expose_provenance();
            // Rounded up to a multiple of 8.
            header.control_len = ControlHeader::SIZE + 8;
        }
        header.attach(&mut part);
        let at = ptr::from_mut(&mut header).expose_provenance();
        loop {
            // SAFETY: the kernel reads what the header points to: one part of memory and one control block, both of the lengths given.
            match unsafe { call(nr::SENDMSG, [self.0.number() as usize, at, NOSIGNAL, 0, 0, 0]) } {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Receives a message, waiting for it so long.
    pub(crate) fn receive_within(&self, buffer: &mut [u8], nanoseconds: u64) -> Received {
        loop {
            match poll(&mut [PollFd::readable(Some(&self.0))], Some(nanoseconds)) {
                Ok(0) => return Received::Nothing,
                Ok(_) => return self.receive(buffer),
                Err(Errno::INTR) => {}
                Err(_) => return Received::Closed,
            }
        }
    }

    /// Receives a message if there is one.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Received {
        const CLOEXEC_DONTWAIT: usize = 0x4000_0000 | 0x40;
        const TRUNCATED: i32 = 0x20 | 0x8;
        let mut control = Control::default();
        let mut header = MessageHeader::new(buffer.as_mut_ptr(), buffer.len());
        let mut part = Part { base: header.base, len: header.len };
        header.control = ptr::from_mut(&mut control).expose_provenance();
        header.control_len = size_of::<Control>();
        header.attach(&mut part);
        let at = ptr::from_mut(&mut header).expose_provenance();
        // SAFETY: the kernel writes into what the header points to, the buffer and the control block, no more than their lengths.
        let answer = unsafe { call(nr::RECVMSG, [self.0.number() as usize, at, CLOEXEC_DONTWAIT, 0, 0, 0]) };
        let handles = match answer {
            Ok(_) => control.taken(header.control_len),
            Err(_) => [const { None }; MAX_HANDLES],
        };
        match answer {
            Ok(0) => Received::Closed,
            Ok(_) if header.flags & TRUNCATED != 0 => Received::Closed,
            Ok(len) => Received::Message(len, handles),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }
}

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

/// `struct msghdr`. Holds addresses as numbers: the kernel uses them, nobody here does.
#[repr(C)]
struct MessageHeader {
    name: usize,
    name_len: usize,
    parts: usize,
    part_count: usize,
    control: usize,
    control_len: usize,
    flags: i32,
    // Not of the C structure: where the bytes are, until they are attached.
    base: usize,
    len: usize,
}

impl MessageHeader {
    fn new(base: *const u8, len: usize) -> Self {
        let base = base.expose_provenance();
        Self {
            name: 0,
            name_len: 0,
            parts: 0,
            part_count: 0,
            control: 0,
            control_len: 0,
            flags: 0,
            base,
            len,
        }
    }

    fn attach(&mut self, part: &mut Part) {
        self.parts = ptr::from_mut(part).expose_provenance();
        self.part_count = 1;
    }
}

/// `struct iovec`.
#[repr(C)]
struct Part {
    base: usize,
    len: usize,
}

/// `struct cmsghdr`.
#[repr(C)]
#[derive(Default)]
struct ControlHeader {
    len: usize,
    level: i32,
    kind: i32,
}

impl ControlHeader {
    const SIZE: usize = size_of::<Self>();
}

/// One control message with descriptors.
#[repr(C)]
#[derive(Default)]
struct Control {
    header: ControlHeader,
    fds: [i32; MAX_HANDLES],
}

impl Control {
    /// The descriptors that came; they are ours from now on.
    fn taken(&self, control_len: usize) -> [Option<Fd>; MAX_HANDLES] {
        let mut handles = [const { None }; MAX_HANDLES];
        let rights = self.header.level == SOL_SOCKET && self.header.kind == SCM_RIGHTS;
        if control_len < ControlHeader::SIZE || !rights {
            return handles;
        }
        let count = self.header.len.saturating_sub(ControlHeader::SIZE) / 4;
        for ((handle, number), _) in handles.iter_mut().zip(self.fds).zip(0..count) {
            *handle = Some(Fd::received(number));
        }
        handles
    }
}
