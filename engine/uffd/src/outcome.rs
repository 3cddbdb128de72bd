//! The kernel's answers as words: one table for every operation that fills, moves or protects pages.

use std::fmt;

/// What one operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "pages that weren't put in place leave their threads waiting"]
pub struct Outcome {
    /// Bytes from the start of the range that are as the operation wanted them.
    pub done: u64,
    /// Why it went no further; `None` when everything was done.
    pub stop: Option<Stop>,
}

/// Why an operation went no further than [`Outcome::done`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stop {
    /// The page is there already (`EEXIST`). Someone else resolved it: wake the range.
    Present,
    /// Ask again (`EAGAIN`). With nothing done, an event is unread, or is read and its thread hasn't run since: retry on the
    /// next message and on a timer. With something done, the next try, from there, tells the reason.
    Busy,
    /// Nothing that is registered is mapped there (`ENOENT`). MOVE alone asks that it be registered with the same userfaultfd: the others also
    /// fill what *another* userfaultfd of the process has registered.
    Unmapped,
    /// The process has exited (`ESRCH`).
    Gone,
    /// MOVE only: the page is pinned or shared with a fork (`EBUSY`).
    Pinned,
    /// MOVE only: the source has no page there, or one of the sides isn't mapped at all (`ENOENT`).
    Hole,
    /// No memory for the page (`ENOMEM`).
    NoMemory,
    /// CONTINUE: the page isn't in the page cache. COPY: the source can't be read (`EFAULT`).
    Fault,
    /// The range or the mode makes no sense for this operation, or the kernel doesn't know it (`EINVAL`, `ENOTTY`). For
    /// MOVE also: another process, or a mapping that isn't private, anonymous and writable on both sides.
    Invalid,
    /// Any other error number.
    Other(i32),
}

/// The operations whose answers the table covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// UFFDIO_COPY.
    Copy,
    /// UFFDIO_ZEROPAGE.
    Zeropage,
    /// UFFDIO_MOVE.
    Move,
    /// UFFDIO_POISON.
    Poison,
    /// UFFDIO_CONTINUE.
    Continue,
    /// UFFDIO_WRITEPROTECT, which has no result field: pass 0.
    WriteProtect,
}

impl Outcome {
    /// Turns an answer into words.
    ///
    /// `len` is what was asked for in bytes, `errno` what the ioctl failed with (`None`: it succeeded), `result` the
    /// structure's result field: bytes done, or a negative error number, or on kernels that don't write it what was there before, 0.
    pub fn from_kernel(operation: Operation, len: u64, errno: Option<i32>, result: i64) -> Outcome {
        let Some(errno) = errno else {
            return Outcome { done: len, stop: None };
        };
        // Only EAGAIN carries progress. A result of 0, -EAGAIN or anything beyond the request is no progress.
        let done = match u64::try_from(result) {
            Ok(bytes) if errno == libc::EAGAIN && bytes <= len => bytes,
            _ => 0,
        };
        Outcome { done, stop: Some(Stop::from_errno(operation, errno)) }
    }

    /// Whether everything was done.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.stop.is_none()
    }
}

