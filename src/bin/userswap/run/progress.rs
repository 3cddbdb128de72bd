//! A line on the terminal that says how far something long is.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The line; it goes when this is dropped.
pub(crate) struct Shown {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Nothing is shown of what is done sooner.
const SOON: Duration = Duration::from_millis(500);

/// How often it is written anew.
const OFTEN: Duration = Duration::from_millis(250);

impl Shown {
    /// Shows what `say` says, from half a second on. `None` where standard error is no terminal.
    pub(crate) fn start(say: impl Fn() -> Option<String> + Send + 'static) -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            let mut wait = SOON;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                if let Some(line) = say() {
                    eprint!("\r\x1b[K{line}");
                    let _ = std::io::stderr().flush();
                }
                wait = OFTEN;
            }
            eprint!("\r\x1b[K");
        });
        Some(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
