//! What can go wrong, said as what was being done to what.

use std::io;

use crate::{Features, RegisterMode, Span, SpanError};

/// An operation that failed in a way its caller didn't plan for. Answers a caller does plan for are
/// [`Stop`](crate::Stop)s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/userfaultfd` couldn't be opened.
    #[error("opening /dev/userfaultfd")]
    OpenDevice(#[source] io::Error),
    /// The kernel gave no userfaultfd.
    #[error("creating a userfaultfd by {through}")]
    Create {
        /// The way it was tried.
        through: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The descriptor is something else.
    #[error("a userfaultfd was expected, the descriptor is {found}")]
    NotUserfaultfd {
        /// What it is, as `/proc/self/fd` says.
        found: String,
    },
    /// The handshake was refused.
    #[error("userfaultfd handshake asking for {wanted:?}")]
    Handshake {
        /// What was asked for last.
        wanted: Features,
        /// The kernel's answer. `EINVAL` also means that the handshake has been made before.
        source: io::Error,
    },
    /// A range couldn't be registered.
    #[error("registering {span:?} ({mode:?})")]
    Register {
        /// The range.
        span: Span,
        /// What for.
        mode: RegisterMode,
        /// The kernel's answer: `EBUSY` another userfaultfd has some of it, `EINVAL` nothing is mapped there or it's of a kind that can't be
        /// registered, `ENOMEM` too many mappings.
        source: io::Error,
    },
    /// Something about a range failed.
    #[error("{doing} {span:?}")]
    Range {
        /// What was being done.
        doing: &'static str,
        /// To what.
        span: Span,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else failed.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process, or its memory, is gone.
    #[error("process {pid} is gone")]
    Gone {
        /// Its number, which may be another's by now.
        pid: u32,
    },
    /// Another process has nothing readable at an address.
    #[error("process {pid} has nothing readable at {addr:#x}")]
    Unreadable {
        /// Whose memory.
        pid: u32,
        /// The first address that couldn't be read.
        addr: u64,
    },
    /// An answer from the kernel isn't of the shape it should have.
    #[error("{what}: {found}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What was found there.
        found: String,
    },
    /// A buffer of the wrong size.
    #[error("{what}: {found} bytes, expected {expected}")]
    WrongSize {
        /// The buffer.
        what: &'static str,
        /// Its size in bytes.
        found: usize,
        /// What it should be, in bytes.
        expected: usize,
    },
    /// Numbers that aren't a range.
    #[error("not a range of pages")]
    Span(#[from] SpanError),
}

impl Error {
    /// The kernel's error number behind this, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::OpenDevice(source)
            | Error::Create { source, .. }
            | Error::Handshake { source, .. }
            | Error::Register { source, .. }
            | Error::Range { source, .. }
            | Error::System { source, .. } => source.raw_os_error(),
            Error::Gone { .. } => Some(libc::ESRCH),
            Error::Unreadable { .. } => Some(libc::EFAULT),
            _ => None,
        }
    }

    /// That a process or thread is gone, where something of it in /proc isn't there; else that `doing` this failed.
    pub(crate) fn gone_or(pid: u32, doing: &'static str, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid },
            _ => Error::system(doing, source),
        }
    }

    pub(crate) fn system(doing: &'static str, source: impl Into<io::Error>) -> Error {
        Error::System { doing, source: source.into() }
    }

    pub(crate) fn range(doing: &'static str, span: Span, source: impl Into<io::Error>) -> Error {
        Error::Range { doing, span, source: source.into() }
    }
}