impl Stop {
    fn from_errno(operation: Operation, errno: i32) -> Stop {
        match (operation, errno) {
            (_, libc::EEXIST) => Stop::Present,
            (_, libc::EAGAIN) => Stop::Busy,
            (Operation::Move, libc::ENOENT) => Stop::Hole,
            (_, libc::ENOENT) => Stop::Unmapped,
            (_, libc::ESRCH) => Stop::Gone,
            (Operation::Move, libc::EBUSY) => Stop::Pinned,
            (_, libc::ENOMEM) => Stop::NoMemory,
            (_, libc::EFAULT) => Stop::Fault,
            (_, libc::EINVAL | libc::ENOTTY) => Stop::Invalid,
            (_, other) => Stop::Other(other),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Present => "already present",
            Stop::Busy => "busy: an event is unread or not applied yet",
            Stop::Unmapped => "not mapped or not registered",
            Stop::Gone => "the process has exited",
            Stop::Pinned => "pinned or shared with a fork",
            Stop::Hole => "no page at the source",
            Stop::NoMemory => "no memory",
            Stop::Fault => "no such page in the page cache, or an unreadable source",
            Stop::Invalid => "not possible for this range",
            Stop::Other(errno) => return write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Operation::{Continue, Copy, Move, Poison, WriteProtect, Zeropage};
    use super::*;

    const LEN: u64 = 0x8000;
    const AGAIN: i64 = -(libc::EAGAIN as i64);
    const ALL: [Operation; 6] = [Copy, Zeropage, Move, Poison, Continue, WriteProtect];

    /// The whole table: operation, errno, result field, bytes done, stop.
    const TABLE: &[(Operation, i32, i64, u64, Stop)] = &[
        (Copy, libc::EEXIST, -17, 0, Stop::Present),
        (Zeropage, libc::EEXIST, -17, 0, Stop::Present),
        (Move, libc::EEXIST, -17, 0, Stop::Present),
        (Poison, libc::EEXIST, -17, 0, Stop::Present),
        (Continue, libc::EEXIST, -17, 0, Stop::Present),
        // The result field on EAGAIN isn't always written.
        (Copy, libc::EAGAIN, 0, 0, Stop::Busy),
        (Copy, libc::EAGAIN, AGAIN, 0, Stop::Busy),
        (Zeropage, libc::EAGAIN, 0, 0, Stop::Busy),
        (Zeropage, libc::EAGAIN, AGAIN, 0, Stop::Busy),
        (Move, libc::EAGAIN, 0, 0, Stop::Busy),
        (Move, libc::EAGAIN, AGAIN, 0, Stop::Busy),
        (Poison, libc::EAGAIN, AGAIN, 0, Stop::Busy),
        (Continue, libc::EAGAIN, AGAIN, 0, Stop::Busy),
        (WriteProtect, libc::EAGAIN, 0, 0, Stop::Busy),
        // Bytes done make it a partial success.
        (Copy, libc::EAGAIN, 0x3000, 0x3000, Stop::Busy),
        (Zeropage, libc::EAGAIN, 0x1000, 0x1000, Stop::Busy),
        (Move, libc::EAGAIN, 0x7000, 0x7000, Stop::Busy),
        (Poison, libc::EAGAIN, 0x1000, 0x1000, Stop::Busy),
        (Continue, libc::EAGAIN, 0x1000, 0x1000, Stop::Busy),
        // More than was asked for is not to be believed, nor is progress beside another error.
        (Copy, libc::EAGAIN, 0x9000, 0, Stop::Busy),
        (Copy, libc::EAGAIN, i64::MIN, 0, Stop::Busy),
        (Copy, libc::EFAULT, 0x1000, 0, Stop::Fault),
        (Copy, libc::ENOENT, -2, 0, Stop::Unmapped),
        (Zeropage, libc::ENOENT, -2, 0, Stop::Unmapped),
        (Poison, libc::ENOENT, -2, 0, Stop::Unmapped),
        (Continue, libc::ENOENT, -2, 0, Stop::Unmapped),
        (WriteProtect, libc::ENOENT, 0, 0, Stop::Unmapped),
        (Move, libc::ENOENT, -2, 0, Stop::Hole),
        (Move, libc::EBUSY, -16, 0, Stop::Pinned),
        (Copy, libc::EBUSY, -16, 0, Stop::Other(libc::EBUSY)),
        (Continue, libc::EFAULT, -14, 0, Stop::Fault),
        (Copy, libc::ENOSPC, -28, 0, Stop::Other(libc::ENOSPC)),
    ];

    #[test]
    fn every_row_of_the_table() {
        for &(operation, errno, result, done, stop) in TABLE {
            assert_eq!(
                Outcome::from_kernel(operation, LEN, Some(errno), result),
                Outcome { done, stop: Some(stop) },
                "{operation:?} errno {errno} result {result}"
            );
        }
    }

    #[test]
    fn rows_alike_for_every_operation() {
        for operation in ALL {
            assert!(Outcome::from_kernel(operation, LEN, None, 0).is_complete());
            assert_eq!(Outcome::from_kernel(operation, LEN, None, 0x8000).done, LEN);
            for (errno, stop) in [
                (libc::ESRCH, Stop::Gone),
                (libc::ENOMEM, Stop::NoMemory),
                (libc::EINVAL, Stop::Invalid),
                (libc::ENOTTY, Stop::Invalid),
                (libc::EPERM, Stop::Other(libc::EPERM)),
            ] {
                let answer = Outcome::from_kernel(operation, LEN, Some(errno), -i64::from(errno));
                assert_eq!(answer, Outcome { done: 0, stop: Some(stop) }, "{operation:?} {errno}");
            }
        }
    }
}
