//! Why the server, or something asked of it, failed, and how that is told.

use super::telling::Telling;
use std::io;
use std::time::Instant;
use userswap_engine::{EvictError, MemoryError};
use userswap_ipc::{LinkError, TransportError};

/// Why the server, or something asked of it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Listening, or talking to a client.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A client was not taken on.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel refused something about a client.
    #[error(transparent)]
    Kernel(#[from] userswap_uffd::Error),
    /// Threads, memory or descriptors could not be had.
    #[error("{doing}")]
    Start {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A client's user isn't allowed.
    #[error("process {pid} of user {uid} is not allowed here; start the daemon with that user allowed")]
    NotAllowed {
        /// The client.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// Too many of a user's processes want to be taken on at once.
    #[error("process {pid} of user {uid} has to wait: so many others of that user are just being taken on")]
    Crowd {
        /// The client.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// So many of a user's processes are clients already.
    #[error(
        "process {pid} of user {uid} is not taken on: {most} processes of that user are served already (--clients-per-user)"
    )]
    ManyClients {
        /// The client.
        pid: u32,
        /// Its user.
        uid: u32,
        /// How many may be.
        most: usize,
    },
    /// The descriptors that are left are for those who are served.
    #[error(
        "process {pid} is not taken on: the daemon has hardly any descriptors left (RLIMIT_NOFILE), which those it serves may need"
    )]
    Descriptors {
        /// The client.
        pid: u32,
    },
    /// A client's page table can't be read; it is left alone for good.
    #[error("the page table of process {pid} can't be read (the daemon needs CAP_SYS_PTRACE)")]
    NoPagemap {
        /// The client.
        pid: u32,
        /// Why.
        source: userswap_uffd::Error,
    },
    /// A client's swap area is too small for one slot.
    #[error("a swap area of {bytes} bytes is too small for one slot")]
    SmallArea {
        /// Its size.
        bytes: u64,
    },
    /// No such client.
    #[error("process {pid} is no client")]
    NoClient {
        /// The process asked for.
        pid: u32,
    },
    /// Moving out stopped.
    #[error(transparent)]
    Evict(#[from] EvictError),
    /// The client is gone.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Ends this process without giving anything up: what it has open another one has, too.
pub(super) fn end_at_once(error: &dyn std::error::Error) -> ! {
    tracing::error!(error = %chain(error), "this worker can't serve, and ends");
    std::process::exit(CANNOT_SERVE)
}

/// The status of a worker that can't serve.
const CANNOT_SERVE: i32 = 70;

/// Says why a client was not taken on. That it was gone sooner is what short lives come to, and no news.
pub(super) fn tell_refused(error: &ServerError, telling: &Telling) {
    let gone = match error {
        ServerError::Link(LinkError::Closed | LinkError::Transport(TransportError::Closed))
        | ServerError::Memory(MemoryError::Gone) => true,
        ServerError::Kernel(source) | ServerError::NoPagemap { source, .. } => {
            matches!(source, userswap_uffd::Error::Gone { .. })
        }
        _ => false,
    };
    if gone {
        tracing::debug!(error = %chain(error), "a client was not taken on");
    } else if let Some(untold) = telling.may(Instant::now()) {
        tracing::warn!(error = %chain(error), untold, "a client was not taken on");
    }
}

/// An error with its reasons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text.push_str(": ");
        text.push_str(&reason.to_string());
        source = reason.source();
    }
    text
}
