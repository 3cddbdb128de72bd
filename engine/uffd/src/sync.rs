//! What locks are made of. In one place, for `tests/loom` to compile them of something else, by which it tries every interleaving.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex::{self, Flags, Timespec};

/// A wait of so many rounds is cheaper than a sleep.
pub(crate) const SPINS: u32 = 200;

/// Sleeps while the word holds this; anything else that ends it is for the caller to find out by looking.
pub(crate) fn sleep(word: &AtomicU32, expected: u32, patience: Option<Duration>) {
    let patience = patience.map(|patience| Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    });
    let _ = futex::wait(word, Flags::PRIVATE, expected, patience.as_ref());
}

/// Wakes up to so many threads that sleep there.
pub(crate) fn rouse(word: &AtomicU32, threads: u32) {
    let _ = futex::wake(word, Flags::PRIVATE, threads);
}
