//! Waiting on a word in memory that processes share.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use crate::Error;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Someone called [`wake`], or nobody did and the thread woke all the same: look at the word.
    Woken,
    /// The word didn't hold what it was expected to.
    Changed,
    /// The time was up.
    TimedOut,
    /// A signal came.
    Interrupted,
}

/// Sleeps while `word` holds `expected`, `timeout` at most. Works across processes.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Result<Waited, Error> {
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    match futex::wait(word, Flags::empty(), expected, timeout.as_ref()) {
        Ok(()) => Ok(Waited::Woken),
        Err(Errno::AGAIN) => Ok(Waited::Changed),
        Err(Errno::TIMEDOUT) => Ok(Waited::TimedOut),
        Err(Errno::INTR) => Ok(Waited::Interrupted),
        Err(e) => Err(Error::system("waiting on a shared word", e)),
    }
}

/// Wakes up to `threads` sleepers of `word`, of any process; how many were woken.
pub fn wake(word: &AtomicU32, threads: u32) -> Result<usize, Error> {
    // The kernel counts in signed numbers.
    let threads = threads.min(i32::MAX.unsigned_abs());
    futex::wake(word, Flags::empty(), threads)
        .map_err(|e| Error::system("waking sleepers of a shared word", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_word_that_differs_is_not_waited_for() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 8, None).unwrap(), Waited::Changed);
    }

    #[test]
    fn time_runs_out() {
        let word = AtomicU32::new(7);
        assert_eq!(wait(&word, 7, Some(Duration::from_millis(1))).unwrap(), Waited::TimedOut);
        assert_eq!(wake(&word, u32::MAX).unwrap(), 0);
    }

    #[test]
    fn a_sleeper_is_woken() {
        let word = Arc::new(AtomicU32::new(0));
        let sleeper = {
            let word = Arc::clone(&word);
            std::thread::spawn(move || {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, None).unwrap();
                }
            })
        };
        word.store(1, Ordering::Release);
        // Too early or just right: either way the sleeper sees the 1, before sleeping or after this.
        wake(&word, 1).unwrap();
        sleeper.join().unwrap();
    }
}
