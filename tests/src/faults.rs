//! A store with one thing wrong, where and when a test says.

use crate::plain::PlainStore;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use userswap_store::{
    Capabilities, Fetch, FetchKind, Handle, Page, PageKey, Stats, Store, StoreError, Waiter,
};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// No put fits.
    PutFull,
    /// Puts fail.
    PutFails,
    /// A put takes as long as the test wants it to.
    PutLate,
    /// What is kept of a page is half of it.
    PutTorn,
    /// A fetch has to be tried again, twice.
    FetchFalters,
    /// A fetch has to be tried again, always.
    FetchBusy,
    /// A fetch fails.
    FetchFails,
    /// The page is damaged, and the store knows.
    FetchCorrupt,
    /// The bytes are others, and the store doesn't know.
    FetchTorn,
    /// The store has no such page.
    FetchLost,
    /// The page comes when the test wants it to.
    FetchLate,
    /// That there is none comes then.
    FetchLateCorrupt,
    /// The store is closed, for puts and fetches.
    Closed,
    /// What is freed is kept.
    FreeForgotten,
}

impl Wrong {
    /// All of them, with what to call them.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::PutFull, "put: full"),
        (Self::PutFails, "put: error"),
        (Self::PutLate, "put: late"),
        (Self::PutTorn, "put: torn"),
        (Self::FetchFalters, "fetch: error that passes"),
        (Self::FetchBusy, "fetch: “try again”, always"),
        (Self::FetchFails, "fetch: error that stays"),
        (Self::FetchCorrupt, "fetch: corrupt"),
        (Self::FetchTorn, "fetch: other bytes"),
        (Self::FetchLost, "fetch: lost"),
        (Self::FetchLate, "fetch: late"),
        (Self::FetchLateCorrupt, "fetch: late, then corrupt"),
        (Self::Closed, "closed"),
        (Self::FreeForgotten, "free: forgotten"),
    ];
}

/// A [`PlainStore`] with that wrong, for puts of any page and fetches of one, while it is armed.
pub struct FaultyStore {
    plain: PlainStore,
    wrong: Wrong,
    /// The number in the key of the page that it is about.
    page: AtomicU64,
    armed: AtomicBool,
    met: AtomicU64,
    late: Mutex<Vec<Late>>,
    held: Mutex<u32>,
    let_go: Condvar,
}

/// An answer that waits, and whom it is for.
type Late = (Waiter, Result<Vec<u8>, StoreError>);

impl FaultyStore {
    /// With that wrong, once it is armed.
    pub fn new(wrong: Wrong) -> Self {
        Self {
            plain: PlainStore::default(),
            wrong,
            page: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            met: AtomicU64::new(0),
            late: Mutex::default(),
            held: Mutex::default(),
            let_go: Condvar::new(),
        }
    }

