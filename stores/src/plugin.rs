//! `plugin:/path.so?…`: a store that somebody else wrote, in a shared library.
//!
//! The interface is C: `userswap_store.h`, which comes with `userswap-store`, says what a library has to have. Whatever it answers is
//! checked here:
//!
//! | it answers | and so |
//! |---|---|
//! | a page that isn't what was put under that key | [`Corrupt`](StoreError::Corrupt): that page is lost |
//! | a page of another length | the same |
//! | a number that doesn't exist | the put fails and the page stays where it is, or that page is lost |
//! | an id that is in use | the put fails; the page that had it is found out if it was overwritten |
//! | capabilities that don't exist, a table of another version or with something missing | it isn't opened |
//!
//! Its figures are taken as it gives them, but for the count of pages, which is kept here.
//! A library stays in the process once it was loaded. Its code runs with all the rights of the process: it can't be kept from writing where
//! it may not, ending the process, or never returning.

mod late;
mod library;

use std::io;
use std::path::Path;
use std::sync::Arc;

use userswap_store::plugin::{Answer, Flags};
use userswap_store::{
    Budget, Capabilities, Fetch, FetchKind, Handle, Integrity, Maintained, Medium, Page, PageKey, Stats,
    Store, StoreError, Waiter, check_put,
};

use crate::calls::Calls;
use late::Late;
use library::{Loaded, Objects, Trouble};

/// A store of a library.
pub struct Plugin {
    /// Before what it works on.
    late: Option<Late>,
    shared: Arc<Shared>,
    capabilities: Capabilities,
    /// The most memory that the index may take; the library has its own limit.
    index_limit: u64,
}

struct Shared {
    objects: Objects,
    calls: Calls,
    page_size: usize,
}

impl Plugin {
    /// Loads the library, if it isn't yet, and has it make a store that holds at most `capacity` bytes. An index comes on top of what it holds in memory: up to a quarter of that and
    /// 2 MiB; with more it is [`Full`](StoreError::Full).
    ///
    /// # Errors
    /// [`Io`](StoreError::Io), with a sentence: it can't be loaded, is no plug-in or one of another version, or refuses.
    pub fn open(
        path: &Path,
        capacity: Option<u64>,
        options: &str,
        page_size: usize,
    ) -> Result<Self, StoreError> {
        let wrong = |why: String| StoreError::Io {
            doing: "opening a plug-in",
            source: io::Error::other(format!("{}: {why}", path.display())),
        };
        if !library::is_a_path(path) {
            return Err(wrong("it is looked for by its path alone: write ./ before it".to_owned()));
        }
        let loaded = Loaded::load(path).map_err(wrong)?;
        let opened = loaded.open(page_size, capacity.unwrap_or(0), options);
        let (instance, can) =
            opened.map_err(|refusal| wrong(refusal.why_or("it makes no store of these options")))?;
        if can.flags & !Flags::ALL != 0 {
            let unknown = can.flags & !Flags::ALL;
            return Err(wrong(format!("it has the capabilities {unknown:#x}, which there aren't")));
        }
        if let Some(asked) = capacity
            && !(1..=asked).contains(&can.capacity)
        {
            return Err(wrong(format!("it can't be held to {asked} bytes")));
        }
        let has = |flag: u32| can.flags & flag != 0;
        let mut capabilities = Capabilities::new(short(&loaded.name), page_size);
        capabilities.medium = if has(Flags::ON_DEVICE) { Medium::Device } else { Medium::Memory };
        capabilities.encrypts = has(Flags::ENCRYPTS);
        capabilities.detects_same_filled = has(Flags::COUNTS_SAME_FILLED);
        capabilities.integrity = Integrity::Checksum;
        capabilities.maintains = true;
        if has(Flags::GET_MAY_WAIT) {
            capabilities.fetch = FetchKind::Mixed;
        }
        if can.max_batch != 0 {
            capabilities.max_batch = usize::try_from(can.max_batch).unwrap_or(MOST).min(MOST);
        }
        let index_limit = if can.capacity > 0 && capabilities.medium == Medium::Memory {
            can.capacity / 4 + (2 << 20)
        } else {
            u64::MAX
        };
        capabilities.capacity = Some(can.capacity)
            .filter(|bytes| *bytes > 0)
            .map(|bytes| if index_limit == u64::MAX { bytes } else { bytes.saturating_add(index_limit) });
        let shared = Arc::new(Shared { objects: Objects::new(instance), calls: Calls::default(), page_size });
        let late = if has(Flags::GET_MAY_WAIT) { Some(Late::start(&shared)?) } else { None };
        Ok(Self { late, shared, capabilities, index_limit })
    }
}

/// The most pages in a batch, whatever a library says.
const MOST: usize = 4096;

/// More than anybody has; sums of such figures don't overflow.
const PETABYTE: u64 = 1 << 50;

