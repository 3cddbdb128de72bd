//! The messages an agent sends and receives, in Mojo's layout.
//!
//! The layout is described where all messages are defined, in the crate `userswap-ipc`. It has one form for a message: each
//! object right behind the one before, in the order of the pointers to them. So what is received is read front to back, and
//! a pointer that isn't the one expected makes it invalid.

/// The most bytes of a message.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// The most ranges in a `Move`.
pub(crate) const MAX_MOVES: usize = 64;

/// The most areas in a `Drop` or an `Unshare`.
pub(crate) const MAX_DROPS: usize = 512;

/// Bytes of the longest message sent: the results of a `Move` of that many ranges.
pub(crate) const MAX_SENT: usize = 32 + 16 + 8 + 32 * MAX_MOVES;

/// The version of the extensions spoken here.
pub(crate) const VERSION: u32 = 1;

/// What is asked for in `Hello`.
pub(crate) mod abilities {
    pub(crate) const ORDERS: u64 = 1;
    pub(crate) const UFFD_MOVE: u64 = 1 << 1;
    pub(crate) const DEVICE: u64 = 1 << 2;
    pub(crate) const AGENT: u64 = 1 << 4;
}

/// Why a range wasn't moved whole.
pub(crate) mod stop {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const PRESENT: u32 = 1;
    pub(crate) const BUSY: u32 = 2;
    pub(crate) const PINNED: u32 = 4;
    pub(crate) const HOLE: u32 = 5;
    pub(crate) const NO_MEMORY: u32 = 6;
    pub(crate) const REFUSED: u32 = 7;
    pub(crate) const WAS_SHARED: u32 = 8;
}

/// A range of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Region {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

impl Region {
    pub(crate) fn end(self) -> Option<u64> {
        self.address.checked_add(self.length)
    }

    /// Whether it is of whole pages, at least one, and doesn't wrap.
    pub(crate) fn is_whole(self) -> bool {
        let pages = (self.address | self.length) & 0xfff == 0;
        pages && self.address != 0 && self.length != 0 && self.end().is_some()
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        match (self.end(), other.end()) {
            (Some(end), Some(other_end)) => self.address <= other.address && other_end <= end,
            _ => false,
        }
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        match (self.end(), other.end()) {
            (Some(end), Some(other_end)) => self.address < other_end && other.address < end,
            _ => true,
        }
    }
}

// ---- sent ----

/// A message being written into a buffer. What doesn't fit makes the whole of it invalid, which [`Writer::finish`] tells.
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    fits: bool,
}

const SYNC_CALL: u32 = 5;
const CALL: u32 = 1;
const REPLY: u32 = 2;
const CLIENT: u32 = 0x100;
const DAEMON: u32 = 0x101;

impl<'a> Writer<'a> {
    fn begin(buffer: &'a mut [u8], interface: u32, ordinal: u32, flags: u32, request: u64) -> Self {
        let mut writer = Self { buffer, len: 0, fits: true };
        writer.pair(32, 1);
        writer.pair(interface, ordinal);
        writer.pair(flags, 0);
        writer.word(request);
        writer
    }

    fn word(&mut self, value: u64) {
        match self.buffer.get_mut(self.len..self.len + 8) {
            Some(place) => place.copy_from_slice(&value.to_le_bytes()),
            None => self.fits = false,
        }
        self.len += 8;
    }

    fn pair(&mut self, first: u32, second: u32) {
        self.word(u64::from(first) | u64::from(second) << 32);
    }

    fn region(&mut self, region: Region) {
        self.pair(24, 0);
        self.word(region.address);
        self.word(region.length);
    }

    /// An array of `count` pointers to objects of `size` bytes that are to follow.
    fn pointers(&mut self, count: usize, size: usize) {
        match u32::try_from(count) {
            Ok(count) => self.pair(8_u32.saturating_mul(count).saturating_add(8), count),
            Err(_) => self.fits = false,
        }
        for index in 0..count {
            self.word((8 * (count - index) + size * index) as u64);
        }
    }

    fn finish(self) -> Option<&'a [u8]> {
        let Self { buffer, len, fits } = self;
        if fits { buffer.get(..len) } else { None }
    }
}

