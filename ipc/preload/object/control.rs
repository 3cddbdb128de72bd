//! The agent's block of memory, and how the program's threads speak to the agent through it.
//!
//! ```text
//! guard page · stack · control page · receive buffer · send buffer · table of threads
//! ```
//!
//! A fork's child has the block too, but finds its control page wiped: there is no agent yet. A vfork's child shares it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::moving::Moving;
use crate::sys::{self, Errno, PAGE};
use crate::threads::Threads;
use crate::wire::{MAX_MESSAGE, MAX_SENT, Region};

const STACK: usize = 16 * PAGE;
const CONTROL_AT: usize = PAGE + STACK;
const RECEIVE_AT: usize = CONTROL_AT + PAGE;
const SEND_AT: usize = RECEIVE_AT + MAX_MESSAGE;
const THREADS_AT: usize = (SEND_AT + MAX_SENT).next_multiple_of(PAGE);
const BLOCK: usize = (THREADS_AT + size_of::<Threads>()).next_multiple_of(PAGE);

/// Maps a block.
pub(crate) fn map_block() -> Result<usize, Errno> {
    let block = sys::map(BLOCK, sys::READ_WRITE)?;
    // SAFETY: all of it is new, nobody uses it yet; the guard page is never to be touched, and a child is to find the control
    // page empty.
    let prepared = unsafe {
        sys::protect(block, PAGE, sys::NO_ACCESS)
            .and_then(|_| sys::advise(block + CONTROL_AT, PAGE, sys::WIPEONFORK))
    };
    prepared.map(|_| block).inspect_err(|_| {
        // SAFETY: nobody uses it.
        unsafe { sys::unmap(block, BLOCK) };
    })
}

/// Where a block is.
pub(crate) fn block_region(block: usize) -> Region {
    Region { address: block as u64, length: BLOCK as u64 }
}

/// The end of a block's stack, where a thread starts on it.
pub(crate) fn stack_top(block: usize) -> usize {
    block + CONTROL_AT
}

/// Where a block's table of threads is.
pub(crate) fn threads_at(block: usize) -> usize {
    block + THREADS_AT
}

/// A block's buffers.
pub(crate) struct Buffers {
    pub(crate) receive: &'static mut [u8],
    pub(crate) send: &'static mut [u8],
}

impl Buffers {
    /// # Safety
    /// The block must be mapped, and these be the only ones of it.
    pub(crate) unsafe fn of_block(block: usize) -> Self {
        let at = |offset| core::ptr::with_exposed_provenance_mut::<u8>(block + offset);
        // SAFETY: both lie in the block, apart from each other; for the rest the caller's promise.
        unsafe {
            Self {
                receive: core::slice::from_raw_parts_mut(at(RECEIVE_AT), MAX_MESSAGE),
                send: core::slice::from_raw_parts_mut(at(SEND_AT), MAX_SENT),
            }
        }
    }
}

/// What a program's thread wants from the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// That a range be brought back and left alone.
    Exclude(Region),
    /// That all be brought back and the agent end; the reason's code.
    Retire(u32),
}

/// The control page. All zeros: no agent.
#[repr(C)]
pub(crate) struct Control {
    /// The agent's thread id. Set by the kernel when the agent is made, cleared and woken by the kernel when it has ended.
    tid: AtomicU32,
    /// The agent's process.
    pid: AtomicU32,
    /// 0: nobody asks. 1: somebody does. 2: others wait to.
    turn: AtomicU32,
    /// 0: nothing asked. 1: exclude. 2: retire.
    verb: AtomicU32,
    /// 0: not answered. 1: done. 2: not to be had.
    answer: AtomicU32,
    code: AtomicU32,
    moving: Moving,
    address: AtomicU64,
    length: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;

impl Control {
    /// The control page of a block.
    pub(crate) fn of_block(block: usize) -> &'static Self {
        let at = core::ptr::with_exposed_provenance::<Self>(block + CONTROL_AT);
        // SAFETY: a block is never unmapped once it is remembered; its control page is reached through atomics alone, all of
        // whose bytes are values.
        unsafe { &*at }
    }

