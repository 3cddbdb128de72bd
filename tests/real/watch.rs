//! Waiting that ends: a program that hangs is ended with all it started, and its test fails by its name.

pub(crate) use crate::waiting::{is_long, rounds};

use crate::waiting::LONG;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};

/// Ends the process, and all that was started under its eyes, saying whose fault it is, if it isn't dropped in time.
pub(crate) struct Watchdog {
    groups: Arc<Mutex<Vec<u32>>>,
    _end: Sender<()>,
}

impl Watchdog {
    /// Watches over the test `name`; in the long run, for as much longer as that takes.
    pub(crate) fn new(name: &'static str) -> Self {
        let time = if is_long() { LONG * 6 } else { LONG };
        let groups = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = channel();
        let watched = Arc::clone(&groups);
        std::thread::spawn(move || {
            if ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                eprintln!("HUNG: {name}");
                kill(&watched);
                std::process::abort();
            }
        });
        Self { groups, _end: end }
    }

    /// Starts a command as the first of a process group, all of which ends with this test.
    pub(crate) fn start(&self, command: &mut Command) -> Child {
        let child = command.process_group(0).spawn().unwrap();
        self.groups.lock().unwrap().push(child.id());
        child
    }
}

impl Drop for Watchdog {
    /// Nothing is left where a test fails, either.
    fn drop(&mut self) {
        kill(&self.groups);
    }
}

/// All of a group at once: a program whose daemon alone is killed waits for ever.
fn kill(groups: &Mutex<Vec<u32>>) {
    for group in groups.lock().unwrap().drain(..) {
        let all = format!("-{group}");
        let _ = Command::new("kill").args(["-KILL", "--", &all]).stderr(std::process::Stdio::null()).status();
    }
}
