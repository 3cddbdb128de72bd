//! Threads the program makes, and the memory the kernel writes to when they end.
//!
//! The C library has the kernel clear a word in a thread's control block when the thread is gone, and wake whoever joins it. A
//! thread that far gone is served no page any more: were that one out, the word would stay as it was, and the join never return.
//! So a thread is entered in a table with its control block before its own code runs, and those pages aren't moved. The daemon
//! leaves stacks alone as far as it can tell them from other memory; this holds whatever it takes them for, and whenever it looked.
//!
//! A thread that is entered while pages are being moved waits for the end of that: either the move has seen its entry, or its
//! block comes back as it goes on. What an ended thread leaves is cleared by whoever needs the place, or the page.

use core::arch::{asm, naked_asm};
use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::control::{self, Control};
use crate::state::STATE;
use crate::sys::{self, Errno, PAGE};
use crate::wire::Region;

/// Threads that can be told apart at once.
const PLACES: usize = 1 << 14;

/// Threads that a program has or had. In the agent's block, all zeros at first.
#[repr(C)]
pub(crate) struct Threads {
    /// Places that were ever taken.
    top: AtomicUsize,
    /// Of those, how many aren't.
    free: AtomicUsize,
    /// Not 0 once there were more threads than places.
    overflowed: AtomicU32,
    places: [Place; PLACES],
}

#[repr(C)]
struct Place {
    /// The thread's number, [`STARTING`] or 0 for nobody; above that how often the place was taken.
    owner: AtomicU64,
    /// Where the thread's control block begins; 0 until the thread runs.
    block: AtomicUsize,
    /// The thread's own function, and its argument.
    start: AtomicUsize,
    argument: AtomicUsize,
}

/// Stands for a thread that has no number yet.
const STARTING: u64 = u32::MAX as u64;

/// The part of [`Place::owner`] that is a thread's number.
const NUMBER: u64 = u32::MAX as u64;

/// What is said of a control block: it reaches no further. The C libraries' take less.
const CONTROL_BLOCK: usize = 3072;

/// pthread_create(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut usize,
    attributes: *const u8,
    start: usize,
    argument: usize,
) -> c_int {
    let Some(next) = STATE.next.pthread_create() else { return Errno::NOSYS.0 };
    // SAFETY: the caller's promise; `enter` goes on with the caller's function and its argument.
    enter_first(start, argument, |start, argument| unsafe { next(thread, attributes, start, argument) })
}

/// thrd_create(3).
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn thrd_create(thread: *mut usize, start: usize, argument: usize) -> c_int {
    const THRD_ERROR: c_int = 2;
    let Some(next) = STATE.next.thrd_create() else { return THRD_ERROR };
    // SAFETY: as above.
    enter_first(start, argument, |start, argument| unsafe { next(thread, start, argument) })
}

/// Makes a thread that is entered first, if there is an agent that could move anything.
fn enter_first(start: usize, argument: usize, create: impl FnOnce(usize, usize) -> c_int) -> c_int {
    let Some(block) = STATE.block().filter(|&block| Control::of_block(block).agent().is_some()) else {
        return create(start, argument);
    };
    let threads = Threads::of_block(block);
    let Some(place) = threads.take(start, argument) else { return create(start, argument) };
    let owner = place.owner.load(Ordering::Relaxed);
    let failed = create(enter as *const () as usize, core::ptr::from_ref(place).expose_provenance());
    if failed != 0 {
        threads.release(place, owner);
    }
    failed
}

/// Where a thread starts: enters it, and goes on to its own function without leaving a frame.
#[unsafe(naked)]
unsafe extern "C" fn enter(place: usize) {
    naked_asm!(
        "sub rsp, 8",
        "call {entered}",
        "add rsp, 8",
        "mov rdi, rdx",
        "jmp rax",
        entered = sym entered,
    )
}

/// A function and its argument, in two registers.
#[repr(C)]
struct Entered {
    start: usize,
    argument: usize,
}

extern "C" fn entered(place: usize) -> Entered {
    // SAFETY: `enter_first` passed it; tables are never unmapped, and all bytes of a place are values.
    let place = unsafe { &*core::ptr::with_exposed_provenance::<Place>(place) };
    let to = Entered {
        start: place.start.load(Ordering::Relaxed),
        argument: place.argument.load(Ordering::Relaxed),
    };
    place.block.store(thread_pointer(), Ordering::Relaxed);
    let taken = place.owner.load(Ordering::Relaxed) & !NUMBER;
    place.owner.store(taken | u64::from(sys::gettid()), Ordering::Release);
    if let Some(control) = STATE.control() {
        control.moving().await_end();
    }
    to
}

