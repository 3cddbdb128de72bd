//! What [`Checked`](super::Checked) and [`Sealed`](super::Sealed) have in common: a mark a page, kept in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use userswap_store::{
    Budget, Capabilities, Completion, Fetch, FetchKind, Handle, Maintained, Medium, Page, PageKey, Stats,
    Store, StoreError, Waiter, Wanted, check_put, check_run, fetch_each,
};

use crate::slab::Table;

/// Makes a page fit to be let out of sight, and finds out whether what comes back is it.
pub(super) trait Guard: Send + Sync + 'static {
    /// What is kept of a page.
    type Mark: Copy + Send + Sync + 'static;
    /// The page is changed on its way in.
    const CHANGES: bool;

    /// What the layer makes of the inner store's capabilities.
    fn describe(&self, capabilities: &mut Capabilities);
    /// A page on its way in.
    fn mark(&self, key: PageKey, page: &[u8]) -> Result<Self::Mark, StoreError>;
    /// As [`mark`](Guard::mark), changing the page. Only if it [changes](Guard::CHANGES) them.
    fn change(&self, key: PageKey, page: &mut [u8]) -> Result<Self::Mark, StoreError>;
    /// A page on its way out; if it isn't what went in, what gave it away.
    fn restore(&self, key: PageKey, mark: Self::Mark, page: &mut [u8]) -> Result<(), &'static str>;
}

pub(super) struct Guarded<G: Guard> {
    inner: Arc<dyn Store>,
    shared: Arc<Shared<G>>,
    table: Table<(Handle, G::Mark)>,
    capabilities: Capabilities,
    /// For a store that answers at once.
    nobody: Waiter,
    bad_frees: AtomicU64,
    /// Fetches of handles that are unknown here already.
    strays: AtomicU64,
}

struct Shared<G> {
    guard: G,
    damaged: AtomicU64,
}

impl<G: Guard> Guarded<G> {
    pub(super) fn new(inner: Arc<dyn Store>, guard: G) -> Self {
        let mut capabilities = inner.capabilities();
        guard.describe(&mut capabilities);
        if capabilities.medium == Medium::Memory {
            // The store inside keeps to its own; the marks come on top of that.
            capabilities.capacity = None;
        }
        // Tables shrink when they are tidied up.
        capabilities.maintains = true;
        let shared = Arc::new(Shared { guard, damaged: AtomicU64::new(0) });
        Self {
            inner,
            shared,
            table: Table::new(),
            capabilities,
            nobody: Waiter::none(),
            bad_frees: AtomicU64::new(0),
            strays: AtomicU64::new(0),
        }
    }

    #[cfg(feature = "seal")]
    pub(super) fn guard(&self) -> &G {
        &self.shared.guard
    }

    fn find(&self, handle: Handle, key: PageKey) -> Result<(Handle, G::Mark), StoreError> {
        self.table.with(handle, |found| *found).ok_or_else(|| {
            self.strays.fetch_add(1, Ordering::Relaxed);
            StoreError::NotFound { key }
        })
    }

    fn may_wait(&self) -> bool {
        self.capabilities.fetch != FetchKind::Ready
    }

