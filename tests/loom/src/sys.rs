//! The system calls of the shared object, as far as they are needed.

use crate::sync::{AtomicU32, rouse, sleep};

/// As the shared object's.
pub fn futex_wait(word: &AtomicU32, seen: u32, _nanoseconds: u64) {
    sleep(word, seen, None);
}

/// As the shared object's: everybody.
pub fn futex_wake(word: &AtomicU32) {
    rouse(word, u32::MAX);
}