    /// From now on something is wrong with the page whose key has this number.
    pub fn arm(&self, page: u64) {
        self.page.store(page, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// All is well again, but for what is freed: that happens when nobody looks.
    pub fn disarm(&self) {
        self.armed.store(self.wrong == Wrong::FreeForgotten, Ordering::SeqCst);
        self.answer();
    }

    /// Calls that something was wrong with.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::SeqCst)
    }

    /// Calls that wait for the test.
    pub fn waiting(&self) -> usize {
        self.late.lock().len() + *self.held.lock() as usize
    }

    /// Has them wait no longer.
    pub fn answer(&self) {
        let late = std::mem::take(&mut *self.late.lock());
        for (waiter, page) in late {
            match page {
                Ok(bytes) => waiter.complete(Ok(&bytes)),
                Err(error) => waiter.complete(Err(error)),
            }
        }
        let mut held = self.held.lock();
        *held = 0;
        self.let_go.notify_all();
    }

    /// Where the pages are.
    pub fn plain(&self) -> &PlainStore {
        &self.plain
    }

    /// Whether this call meets what is wrong.
    fn meets(&self, of: &[Wrong]) -> Option<Wrong> {
        let meets = self.armed.load(Ordering::SeqCst) && of.contains(&self.wrong);
        meets.then(|| {
            self.met.fetch_add(1, Ordering::SeqCst);
            self.wrong
        })
    }

    fn meets_fetch(&self, key: PageKey) -> Option<Wrong> {
        use Wrong::{
            Closed, FetchBusy, FetchCorrupt, FetchFails, FetchFalters, FetchLate, FetchLateCorrupt,
            FetchLost, FetchTorn,
        };
        if key.page != self.page.load(Ordering::SeqCst) {
            return None;
        }
        self.meets(&[
            Closed,
            FetchBusy,
            FetchCorrupt,
            FetchFails,
            FetchFalters,
            FetchLate,
            FetchLateCorrupt,
            FetchLost,
            FetchTorn,
        ])
    }
}

fn io(doing: &'static str, kind: io::ErrorKind) -> StoreError {
    StoreError::Io { doing, source: kind.into() }
}

impl Store for FaultyStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.plain.capabilities();
        capabilities.fetch = FetchKind::Mixed;
        capabilities
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        match self.meets(&[Wrong::PutFull, Wrong::PutFails, Wrong::PutLate, Wrong::PutTorn, Wrong::Closed]) {
            Some(Wrong::PutFull) => {
                return Err(StoreError::Full {
                    needed: pages.len() as u64 * 4096,
                    available: 0,
                    capacity: 0,
                });
            }
            Some(Wrong::PutFails) => return Err(io("writing", io::ErrorKind::Other)),
            Some(Wrong::Closed) => return Err(StoreError::Closed),
            Some(Wrong::PutLate) => {
                let mut held = self.held.lock();
                *held += 1;
                self.let_go.wait_while(&mut held, |held| *held > 0);
            }
            Some(Wrong::PutTorn) => {
                let at = pages.iter().position(|page| page.key.page == self.page.load(Ordering::SeqCst));
                if let Some(at) = at {
                    let mut torn = pages[at].bytes.to_vec();
                    let half = torn.len() / 2;
                    torn[half..].fill(0);
                    let mut instead = pages.to_vec();
                    instead[at].bytes = &torn;
                    return self.plain.put(&instead, handles);
                }
            }
            _ => {}
        }
        self.plain.put(pages, handles)
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let Some(wrong) = self.meets_fetch(key) else {
            return self.plain.fetch(handle, key, out, waiter);
        };
        let corrupt = StoreError::Corrupt { key, what: "a test" };
        match wrong {
            Wrong::FetchFalters if self.met() > 2 => {}
            Wrong::FetchFalters | Wrong::FetchBusy => return Err(io("reading", io::ErrorKind::TimedOut)),
            Wrong::FetchFails => return Err(io("reading", io::ErrorKind::Other)),
            Wrong::FetchLost => return Err(StoreError::NotFound { key }),
            Wrong::FetchCorrupt => return Err(corrupt),
            Wrong::FetchLate => {
                let mut bytes = vec![0; out.len()];
                self.plain.fetch(handle, key, &mut bytes, waiter)?;
                self.late.lock().push((waiter.clone(), Ok(bytes)));
                return Ok(Fetch::Pending);
            }
            Wrong::FetchLateCorrupt => {
                self.late.lock().push((waiter.clone(), Err(corrupt)));
                return Ok(Fetch::Pending);
            }
            Wrong::Closed => return Err(StoreError::Closed),
            _ => {}
        }
        let fetched = self.plain.fetch(handle, key, out, waiter);
        if wrong == Wrong::FetchTorn {
            let half = out.len() / 2;
            out[half..].fill(0);
        }
        fetched
    }

    fn free(&self, handles: &[Handle]) {
        if self.meets(&[Wrong::FreeForgotten]).is_none() {
            self.plain.free(handles);
        }
    }

    fn stats(&self) -> Stats {
        self.plain.stats()
    }
}