/// `Hello`.
pub(crate) fn hello(buffer: &mut [u8], request: u64, wants: u64) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, CLIENT, 0, SYNC_CALL, request);
    writer.pair(24, 0);
    writer.pair(VERSION, 0);
    writer.word(wants);
    writer.finish()
}

/// `Staging`.
pub(crate) fn staging(buffer: &mut [u8], request: u64, area: Region) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, CLIENT, 1, SYNC_CALL, request);
    writer.pair(16, 0);
    writer.word(8);
    writer.region(area);
    writer.finish()
}

/// Parameters of `Agent`.
pub(crate) struct Agent<'a> {
    pub(crate) forked: bool,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) sentinel: Region,
    pub(crate) ours: &'a [Region],
}

/// `Agent`.
pub(crate) fn agent<'a>(buffer: &'a mut [u8], request: u64, agent: &Agent<'_>) -> Option<&'a [u8]> {
    let mut writer = Writer::begin(buffer, CLIENT, 3, SYNC_CALL, request);
    writer.pair(40, 0);
    writer.pair(u32::from(agent.forked), agent.pid);
    writer.pair(agent.tid, 0);
    // The sentinel follows the two pointers, the array follows the sentinel.
    writer.word(16);
    writer.word(32);
    writer.region(agent.sentinel);
    writer.pointers(agent.ours.len(), 24);
    for region in agent.ours {
        writer.region(*region);
    }
    writer.finish()
}

/// `TransferUserfaultFD`; the handle, if there was no error, is the first one sent along.
pub(crate) fn transfer(
    buffer: &mut [u8],
    request: u64,
    uffd_error: u64,
    mmap_error: u64,
    area: Region,
) -> Option<&[u8]> {
    let handle = if uffd_error | mmap_error == 0 { 0 } else { u32::MAX };
    let mut writer = Writer::begin(buffer, 0, 0, SYNC_CALL, request);
    writer.pair(40, 0);
    writer.word(uffd_error);
    writer.pair(handle, 0);
    writer.word(mmap_error);
    writer.word(8);
    writer.region(area);
    writer.finish()
}

/// `Exclude`.
pub(crate) fn exclude(buffer: &mut [u8], request: u64, area: Region) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, CLIENT, 4, CALL, request);
    writer.pair(16, 0);
    writer.word(8);
    writer.region(area);
    writer.finish()
}

/// `Retire`.
pub(crate) fn retire(buffer: &mut [u8], request: u64, why: u32) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, CLIENT, 5, CALL, request);
    writer.pair(16, 0);
    writer.pair(why, 0);
    writer.finish()
}

/// The reply to `Drop`.
pub(crate) fn dropped(buffer: &mut [u8], request: u64) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, DAEMON, 1, REPLY, request);
    writer.pair(8, 0);
    writer.finish()
}

/// The reply to `Unshare`.
pub(crate) fn unshared(buffer: &mut [u8], request: u64) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, DAEMON, 2, REPLY, request);
    writer.pair(8, 0);
    writer.finish()
}

/// The reply to `Move`; the results are what `result` gives for each index, in order.
pub(crate) fn moved(
    buffer: &mut [u8],
    request: u64,
    count: usize,
    mut result: impl FnMut(usize) -> (u64, u32),
) -> Option<&[u8]> {
    let mut writer = Writer::begin(buffer, DAEMON, 0, REPLY, request);
    writer.pair(16, 0);
    writer.word(8);
    writer.pointers(count, 24);
    for index in 0..count {
        let (bytes, stop) = result(index);
        writer.pair(24, 0);
        writer.word(bytes);
        writer.pair(stop, 0);
    }
    writer.finish()
}

// ---- received ----

