//! Becoming a client.

use core::ptr;

use crate::control::{self, Buffers};
use crate::socket::{MAX_HANDLES, Received, Socket};
use crate::start;
use crate::state::STATE;
use crate::sys::{self, Errno, Fd, PAGE};
use crate::wire::{self, Message, Region, abilities};

/// The agent is a client now.
pub(crate) struct Enlisted {
    pub(crate) socket: Socket,
    pub(crate) uffd: Fd,
    pub(crate) areas: Areas,
    pub(crate) line: Lifeline,
}

/// What is to be known once the daemon is gone.
pub(crate) struct Lifeline {
    /// The process that listens; none before Linux 6.5.
    pub(crate) daemon: Option<Fd>,
    /// How long who waits for memory is let wait after that has ended, in nanoseconds; 0: for ever.
    pub(crate) patience: u64,
}

/// It isn't, and nothing of the program's was touched.
pub(crate) struct Unmanaged;

/// What must never be moved, and where moved pages go.
pub(crate) struct Areas {
    pub(crate) staging: Region,
    pub(crate) ours: [Region; 5],
}

/// The number of the last request made here.
pub(crate) const LAST_REQUEST: u64 = 4;

/// How long the daemon may take for an answer.
const PATIENCE: u64 = 10_000_000_000;

/// The most staging that is made, in pages: 1 GiB.
const MOST_STAGING: u64 = 1 << 18;

/// Connects and tells the daemon what it needs. A forked child, whose memory has a userfaultfd already, asks for that.
pub(crate) fn enlist(buffers: &mut Buffers, block: usize) -> Result<Enlisted, Unmanaged> {
    let mut value = [0_u8; 160];
    let len = STATE.socket.copy(start::SOCKET.len(), &mut value);
    let start::Socket { patience, address, .. } = start::split(value.get(..len).unwrap_or_default());
    let socket = Socket::connect(address).map_err(unmanaged)?;
    let daemon = socket.listening_process();
    let line = Lifeline { daemon, patience: u64::from(patience).saturating_mul(1_000_000_000) };
    let mut caller = Caller { socket, buffers };

    let (device, staging_pages) = caller.hello()?;
    let forked = STATE.is_enlisted();
    let made = make_areas(staging_pages, block, forked);
    let Ok(Made { areas, sentinel, swap }) = made else {
        if let (Err(Errno(errno)), false) = (made, forked) {
            caller.transfer(0, errno as u64, Region::default(), None)?;
        }
        return Err(Unmanaged);
    };
    caller.staging(areas.staging)?;
    let agent = wire::Agent { forked, pid: sys::getpid(), tid: sys::gettid(), sentinel, ours: &areas.ours };
    let uffd = if forked {
        caller.claim(&agent)?
    } else {
        caller.agent(&agent)?;
        match sys::new_uffd(device.as_ref()) {
            Ok(uffd) => {
                caller.transfer(0, 0, swap, Some(&uffd))?;
                uffd
            }
            Err(Errno(errno)) => {
                caller.transfer(errno as u64, 0, Region::default(), None)?;
                return Err(Unmanaged);
            }
        }
    };
    Ok(Enlisted { socket: caller.socket, uffd, areas, line })
}

struct Caller<'a> {
    socket: Socket,
    buffers: &'a mut Buffers,
}

type Handles = [Option<Fd>; MAX_HANDLES];