    /// The agent's thread id, `None` without an agent.
    pub(crate) fn agent(&self) -> Option<u32> {
        match self.tid.load(Ordering::Acquire) {
            0 => None,
            tid => Some(tid),
        }
    }

    /// The word of the agent's thread id, for the kernel.
    pub(crate) fn tid_word(&self) -> *mut u32 {
        self.tid.as_ptr()
    }

    /// Says when pages are being moved.
    pub(crate) fn moving(&self) -> &Moving {
        &self.moving
    }

    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Release);
    }

    /// Asks the agent and waits for its answer; whether it was done. Called by the program's threads.
    ///
    /// Not done, at once, if there is no agent, or if this is a vfork's child: the memory is its parent's then, and what it is
    /// about to do to itself doesn't concern the parent.
    pub(crate) fn ask(&self, request: Request) -> bool {
        let asker = sys::getpid();
        if self.agent().is_none() || self.pid.load(Ordering::Acquire) != asker {
            return false;
        }
        // A handler that runs meanwhile could ask, too, or never come back.
        let mask = sys::set_signal_mask(sys::ALL);
        let done = self.take_turn() && {
            let done = self.put(asker, request);
            self.end_turn();
            done
        };
        sys::set_signal_mask(mask);
        done
    }

    /// Waits until the agent has ended.
    pub(crate) fn await_end(&self) {
        while let Some(tid) = self.agent() {
            sys::futex_wait(&self.tid, tid, SECOND);
        }
    }

    fn put(&self, pid: u32, request: Request) -> bool {
        let verb = match request {
            Request::Exclude(region) => {
                self.address.store(region.address, Ordering::Relaxed);
                self.length.store(region.length, Ordering::Relaxed);
                1
            }
            Request::Retire(why) => {
                self.code.store(why, Ordering::Relaxed);
                2
            }
        };
        self.answer.store(0, Ordering::Relaxed);
        self.verb.store(verb, Ordering::Release);
        loop {
            let agent = self.agent();
            match (self.answer.load(Ordering::Acquire), agent) {
                (0, Some(agent)) => sys::ring(pid, agent),
                (answer, _) => return answer == 1,
            }
            sys::futex_wait(&self.answer, 0, SECOND);
        }
    }

    fn take_turn(&self) -> bool {
        if self.turn.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return true;
        }
        // Marked as waited for, also by whoever gets it here: at worst somebody wakes nobody.
        while self.turn.swap(2, Ordering::Acquire) != 0 {
            if self.agent().is_none() {
                return false;
            }
            sys::futex_wait(&self.turn, 2, SECOND);
        }
        true
    }

    fn end_turn(&self) {
        if self.turn.swap(0, Ordering::Release) == 2 {
            sys::futex_wake(&self.turn);
        }
    }

    /// Whether something is asked that wasn't taken yet.
    pub(crate) fn is_asked(&self) -> bool {
        self.verb.load(Ordering::Acquire) != 0
    }

    /// What is asked, if anything is, taken by the agent.
    pub(crate) fn taken(&self) -> Option<Request> {
        let verb = self.verb.swap(0, Ordering::Acquire);
        match verb {
            1 => {
                let address = self.address.load(Ordering::Relaxed);
                let length = self.length.load(Ordering::Relaxed);
                Some(Request::Exclude(Region { address, length }))
            }
            2 => Some(Request::Retire(self.code.load(Ordering::Relaxed))),
            _ => None,
        }
    }

    /// Answers what was taken.
    pub(crate) fn answer(&self, done: bool) {
        self.answer.store(if done { 1 } else { 2 }, Ordering::Release);
        sys::futex_wake(&self.answer);
    }
}

const _: () = assert!(size_of::<Control>() <= PAGE);
