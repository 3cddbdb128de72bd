//! How long threads waited for pages that were out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sums of one address space, by thread: threads are told apart by a few bits of their number, so that a program with many of them may seem to have some that
/// waited for others. Recording is two additions.
#[derive(Debug)]
pub struct Stalls {
    waited_ns: [AtomicU64; LANES],
    promoted: AtomicU64,
}

/// How long the threads of an address space have waited at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stalled {
    waited_ns: [u64; LANES],
    promoted: u64,
}

/// Threads told apart.
const LANES: usize = 32;

/// The way of a fault to its handler, and the thread's waking, which no clock of ours is there to see.
const WAY: Duration = Duration::from_micros(5);

impl Default for Stalls {
    fn default() -> Self {
        Self { waited_ns: std::array::from_fn(|_| AtomicU64::new(0)), promoted: AtomicU64::new(0) }
    }
}

impl Stalls {
    /// A page that was out is there again; a thread waited for it, and the fault was so long in our hands.
    pub(crate) fn record(&self, thread: u32, took: Duration) {
        let ns = u64::try_from((took + WAY).as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns[thread as usize % LANES].fetch_add(ns, Ordering::Relaxed);
        self.promoted.fetch_add(1, Ordering::Relaxed);
    }

    /// The sums as they are.
    pub fn now(&self) -> Stalled {
        Stalled {
            waited_ns: std::array::from_fn(|lane| self.waited_ns[lane].load(Ordering::Relaxed)),
            promoted: self.promoted.load(Ordering::Relaxed),
        }
    }
}

impl Stalled {
    /// How long the thread that waited longest did since `before`, and how many pages were waited for.
    pub fn since(&self, before: &Self) -> (Duration, u64) {
        let waited =
            self.waited_ns.iter().zip(&before.waited_ns).map(|(now, then)| now.saturating_sub(*then));
        (Duration::from_nanos(waited.max().unwrap_or(0)), self.promoted.saturating_sub(before.promoted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_that_waited_longest_counts_and_only_since_then() {
        let stalls = Stalls::default();
        stalls.record(7, Duration::from_millis(900));
        let before = stalls.now();
        for _ in 0..3 {
            stalls.record(1000, Duration::from_millis(2));
        }
        stalls.record(7, Duration::from_millis(5));
        assert_eq!(stalls.now().since(&before), (Duration::from_millis(6) + WAY * 3, 4));
        assert_eq!(stalls.now().since(&stalls.now()), (Duration::ZERO, 0));
    }
}
