//! What can go wrong in a store.

use std::io;

use crate::PageKey;

/// What a store couldn't do.
///
/// | error | from `put` | from `fetch` |
/// |---|---|---|
/// | `Full` | page stays where it is; try again after frees or `maintain` | — |
/// | `NotFound` | — | page is **poisoned**: its contents are lost |
/// | `Corrupt` | — | page is **poisoned** |
/// | `Io`, retryable | page stays where it is; try again | try again a few times, then poisoned; the handle stays valid |
/// | `Io`, not retryable | page stays where it is | page is **poisoned** |
/// | `Closed` | page stays where it is; the store isn't used again | page is **poisoned** |
/// | `Unsupported` | page stays where it is; the caller is wrong | the caller is wrong; page is **poisoned** |
///
/// In no case does a program get zeros, or other bytes than its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room for the pages now.
    #[error("the store is full: {needed} bytes needed, {available} of {capacity} left")]
    Full {
        /// Bytes the page or batch that didn't fit would have taken, as far as known.
        needed: u64,
        /// Bytes left of the capacity.
        available: u64,
        /// The capacity.
        capacity: u64,
    },
    /// The handle names no page, or a page with another key.
    #[error("the store has no {key}")]
    NotFound {
        /// The page asked for.
        key: PageKey,
    },
    /// The page is there, but its bytes aren't what was put.
    #[error("{key} is damaged in the store: {what}")]
    Corrupt {
        /// The page asked for.
        key: PageKey,
        /// What gave it away, such as "checksum".
        what: &'static str,
    },
    /// The operating system or a device refused.
    #[error("{doing} failed")]
    Io {
        /// What the store was doing, such as "reading an extent".
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The store was closed, or the thread or peer behind it is gone.
    #[error("the store is closed")]
    Closed,
    /// The caller asked for what this store doesn't do.
    #[error("the store doesn't support {what}")]
    Unsupported {
        /// What it doesn't support, as a noun.
        what: &'static str,
    },
}

impl StoreError {
    /// The same call may succeed later without anything having been lost.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::OutOfMemory
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
            ),
            Self::NotFound { .. } | Self::Corrupt { .. } | Self::Closed | Self::Unsupported { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OwnerId;

    #[test]
    fn lost_pages_are_not_retryable_and_waits_are() {
        let key = PageKey { owner: OwnerId(1), page: 2, generation: 3 };
        let io = |kind: io::ErrorKind| StoreError::Io { doing: "reading", source: kind.into() };
        assert!(StoreError::Full { needed: 1, available: 0, capacity: 0 }.is_retryable());
        assert!(io(io::ErrorKind::TimedOut).is_retryable());
        assert!(!io(io::ErrorKind::UnexpectedEof).is_retryable());
        assert!(!StoreError::NotFound { key }.is_retryable());
        assert!(!StoreError::Corrupt { key, what: "checksum" }.is_retryable());
        assert!(!StoreError::Closed.is_retryable());
    }
}