/// How far the index may be from its limit when pages are still taken: its parts grow by doubling at worst.
const MARGIN: u64 = 512 << 10;

/// For tables and logs.
fn short(name: &str) -> String {
    let name: String = name.chars().filter(|letter| !letter.is_control()).take(32).collect();
    if name.is_empty() { "plugin".to_owned() } else { format!("plugin:{name}") }
}

impl Store for Plugin {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities, pages, handles)?;
        let Shared { objects, calls, .. } = &*self.shared;
        let needed = pages.len() as u64 * self.capabilities.page_size as u64;
        let full = || {
            calls.full.add(1);
            let capacity = self.capabilities.capacity.unwrap_or(0);
            StoreError::Full { needed, available: 0, capacity }
        };
        if self.index_limit != u64::MAX && objects.bytes() * 2 + MARGIN > self.index_limit {
            return Err(full());
        }
        let put = objects.put(pages, handles);
        put.map_err(|trouble| match trouble {
            Trouble::Refused(refusal) if refusal.answer == Some(Answer::Full) => full(),
            Trouble::Refused(refusal) if refusal.answer == Some(Answer::Closed) => StoreError::Closed,
            other => failed("putting a page in a plug-in", other),
        })?;
        calls.puts.add(pages.len() as u64);
        Ok(())
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.capabilities.check_buffer(out)?;
        match &self.late {
            Some(late) => late.get(handle, key, waiter.clone()).map(|()| Fetch::Pending),
            None => self.shared.get(handle, key, out).map(|()| Fetch::Ready),
        }
    }

    fn free(&self, handles: &[Handle]) {
        let Shared { objects, calls, .. } = &*self.shared;
        let freed = handles.iter().filter(|handle| objects.free(**handle)).count();
        calls.frees.add(freed as u64);
        calls.bad_frees.add((handles.len() - freed) as u64);
    }

    fn stats(&self) -> Stats {
        let Shared { objects, calls, .. } = &*self.shared;
        let told = objects.instance().stats();
        let mut stats = Stats::default();
        stats.pages = objects.pages();
        stats.raw_bytes = stats.pages * self.capabilities.page_size as u64;
        stats.stored_bytes = told.stored_bytes.min(PETABYTE);
        stats.memory_bytes = told.memory_bytes.min(PETABYTE) + objects.bytes();
        stats.device_bytes = told.device_bytes.min(PETABYTE);
        stats.same_filled_pages = told.same_filled_pages.min(stats.pages);
        stats.incompressible_pages = told.incompressible_pages.min(stats.pages);
        calls.tell(&mut stats);
        stats
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        tell("index_bytes", self.shared.objects.bytes());
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        let told = self.shared.objects.instance().maintain(budget.bytes);
        let mut done = Maintained::default();
        done.more = told.more != 0;
        done.moved_bytes = told.moved_bytes.min(PETABYTE);
        done.released_bytes = told.released_bytes.min(PETABYTE) + self.shared.objects.trim();
        done
    }
}

impl Shared {
    /// Gets a page, which may wait.
    fn get(&self, handle: Handle, key: PageKey, page: &mut [u8]) -> Result<(), StoreError> {
        self.calls.fetches.add(1);
        let got = self.objects.get(handle, key, page);
        got.map_err(|trouble| {
            self.calls.fetch_errors.add(1);
            match trouble {
                Trouble::Unknown => StoreError::NotFound { key },
                Trouble::Changed => StoreError::Corrupt { key, what: "checksum" },
                Trouble::Length(_) => StoreError::Corrupt { key, what: "length" },
                Trouble::Refused(refusal) if refusal.answer == Some(Answer::NotFound) => {
                    StoreError::NotFound { key }
                }
                Trouble::Refused(refusal) if refusal.answer == Some(Answer::Damaged) => {
                    StoreError::Corrupt { key, what: "the plug-in says so" }
                }
                Trouble::Refused(refusal) if refusal.answer == Some(Answer::Closed) => StoreError::Closed,
                other => failed("getting a page from a plug-in", other),
            }
        })
    }
}

/// The error for a call that failed, or whose answer makes no sense.
fn failed(doing: &'static str, trouble: Trouble) -> StoreError {
    let source = match trouble {
        Trouble::Refused(refusal) if refusal.answer == Some(Answer::Again) => {
            io::Error::new(io::ErrorKind::ResourceBusy, refusal.why_or("it may work later"))
        }
        Trouble::Refused(refusal) => io::Error::other(refusal.why_or("it doesn't say why")),
        Trouble::Twice(id) => io::Error::other(format!("it gave the id {id:#x}, which is in use")),
        Trouble::Length(length) => io::Error::other(format!("it gave {length} bytes")),
        Trouble::Changed | Trouble::Unknown => io::Error::other("it gave another page"),
    };
    StoreError::Io { doing, source }
}