    fn put_marked(
        &self,
        pages: &[Page<'_>],
        handles: &mut [Option<Handle>],
        marks: &[G::Mark],
    ) -> Result<(), StoreError> {
        self.inner.put(pages, handles)?;
        for (handle, mark) in handles.iter_mut().zip(marks) {
            *handle = handle.map(|inner| self.table.insert((inner, *mark)));
        }
        Ok(())
    }
}

impl<G: Guard> Shared<G> {
    fn restore(&self, key: PageKey, mark: G::Mark, page: &mut [u8]) -> Result<(), StoreError> {
        self.guard.restore(key, mark, page).map_err(|what| {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            StoreError::Corrupt { key, what }
        })
    }
}

impl<G: Guard> Store for Guarded<G> {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        check_put(&self.capabilities, pages, handles)?;
        let guard = &self.shared.guard;
        if !G::CHANGES {
            let marks: Result<Vec<_>, _> =
                pages.iter().map(|page| guard.mark(page.key, page.bytes)).collect();
            return self.put_marked(pages, handles, &marks?);
        }
        let mut changed = Vec::with_capacity(pages.len() * self.capabilities.page_size);
        let mut marks = Vec::with_capacity(pages.len());
        for page in pages {
            let from = changed.len();
            changed.extend_from_slice(page.bytes);
            marks.push(guard.change(page.key, &mut changed[from..])?);
        }
        let each = changed.chunks_exact(self.capabilities.page_size.max(1));
        let changed: Vec<_> =
            pages.iter().zip(each).map(|(page, bytes)| Page { key: page.key, bytes }).collect();
        self.put_marked(&changed, handles, &marks)
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let (inner, mark) = self.find(handle, key)?;
        let fetched = if self.may_wait() {
            let through = through(&self.shared, waiter, vec![(key, mark)]);
            self.inner.fetch(inner, key, out, &through)?
        } else {
            self.inner.fetch(inner, key, out, &self.nobody)?
        };
        if fetched == Fetch::Ready {
            self.shared.restore(key, mark, out)?;
        }
        Ok(fetched)
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        let page_size = self.capabilities.page_size;
        check_run(page_size, wanted, out, results)?;
        let found = |want: &Wanted| self.table.with(want.handle, |found| *found);
        let all: Option<Vec<_>> = if self.may_wait() { wanted.iter().map(found).collect() } else { None };
        let Some(all) = all else {
            fetch_each(self, wanted, out, results, waiter);
            return Ok(());
        };
        let inside: Vec<_> =
            wanted.iter().zip(&all).map(|(want, (handle, _))| Wanted { handle: *handle, ..*want }).collect();
        let marks: Vec<_> = wanted.iter().zip(&all).map(|(want, (_, mark))| (want.key, *mark)).collect();
        self.inner.fetch_run(&inside, out, results, &through(&self.shared, waiter, marks))?;
        for (((want, (_, mark)), page), result) in
            wanted.iter().zip(&all).zip(out.chunks_exact_mut(page_size)).zip(results)
        {
            if let Ok(Fetch::Ready) = result
                && let Err(error) = self.shared.restore(want.key, *mark, page)
            {
                *result = Err(error);
            }
        }
        Ok(())
    }

    fn free(&self, handles: &[Handle]) {
        for handle in handles {
            match self.table.remove(*handle) {
                Some((inner, _)) => self.inner.free(&[inner]),
                None => drop(self.bad_frees.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.inner.stats();
        stats.memory_bytes += self.table.bytes();
        stats.bad_frees += self.bad_frees.load(Ordering::Relaxed);
        stats.fetch_errors +=
            self.strays.load(Ordering::Relaxed) + self.shared.damaged.load(Ordering::Relaxed);
        stats
    }

    fn stored_len(&self, handle: Handle) -> Option<usize> {
        let inner = self.table.with(handle, |(inner, _)| *inner)?;
        self.inner.stored_len(inner)
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        tell("damaged", self.shared.damaged.load(Ordering::Relaxed));
        self.inner.figures(tell);
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        let mut done = self.inner.maintain(budget);
        done.released_bytes += self.table.trim();
        done
    }
}

/// Pages that come later, on their way through the layer. Their tokens inside are their places.
struct Through<G: Guard> {
    shared: Arc<Shared<G>>,
    waiter: Waiter,
    marks: Vec<(PageKey, G::Mark)>,
}

fn through<G: Guard>(shared: &Arc<Shared<G>>, waiter: &Waiter, marks: Vec<(PageKey, G::Mark)>) -> Waiter {
    Waiter::new(Arc::new(Through { shared: Arc::clone(shared), waiter: waiter.clone(), marks }), 0)
}

impl<G: Guard> Completion for Through<G> {
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
        let Some((key, mark)) = usize::try_from(token).ok().and_then(|at| self.marks.get(at)) else { return };
        let waiter = self.waiter.for_place(token);
        let restored = page.and_then(|page| {
            let mut page = page.to_vec();
            self.shared.restore(*key, *mark, &mut page).map(|()| page)
        });
        match restored {
            Ok(page) => waiter.complete(Ok(&page)),
            Err(error) => waiter.complete(Err(error)),
        }
    }
}