impl Caller<'_> {
    /// `Hello`: the device, if one was passed, and how much staging to make.
    fn hello(&mut self) -> Result<(Option<Fd>, u64), Unmanaged> {
        let needed = abilities::ORDERS | abilities::UFFD_MOVE | abilities::AGENT;
        let message = wire::hello(self.buffers.send, 1, needed | abilities::DEVICE);
        self.socket.send(message.ok_or(Unmanaged)?, None).map_err(unmanaged)?;
        let ([first, ..], answer) = self.receive(1)?;
        match answer {
            Message::Welcome { version: wire::VERSION, granted, device, staging_pages }
                if granted & needed == needed =>
            {
                let device = first.filter(|_| device && granted & abilities::DEVICE != 0);
                Ok((device, staging_pages))
            }
            _ => Err(Unmanaged),
        }
    }

    fn staging(&mut self, area: Region) -> Result<(), Unmanaged> {
        let message = wire::staging(self.buffers.send, 2, area);
        self.socket.send(message.ok_or(Unmanaged)?, None).map_err(unmanaged)?;
        self.expect(2, Message::Staged)
    }

    fn agent(&mut self, agent: &wire::Agent<'_>) -> Result<(), Unmanaged> {
        let message = wire::agent(self.buffers.send, 3, agent);
        self.socket.send(message.ok_or(Unmanaged)?, None).map_err(unmanaged)?;
        self.expect(3, Message::Enlisted { uffd: false })
    }

    /// `Agent` of a forked child. It shows whose it is by touching the sentinel, which is a hole that is registered with the
    /// userfaultfd it asks for.
    fn claim(&mut self, agent: &wire::Agent<'_>) -> Result<Fd, Unmanaged> {
        let message = wire::agent(self.buffers.send, 3, agent);
        self.socket.send(message.ok_or(Unmanaged)?, None).map_err(unmanaged)?;
        let sentinel = agent.sentinel.address as usize;
        // SAFETY: the sentinel holds nothing. Emptied first: the parent's agent may have filled it when it was a child itself.
        let emptied = unsafe { sys::advise(sentinel, PAGE, sys::DONTNEED) };
        emptied.map_err(unmanaged)?;
        // SAFETY: it is mapped and readable; the read waits until the daemon has put a page there.
        unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u8>(sentinel)) };
        let ([first, ..], answer) = self.receive(3)?;
        match (answer, first) {
            (Message::Enlisted { uffd: true }, Some(uffd)) => Ok(uffd),
            _ => Err(Unmanaged),
        }
    }

    fn transfer(
        &mut self,
        uffd_error: u64,
        mmap_error: u64,
        area: Region,
        uffd: Option<&Fd>,
    ) -> Result<(), Unmanaged> {
        let message = wire::transfer(self.buffers.send, LAST_REQUEST, uffd_error, mmap_error, area);
        self.socket.send(message.ok_or(Unmanaged)?, uffd).map_err(unmanaged)?;
        self.expect(LAST_REQUEST, Message::Transferred)
    }

    fn expect(&mut self, request: u64, wanted: Message<'_>) -> Result<(), Unmanaged> {
        let (_, answer) = self.receive(request)?;
        if answer == wanted { Ok(()) } else { Err(Unmanaged) }
    }

    fn receive(&mut self, wanted: u64) -> Result<(Handles, Message<'_>), Unmanaged> {
        let Received::Message(len, handles) = self.socket.receive_within(self.buffers.receive, PATIENCE)
        else {
            return Err(Unmanaged);
        };
        match wire::parse(self.buffers.receive.get(..len).unwrap_or_default()) {
            Some((request, message)) if request == wanted => Ok((handles, message)),
            _ => Err(Unmanaged),
        }
    }
}

struct Made {
    areas: Areas,
    sentinel: Region,
    swap: Region,
}

fn make_areas(staging_pages: u64, block: usize, forked: bool) -> Result<Made, Errno> {
    if staging_pages == 0 || staging_pages > MOST_STAGING {
        return Err(Errno::INVAL);
    }
    let len = staging_pages as usize * PAGE;
    let staging = match STATE.staging(len) {
        Some(inherited) if forked => inherited,
        _ => make_staging(len)?,
    };
    let sentinel = match STATE.sentinel() {
        Some(sentinel) if forked => sentinel,
        _ => {
            let sentinel = sys::map(PAGE, sys::READ_WRITE)?;
            make_hole(sentinel);
            STATE.set_sentinel(sentinel);
            sentinel
        }
    };
    let swap = match STATE.swap() {
        Some(swap) => swap,
        None => {
            let swap = make_swap()?;
            STATE.set_swap(swap);
            swap
        }
    };
    let region = |address: usize, length: usize| Region { address: address as u64, length: length as u64 };
    let staging = region(staging, staging_pages as usize * PAGE);
    let sentinel = region(sentinel, PAGE);
    let swap = region(swap, SWAP);
    let ours = [STATE.region(), control::block_region(block), staging, sentinel, swap];
    Ok(Made { areas: Areas { staging, ours }, sentinel, swap })
}

/// Where UFFDIO_MOVE moves to. A child inherits it: should its parent exit, pages of the child that stand there are read from its own
/// copy. It is the child's staging area then, once the daemon has emptied it.
fn make_staging(len: usize) -> Result<usize, Errno> {
    let staging = sys::map(len, sys::READ_WRITE)?;
    sys::unlock(staging, len);
    // SAFETY: new memory, of which nobody expects anything.
    let prepared = unsafe {
        let _ = sys::advise(staging, len, sys::NOHUGEPAGE);
        sys::advise(staging, len, sys::DONTDUMP)
    };
    STATE.set_staging(staging, len);
    prepared.map(|_| staging)
}

/// After mlockall(MCL_FUTURE) new memory is full of pages.
fn make_hole(at: usize) {
    sys::unlock(at, PAGE);
    // SAFETY: new memory, of which nobody expects anything.
    let _ = unsafe { sys::advise(at, PAGE, sys::DONTNEED) };
}

/// The swap area that the contract asks for: one region, never used, for this end moves by UFFDIO_MOVE.
const SWAP: usize = 16 * PAGE;

/// At a random page above 4 GiB within 47 bits; tried again only where something is already.
fn make_swap() -> Result<usize, Errno> {
    const LOWEST: u64 = 1 << 32;
    const PAGES: u64 = ((1 << 47) - (1 << 32)) / PAGE as u64 - 32;
    for _ in 0..64 {
        let at = LOWEST + sys::random()? % PAGES * PAGE as u64;
        match sys::map_at(at as usize, SWAP, sys::NO_ACCESS) {
            Err(Errno::EXIST) => {}
            answer => return answer,
        }
    }
    Err(Errno::EXIST)
}

fn unmanaged(_: Errno) -> Unmanaged {
    Unmanaged
}
