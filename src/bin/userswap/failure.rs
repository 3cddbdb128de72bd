//! What is said, and with which status the program ends, when something can't be done.

use crate::logs;
use std::error::Error;
use std::process::ExitCode;
use userswap::daemon::control::{ControlError, RefusalKind};
use userswap::daemon::{KeeperError, ServerError};

/// A sentence for the operator, and a status for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    status: Status,
}

/// What the program ends with, `run` apart (there everything of ours is 125).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Something failed that has no status of its own.
    Failed = 1,
    /// What was asked for makes no sense: an argument, a store, a configuration.
    Usage = 2,
    /// It isn't permitted.
    NotPermitted = 3,
    /// A socket is in use.
    InUse = 4,
    /// No daemon answers.
    NoDaemon = 5,
    /// No client has that process id.
    NoClient = 6,
    /// `doctor` found something missing without which nothing works.
    Unfit = 7,
    /// `run` couldn't do its part.
    Ours = 125,
    /// The command can't be run.
    NotExecutable = 126,
    /// There is no such command.
    NotFound = 127,
}

impl Failure {
    pub(crate) fn new(status: Status, sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), status }
    }

    /// What was being done, and why it failed.
    pub(crate) fn of(doing: &str, error: &(dyn Error + 'static)) -> Self {
        Self::new(status_of(error), format!("{doing}: {}", chain(error)))
    }

    /// The same with another status.
    pub(crate) fn with(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Says it and ends this process, dropping nothing.
    pub(crate) fn end_at_once(self) -> ! {
        logs::say(&self.sentence);
        std::process::exit(self.status as i32)
    }

    /// Says it, and gives the status to end with.
    pub(crate) fn report(self) -> ExitCode {
        logs::say(&self.sentence);
        ExitCode::from(self.status as u8)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::new(status_of(&error), chain(&error))
    }
}

/// An error with its reasons, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        let reason_text = reason.to_string();
        // Some say their reason themselves.
        if !text.ends_with(&reason_text) {
            text.push_str(": ");
            text.push_str(&reason_text);
        }
        source = reason.source();
    }
    text
}

/// The status for an error: by what it is, or by what the kernel said at the bottom of it.
fn status_of(error: &(dyn Error + 'static)) -> Status {
    let mut next = Some(error);
    while let Some(error) = next {
        let control = match error.downcast_ref() {
            Some(KeeperError::Control(error)) => Some(error),
            _ => error.downcast_ref::<ControlError>(),
        };
        if let Some(error) = control {
            match error {
                ControlError::InUse { .. } | ControlError::NotASocket { .. } => return Status::InUse,
                ControlError::Connect { source, .. }
                    if source.kind() != std::io::ErrorKind::PermissionDenied =>
                {
                    return Status::NoDaemon;
                }
                ControlError::Refused(refusal) if refusal.kind == RefusalKind::NoClient => {
                    return Status::NoClient;
                }
                _ => {}
            }
        }
        let transport = match (error.downcast_ref(), error.downcast_ref()) {
            (Some(ServerError::Transport(error)), _) | (_, Some(KeeperError::Listen(error))) => Some(error),
            _ => None,
        };
        if let Some(error) = transport {
            use userswap_ipc::TransportError;
            if matches!(error, TransportError::InUse { .. } | TransportError::NotASocket { .. }) {
                return Status::InUse;
            }
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::PermissionDenied
        {
            return Status::NotPermitted;
        }
        next = error.source();
    }
    Status::Failed
}

/// Says what is wrong with the arguments, or prints the help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // Whoever calls `run` tells our failures from the command's by this.
    let of_run = std::env::args_os().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    ExitCode::from(if of_run.is_some_and(|word| word == "run") { Status::Ours } else { Status::Usage } as u8)
}
