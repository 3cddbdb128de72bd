//! How a page that isn't ready finds its way back.

use std::fmt;
use std::sync::Arc;

use crate::StoreError;

/// Whoever waits for pages that were [`Pending`](crate::Fetch::Pending).
pub trait Completion: Send + Sync {
    /// The fetch that was given `token` ended: with the page, valid during this call, or without.
    ///
    /// Called exactly once for each pending fetch, on a thread of the store's, with none of the store's locks held: it may
    /// call any method of the store. It returns soon, since the store's other completions may wait behind it.
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>);
}

/// The address a pending page is delivered to: a sink and the token by which the sink knows the fetch.
///
/// Stores clone it only if the fetch is pending; a clone costs one reference count.
#[derive(Clone)]
pub struct Waiter {
    sink: Arc<dyn Completion>,
    token: u64,
}

impl Waiter {
    /// Completions go to `sink`, under `token`.
    pub fn new(sink: Arc<dyn Completion>, token: u64) -> Self {
        Self { sink, token }
    }

    /// A waiter for callers that know the store answers at once; a completion is dropped.
    pub fn none() -> Self {
        struct Nobody;
        impl Completion for Nobody {
            fn complete(&self, _: u64, _: Result<&[u8], StoreError>) {}
        }
        Self::new(Arc::new(Nobody), 0)
    }

    /// The token the sink will be given.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// For the page that comes so many places later in a run.
    #[must_use]
    pub fn for_place(&self, place: u64) -> Self {
        Self { sink: Arc::clone(&self.sink), token: self.token.wrapping_add(place) }
    }

    /// Goes on to the next token, as for the next page of a run.
    pub fn advance(&mut self) {
        self.token = self.token.wrapping_add(1);
    }

    /// Delivers. Consumes the waiter, because a fetch completes once.
    pub fn complete(self, page: Result<&[u8], StoreError>) {
        self.sink.complete(self.token, page);
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("token", &self.token).finish_non_exhaustive()
    }
}
