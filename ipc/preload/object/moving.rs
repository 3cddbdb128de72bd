//! Threads that begin while pages are being moved.

use crate::sync::{AtomicU32, Ordering, fence};
use crate::sys;

/// Says that pages are being moved. In the control page, for a forked child has its own agent.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Moving {
    /// Odd while they are.
    count: AtomicU32,
    /// Threads that wait for the end.
    waiting: AtomicU32,
}

impl Moving {
    /// Moves something. Only the agent does, so there is one move at a time.
    pub(crate) fn during<T>(&self, action: impl FnOnce() -> T) -> T {
        self.count.fetch_add(1, Ordering::AcqRel);
        // Before the table is looked at: who isn't seen there sees this.
        fence(Ordering::SeqCst);
        let result = action();
        self.count.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) != 0 {
            sys::futex_wake(&self.count);
        }
        result
    }

    /// Waits for the end of a move that is under way.
    pub(crate) fn await_end(&self) {
        const SECOND: u64 = 1_000_000_000;
        fence(Ordering::SeqCst);
        let seen = self.count.load(Ordering::Acquire);
        if seen.is_multiple_of(2) {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.count.load(Ordering::Acquire) == seen {
            sys::futex_wait(&self.count, seen, SECOND);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
