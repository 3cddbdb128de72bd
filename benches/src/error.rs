//! What can go wrong with a benchmark.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a process.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] userswap_uffd::Error),
    /// A region of the own process.
    #[error("making a paged region")]
    Region(#[from] userswap_engine::local::RegionError),
    /// Moving out.
    #[error("moving pages out")]
    MoveOut(#[from] userswap_engine::EvictError),
    /// The daemon's side of a client.
    #[error("serving a client")]
    Server(#[from] userswap::ServerError),
    /// The client's side.
    #[error("becoming a client")]
    Client(#[from] userswap_ipc::ClientError),
    /// The store.
    #[error(transparent)]
    Store(#[from] userswap_stores::SpecError),
    /// Something in the arguments or in a file.
    #[error("{0}")]
    Input(String),
    /// A measured process failed.
    #[error("{who}: {reason}")]
    Child {
        /// Which.
        who: String,
        /// What it said.
        reason: String,
    },
    /// Pages came back with other bytes than they had.
    #[error("{who}: {pages} pages came back wrong")]
    Wrong {
        /// Whose pages.
        who: String,
        /// How many.
        pages: usize,
    },
    /// A program in a memory cgroup.
    #[error("the kernel killed the program for want of memory")]
    Killed,
    /// A program that was run.
    #[error("{program} failed: {message}")]
    Program {
        /// Its name.
        program: String,
        /// What it wrote to standard error.
        message: String,
    },
    /// No image.
    #[error("{path}: no page in it that isn't one word repeated")]
    NoPages {
        /// The file.
        path: PathBuf,
    },
    /// What goes between the processes.
    #[error("talking to a measured process")]
    Message(#[from] serde_json::Error),
}

impl Error {
    /// For an [`io::Error`]'s `map_err`.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// The error and what led to it, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            let _ = write!(line, ": {cause}");
            source = cause.source();
        }
        line
    }
}
