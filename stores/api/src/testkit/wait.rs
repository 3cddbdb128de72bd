//! Fetching as if every store answered at once.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::{Completion, Fetch, Handle, PageKey, Store, StoreError, Waiter};

/// How long a pending page may take: a store that needs longer has forgotten it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fetches a page, waiting for it if it is pending.
///
/// # Errors
/// The store's; [`StoreError::Closed`] if a pending page doesn't come.
pub fn fetch_and_wait(store: &dyn Store, handle: Handle, key: PageKey) -> Result<Vec<u8>, StoreError> {
    let mut page = vec![0xa5; store.capabilities().page_size];
    let mailbox = Mailbox::new(1);
    match store.fetch(handle, key, &mut page, &Waiter::new(mailbox.clone(), 0))? {
        Fetch::Ready => Ok(page),
        Fetch::Pending => mailbox.wait(0),
    }
}

type Arrived = Result<Vec<u8>, StoreError>;

/// A sink that keeps what comes.
pub(super) struct Mailbox {
    pages: Mutex<Vec<Option<Arrived>>>,
    came: Condvar,
}

impl Mailbox {
    /// For tokens from 0 to `tokens`, exclusive.
    pub(super) fn new(tokens: usize) -> Arc<Self> {
        Arc::new(Self { pages: Mutex::new((0..tokens).map(|_| None).collect()), came: Condvar::new() })
    }

    /// What came under this token, once it has come.
    pub(super) fn wait(&self, token: usize) -> Result<Vec<u8>, StoreError> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = |pages: &mut Vec<Option<Arrived>>| pages.get(token).is_some_and(Option::is_none);
        let (mut pages, _) =
            self.came.wait_timeout_while(pages, PATIENCE, empty).unwrap_or_else(PoisonError::into_inner);
        pages.get_mut(token).and_then(Option::take).unwrap_or(Err(StoreError::Closed))
    }
}

impl Completion for Mailbox {
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = usize::try_from(token).ok().and_then(|token| pages.get_mut(token)) {
            *place = Some(page.map(<[u8]>::to_vec));
        }
        self.came.notify_all();
    }
}
