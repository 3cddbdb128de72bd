//! Waiting that ends: a test that hangs fails by its name.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Longer than anything takes that doesn't hang. No test passes or fails by it otherwise.
pub const LONG: Duration = Duration::from_secs(300);

/// Ends the process, saying whose fault it is, if it isn't dropped in time: threads that wait for a page that never comes
/// can't be ended in any other way.
pub struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Watches over the test `name` for [`LONG`], or as much longer as long versions take.
    pub fn new(name: &'static str) -> Self {
        let time = if is_long() { LONG * 20 } else { LONG };
        let (end, ended) = channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                eprintln!("HUNG: {name}");
                std::process::abort();
            }
        });
        Self { _end: end }
    }
}

/// Looks until `done` says so.
///
/// # Panics
/// When it doesn't for `LONG`.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let looks = LONG.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if done() {
            return;
        }
        std::thread::sleep(LOOK);
    }
    panic!("never came to be: {what}");
}

const LOOK: Duration = Duration::from_millis(2);

/// Whether the long versions of tests are wanted.
pub fn is_long() -> bool {
    std::env::var_os("USERSWAP_LONG").is_some_and(|value| value == "1")
}

/// `short` in the normal run, `long` in the long one.
pub fn rounds(short: u64, long: u64) -> u64 {
    if is_long() { long } else { short }
}
