//! A daemon under test, of two processes: its sockets are `s` and `c` in its place, and its log is `log`.

use crate::support::{Place, signal, until};
use std::path::PathBuf;
use std::process::{Child, Command};
use userswap::daemon::control::{Operator, Request, Status};

pub(crate) struct Daemon {
    pub(crate) keeper: Child,
    pub(crate) control: PathBuf,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Self {
        Self::of(place.userswap(&[]), place, arguments)
    }

    /// By another program.
    pub(crate) fn of(mut program: Command, place: &Place, arguments: &[&str]) -> Self {
        let log = place.path("log");
        program.args(["daemon", "--listen", &place.at("s"), "--control", &place.at("c")]).args(arguments);
        let keeper = program.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        let daemon = Self { keeper, control: place.path("c"), log };
        daemon.status();
        daemon
    }

    pub(crate) fn operator(&self) -> Operator {
        until("the daemon answers", || Operator::connect(&self.control).ok())
    }

    pub(crate) fn status(&self) -> Status {
        until("the daemon answers", || Operator::connect(&self.control).ok()?.ask(Request::Status).ok())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it in good order.
    pub(crate) fn end(&mut self) {
        signal(self.keeper.id(), "TERM");
        assert!(self.keeper.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            // Standard error is shown with a failure wherever tests are run.
            eprintln!("the daemon's last lines:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