/// A message from the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message<'a> {
    /// The reply to `Hello`: what was granted, whether a device came as the first handle, how many pages of staging to make.
    Welcome { version: u32, granted: u64, device: bool, staging_pages: u64 },
    /// The reply to `Staging`.
    Staged,
    /// The reply to `Agent`; whether a userfaultfd came as the first handle.
    Enlisted { uffd: bool },
    /// The reply to `TransferUserfaultFD`.
    Transferred,
    /// The reply to `Exclude`.
    Excluded,
    /// The reply to `Retire`.
    Retired,
    /// `Move`, of the mover's code and these ranges.
    Move { mover: u32, ranges: Elements<'a> },
    /// `Drop`, in this way, of these areas.
    Drop { how: u32, areas: Elements<'a> },
    /// `Unshare` of these areas.
    Unshare { areas: Elements<'a> },
}

/// The message of which these are the bytes, and its request id.
pub(crate) fn parse(bytes: &[u8]) -> Option<(u64, Message<'_>)> {
    let reader = Reader(bytes);
    if reader.word(0)? != 1 << 32 | 32 {
        return None;
    }
    let (interface, ordinal) = reader.pair(8)?;
    let (flags, _) = reader.pair(16)?;
    let request = reader.word(24)?;
    let size = reader.object(32)?;
    let message = match (interface, ordinal, flags, size) {
        (0, 0, 6, 8) => reader.ends(40, Message::Transferred),
        (CLIENT, 0, 6, 32) => {
            let ((version, device), granted) = (reader.pair(40)?, reader.word(48)?);
            let staging_pages = reader.word(56)?;
            let welcome = Message::Welcome { version, granted, device: device == 0, staging_pages };
            if matches!(device, 0 | u32::MAX) { reader.ends(64, welcome) } else { None }
        }
        (CLIENT, 1, 6, 8) => reader.ends(40, Message::Staged),
        (CLIENT, 3, 6, 16) => match reader.pair(40)?.0 {
            0 => reader.ends(48, Message::Enlisted { uffd: true }),
            u32::MAX => reader.ends(48, Message::Enlisted { uffd: false }),
            _ => None,
        },
        (CLIENT, 4, 2, 8) => reader.ends(40, Message::Excluded),
        (CLIENT, 5, 2, 8) => reader.ends(40, Message::Retired),
        (DAEMON, 0, 1, 24) => {
            let (mover, _) = reader.pair(40)?;
            let ranges = reader.elements(48, 56, 32, MAX_MOVES)?;
            Some(Message::Move { mover, ranges })
        }
        (DAEMON, 1, 1, 24) => {
            let (how, _) = reader.pair(48)?;
            let areas = reader.elements(40, 56, 24, MAX_DROPS)?;
            Some(Message::Drop { how, areas })
        }
        (DAEMON, 2, 1, 16) => Some(Message::Unshare { areas: reader.elements(40, 48, 24, MAX_DROPS)? }),
        _ => None,
    };
    message.filter(|_| request != 0).map(|message| (request, message))
}

/// The elements of an array of structs, all of them seen to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Elements<'a> {
    bytes: Reader<'a>,
    /// Where the first one begins.
    at: usize,
    size: usize,
    pub(crate) count: usize,
}

impl Elements<'_> {
    /// Its first two words as a region.
    pub(crate) fn region(&self, index: usize) -> Region {
        Region { address: self.field(index, 0), length: self.field(index, 1) }
    }

    /// A word of an element; zero where there is none.
    pub(crate) fn field(&self, index: usize, field: usize) -> u64 {
        self.bytes.word(self.at + self.size * index + 8 + 8 * field).unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn word(self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    fn pair(self, at: usize) -> Option<(u32, u32)> {
        let [a, b, c, d, e, f, g, h] = self.word(at)?.to_le_bytes();
        Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
    }

    /// The size of the struct there, which must be of version 0.
    fn object(self, at: usize) -> Option<u32> {
        match self.pair(at)? {
            (size, 0) => Some(size),
            _ => None,
        }
    }

    fn ends<T>(self, at: usize, message: T) -> Option<T> {
        (self.0.len() == at).then_some(message)
    }

    /// The array at `at`, behind the pointer at `pointer`, of at most `most` structs of `size` bytes; it ends the message.
    fn elements(self, pointer: usize, at: usize, size: usize, most: usize) -> Option<Elements<'a>> {
        if self.word(pointer)? != (at - pointer) as u64 {
            return None;
        }
        let (bytes, count) = self.pair(at)?;
        let count = count as usize;
        if count > most || bytes as usize != 8 + 8 * count {
            return None;
        }
        let first = at + 8 + 8 * count;
        for index in 0..count {
            let place = at + 8 + 8 * index;
            let element = first + size * index;
            if self.word(place)? != (element - place) as u64 || self.object(element)? as usize != size {
                return None;
            }
        }
        self.ends(first + size * count, Elements { bytes: self, at: first, size, count })
    }
}
