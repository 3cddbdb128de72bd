//! What the library remembers: one static, whole pages of it, which the daemon is told to leave alone.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use crate::control::Control;
use crate::next::Next;
use crate::sys::PAGE;
use crate::wire::Region;

/// Everything that changes. Copied by a fork, except where it says otherwise.
#[repr(C, align(4096))]
pub(crate) struct State {
    /// Not 0 once there is a daemon to connect to.
    started: AtomicU32,
    /// Not 0 if no agent shall be started any more: the program has retired.
    retired: AtomicU32,
    /// Not 0 if programs that this one executes shall not be followed: they would run under its seccomp filter.
    unfollowed: AtomicU32,
    /// Not 0 if the sentinel is registered, which holds for all children, too.
    enlisted: AtomicU32,
    /// The process an agent was last started in.
    pid: AtomicU32,
    /// Where the agent's block is; its control page is wiped by a fork.
    block: AtomicUsize,
    /// Where the sentinel is.
    sentinel: AtomicUsize,
    /// Where the swap area is, of one region.
    swap: AtomicUsize,
    /// Where the staging area is, and how long.
    staging: AtomicUsize,
    staging_len: AtomicUsize,
    /// `USERSWAP_SOCKET=…`
    pub(crate) socket: Text<160>,
    /// `LD_PRELOAD=…`, this library alone.
    pub(crate) preload: Text<1100>,
    /// The functions behind the interposed ones.
    pub(crate) next: Next,
}

/// The one there is. All zeros until the constructor has run.
pub(crate) static STATE: State = State {
    started: AtomicU32::new(0),
    retired: AtomicU32::new(0),
    unfollowed: AtomicU32::new(0),
    enlisted: AtomicU32::new(0),
    pid: AtomicU32::new(0),
    block: AtomicUsize::new(0),
    sentinel: AtomicUsize::new(0),
    swap: AtomicUsize::new(0),
    staging: AtomicUsize::new(0),
    staging_len: AtomicUsize::new(0),
    socket: Text::new(),
    preload: Text::new(),
    next: Next::new(),
};

macro_rules! flag {
    ($get:ident, $set:ident, $field:ident) => {
        pub(crate) fn $get(&self) -> bool {
            self.$field.load(Ordering::Acquire) != 0
        }

        pub(crate) fn $set(&self, value: bool) {
            self.$field.store(u32::from(value), Ordering::Release);
        }
    };
}

macro_rules! address {
    ($get:ident, $set:ident, $field:ident) => {
        pub(crate) fn $get(&self) -> Option<usize> {
            match self.$field.load(Ordering::Acquire) {
                0 => None,
                address => Some(address),
            }
        }

        pub(crate) fn $set(&self, address: usize) {
            self.$field.store(address, Ordering::Release);
        }
    };
}

impl State {
    flag!(is_started, set_started, started);
    flag!(is_retired, set_retired, retired);
    flag!(is_unfollowed, set_unfollowed, unfollowed);
    flag!(is_enlisted, set_enlisted, enlisted);
    address!(block, set_block, block);
    address!(sentinel, set_sentinel, sentinel);
    address!(swap, set_swap, swap);

    /// Where the staging area of this process or, in a forked child, its parent is, if it has `len` bytes.
    pub(crate) fn staging(&self, len: usize) -> Option<usize> {
        match self.staging.load(Ordering::Acquire) {
            0 => None,
            address => (self.staging_len.load(Ordering::Acquire) == len).then_some(address),
        }
    }

    pub(crate) fn set_staging(&self, address: usize, len: usize) {
        self.staging_len.store(len, Ordering::Release);
        self.staging.store(address, Ordering::Release);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Release);
    }

    /// The control page, once there is one.
    pub(crate) fn control(&self) -> Option<&'static Control> {
        self.block().map(Control::of_block)
    }

    /// Where this is.
    pub(crate) fn region(&self) -> Region {
        let address = core::ptr::from_ref(self).addr() as u64;
        Region { address, length: size_of::<Self>() as u64 }
    }
}

/// A C string that is written once, before there is a second thread.
pub(crate) struct Text<const N: usize> {
    bytes: [AtomicU8; N],
    len: AtomicUsize,
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self { bytes: [const { AtomicU8::new(0) }; N], len: AtomicUsize::new(0) }
    }

    /// Appends bytes. `false` if there is no room for them and a 0.
    pub(crate) fn push(&self, bytes: &[u8]) -> bool {
        let len = self.len();
        if bytes.len() >= N.saturating_sub(len) {
            return false;
        }
        for (place, byte) in self.bytes.iter().skip(len).zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
        self.len.store(len + bytes.len(), Ordering::Release);
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Copies the bytes from `from` on; gives how many.
    pub(crate) fn copy(&self, from: usize, into: &mut [u8]) -> usize {
        let mut count = 0;
        let bytes = self.bytes.iter().take(self.len()).skip(from);
        for (place, byte) in into.iter_mut().zip(bytes) {
            *place = byte.load(Ordering::Relaxed);
            count += 1;
        }
        count
    }

    /// The C string, for whoever takes addresses: an environment.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr().cast()
    }
}

const _: () = assert!(size_of::<State>().is_multiple_of(PAGE));
