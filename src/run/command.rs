//! The command: started with the object beside it, its signals passed on, its end awaited.

use super::program::Program;
use super::signals::{Arrived, Signals, enter};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;
use userswap_preload::socket_value_with;

/// A running command.
#[derive(Debug)]
pub struct Command {
    pid: Pid,
    /// It has ended and its number may be another's by now.
    ended: Option<Ended>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ended {
    /// What a shell would say: the status, or 128 and the signal's number.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => 128 + signal,
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }
}

/// Why a command couldn't be started.
#[derive(Debug, thiserror::Error)]
#[error("starting {program}")]
pub struct LaunchError {
    /// It.
    pub program: String,
    /// Why.
    pub source: io::Error,
}

impl LaunchError {
    /// The status a shell ends with for it: 127 if there is nothing, 126 if it can't be run.
    pub fn code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// What a command is started with.
#[derive(Debug)]
pub struct Beside<'a> {
    /// The object's file.
    pub object: &'a Path,
    /// Where the daemon is, as the object wants it told.
    pub address: &'a OsStr,
    /// How long the command may wait for its memory once the daemon has ended without bringing it back, before it is ended; nothing: for ever.
    pub patience: Duration,
    /// To a control group that the command shall be in.
    pub door: Option<OwnedFd>,
}

impl Command {
    /// Starts `program` under the name `words[0]` with the arguments behind it.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn start(
        program: &Program,
        words: &[OsString],
        beside: Beside<'_>,
        signals: &Signals,
    ) -> Result<Self, LaunchError> {
        let mut command = std::process::Command::new(&program.path);
        if let Some((name, arguments)) = words.split_first() {
            command.arg0(name).args(arguments);
        }
        command.env("LD_PRELOAD", preload_list(beside.object, std::env::var_os("LD_PRELOAD").as_deref()));
        command.env("USERSWAP_SOCKET", socket_value_with(beside.address, beside.patience));
        if let Some(door) = beside.door {
            enter(&mut command, door);
        }
        signals.give_back_in(&mut command);
        let failed = |source| LaunchError { program: program.path.display().to_string(), source };
        let child = command.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        Ok(Self { pid, ended: None })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Waits for signals for at most `time` and passes on what came.
    pub fn attend(&mut self, signals: &Signals, time: Duration) {
        let time = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let mut fds = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&time));
        while let Some(arrived) = signals.next() {
            self.pass_on(arrived);
        }
        // A SIGCHLD that came before somebody else's and was merged with it isn't missed.
        self.look();
    }

    fn pass_on(&mut self, arrived: Arrived) {
        if arrived.number == libc::SIGCHLD || self.ended.is_some() {
            return;
        }
        // The terminal tells its whole foreground group, of which the command is one. To go on is told twice without harm.
        if (arrived.sent || arrived.number == libc::SIGCONT)
            && let Some(signal) = Signal::from_named_raw(arrived.number)
        {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// Takes note of its end; stops with it when it stops.
    fn look(&mut self) {
        while self.ended.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
            match rustix::process::waitid(WaitId::Pid(self.pid), options) {
                Ok(Some(status)) if status.stopped() => {
                    // Whoever started us, a shell with job control, sees the job stopped; SIGCONT to the group wakes both. Until then the
                    // stopped command needs no faults served.
                    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
                }
                Ok(Some(status)) => {
                    self.ended = Some(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Ended::Exited(code),
                        (None, signal) => Ended::Killed(signal.unwrap_or(libc::SIGKILL)),
                    });
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => return,
                // Somebody else waited for it; nothing more will be known.
                Err(_) => self.ended = Some(Ended::Exited(125)),
            }
        }
    }
}

/// The object first, then what was to be loaded anyway.
fn preload_list(object: &Path, others: Option<&OsStr>) -> OsString {
    let mut list = object.as_os_str().to_owned();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(Ended::Exited(3).code(), 3);
        assert_eq!(Ended::Killed(libc::SIGTERM).code(), 143);
    }

    #[test]
    fn what_was_to_be_loaded_still_is() {
        let object = Path::new("/tmp/a.so");
        assert_eq!(preload_list(object, None), "/tmp/a.so");
        assert_eq!(preload_list(object, Some(OsStr::new(""))), "/tmp/a.so");
        assert_eq!(preload_list(object, Some(OsStr::new("b.so c.so"))), "/tmp/a.so:b.so c.so");
    }
}