/// Where this thread's control block is: the C libraries put its own address first.
fn thread_pointer() -> usize {
    let at: usize;
    // SAFETY: the block is there as soon as a thread is.
    unsafe { asm!("mov {}, qword ptr fs:[0]", out(reg) at, options(nostack, preserves_flags, readonly)) };
    at
}

impl Threads {
    /// The table in an agent's block.
    pub(crate) fn of_block(block: usize) -> &'static Self {
        let at = core::ptr::with_exposed_provenance::<Self>(control::threads_at(block));
        // SAFETY: a block is never unmapped once it is remembered; the table is reached through atomics alone, all of whose bytes
        // are values.
        unsafe { &*at }
    }

    /// The first page of a range that is to stay, for a thread may end there. While a move is announced by [`Moving`](crate::moving::Moving).
    pub(crate) fn first_kept(&self, range: Region) -> Option<u64> {
        if self.overflowed.load(Ordering::Acquire) != 0 {
            return Some(range.address);
        }
        let end = range.address + range.length;
        let top = self.top.load(Ordering::Acquire).min(PLACES);
        let mut first = None;
        for place in self.places.iter().take(top) {
            let block = place.block.load(Ordering::Acquire);
            let owner = place.owner.load(Ordering::Acquire);
            if block == 0 || owner & NUMBER == 0 {
                continue;
            }
            let from = (block & !(PAGE - 1)) as u64;
            let to = (block + CONTROL_BLOCK).next_multiple_of(PAGE) as u64;
            if from < end && range.address < to && !self.release_ended(place, owner) {
                let kept = from.max(range.address);
                first = Some(first.map_or(kept, |first: u64| first.min(kept)));
            }
        }
        first
    }

    /// A place for a thread about to be made; `None` if there is none, and then nothing is moved from now on.
    fn take(&self, start: usize, argument: usize) -> Option<&Place> {
        let place = self.take_free().or_else(|| self.take_new());
        let Some(place) = place else {
            self.overflowed.store(1, Ordering::Release);
            return None;
        };
        place.start.store(start, Ordering::Relaxed);
        place.argument.store(argument, Ordering::Relaxed);
        Some(place)
    }

    fn take_free(&self) -> Option<&Place> {
        let top = self.top.load(Ordering::Acquire).min(PLACES);
        if self.free.load(Ordering::Relaxed) == 0 && !self.sweep(top) {
            return None;
        }
        self.places.iter().take(top).find(|place| {
            let taken = take(place);
            if taken {
                let _ =
                    self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
            }
            taken
        })
    }

    fn take_new(&self) -> Option<&Place> {
        loop {
            let place = self.places.get(self.top.fetch_add(1, Ordering::AcqRel));
            match place {
                Some(place) if take(place) => return Some(place),
                // Somebody saw it as free before this did.
                Some(_) => {}
                None => {
                    self.top.store(PLACES, Ordering::Release);
                    return None;
                }
            }
        }
    }

    /// Clears what ended threads left. Not each time that places are wanting, only when the table would double: so it costs each
    /// thread a call or two. Whether there are enough free ones then.
    fn sweep(&self, top: usize) -> bool {
        if !top.is_power_of_two() {
            return false;
        }
        for place in self.places.iter().take(top) {
            let owner = place.owner.load(Ordering::Acquire);
            if owner & NUMBER != 0 {
                self.release_ended(place, owner);
            }
        }
        let free = self.free.load(Ordering::Relaxed);
        free * 2 >= top || free > 0 && top == PLACES
    }

    /// Clears a place if its thread is gone; whether it is.
    fn release_ended(&self, place: &Place, owner: u64) -> bool {
        let ended = owner & NUMBER != STARTING && sys::is_gone(sys::getpid(), owner as u32);
        if ended {
            self.release(place, owner);
        }
        ended
    }

    /// Clears a place, unless somebody did, or it has another owner by now.
    fn release(&self, place: &Place, owner: u64) {
        let none = owner & !NUMBER;
        if place.owner.compare_exchange(owner, none, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.free.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Takes a place that is free.
fn take(place: &Place) -> bool {
    let owner = place.owner.load(Ordering::Acquire);
    let mine = (owner | NUMBER).wrapping_add(1) | STARTING;
    let taken = owner & NUMBER == 0
        && place.owner.compare_exchange(owner, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if taken {
        place.block.store(0, Ordering::Release);
    }
    taken
}
