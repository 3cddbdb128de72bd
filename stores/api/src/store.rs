//! The trait.

use crate::{Budget, Capabilities, Handle, Maintained, Page, PageKey, Stats, StoreError, Waiter, Wanted};

/// Where pages live while they are not in memory.
///
/// # Ownership
/// * A [`Handle`] names one stored page from the `put` that made it to the `free` that ends it. Handles have **one owner**:
///   where several address spaces share a page copy-on-write (after a fork, say), the *caller* counts the references and frees
///   the handle once, when the last is gone. A store never counts references to handles.
/// * Page bytes passed to [`put`](Store::put) belong to the caller and are not looked at after `put` returns. The buffer passed
///   to [`fetch`](Store::fetch) belongs to the caller and is not touched after `fetch` returns, whatever it returned.
/// * A store keeps a page until its handle is freed. Fetching does not remove: a caller frees only once the page is safe elsewhere.
///
/// # Identity
/// Each page is put under a [`PageKey`] and must be fetched under the same. A store binds the bytes to the key: a
/// handle that is stale, freed, reused, forged, or that names a page put under another key gives [`StoreError::NotFound`] or
/// [`StoreError::Corrupt`], **never another page's bytes**. (After `free` a store may still answer with the bytes
/// that very key had; it may not answer with anyone else's.) Keys need not be unique: two puts under one key make two handles.
///
/// # Threads
/// All methods may be called from any thread at any time, on different handles and on the same one. `fetch`, `fetch_run`, `free`
/// and `stats` are called on threads that serve page faults: they may take short locks that are never held over I/O, a
/// wait or an allocation from the operating system that can block for long; they may not wait for a device or a peer.
/// A handle and what it names are visible to every thread that got the handle from the thread that put it.
///
/// # Batches
/// `put` is all or nothing. `fetch_run` is page by page. `free` can't fail.
///
/// # Panics
/// None, for any argument. Arguments that break the contract (a page of the wrong length, too large a batch)
/// give [`StoreError::Unsupported`].
pub trait Store: Send + Sync + 'static {
    /// What this store is and can do. The answer never changes during the store's life.
    fn capabilities(&self) -> Capabilities;

    /// Stores `pages` and writes their handles to `handles`, in the same order.
    ///
    /// All or nothing: on `Ok` each of `handles` is `Some`; on an error each is `None`, nothing was stored and everything
    /// stored before is as it was. May block. `handles` may hold anything on entry.
    ///
    /// # Errors
    /// [`Full`](StoreError::Full) if the pages don't fit now; [`Unsupported`](StoreError::Unsupported) if the slices differ in length, a page isn't
    /// [`page_size`](Capabilities::page_size) long, or the batch exceeds [`max_batch`](Capabilities::max_batch);
    /// [`Io`](StoreError::Io), [`Closed`](StoreError::Closed). After any error the caller still has the pages and keeps them where they are.
    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError>;

    /// Gets the page `handle` names, put under `key`, into `out`, which is one page long.
    ///
    /// * [`Fetch::Ready`]: `out` holds the page.
    /// * [`Fetch::Pending`]: `out` is not touched any more. The store has cloned `waiter` and will call
    ///   [`Waiter::complete`] exactly once, from a thread of its own, with the page or an error, also if it's closed meanwhile.
    /// * an error: nothing will be completed; `out` holds anything.
    ///
    /// Never blocks. The handle stays valid.
    ///
    /// # Errors
    /// [`NotFound`](StoreError::NotFound), [`Corrupt`](StoreError::Corrupt), [`Io`](StoreError::Io), [`Closed`](StoreError::Closed),
    /// [`Unsupported`](StoreError::Unsupported) if `out` isn't one page long. See [`StoreError`] for what a caller does with each.
    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError>;

    /// Gets several pages into one contiguous buffer: page *i* of `wanted` to `out[i * page_size..][..page_size]`, its outcome to
    /// `results[i]`.
    ///
    /// Each page fares as with [`fetch`](Store::fetch), on its own. A pending page *i* is completed with token
    /// `waiter.token() + i` (wrapping): the caller keeps `wanted.len()` consecutive tokens for a run. `results` may hold anything on
    /// entry; all of it is overwritten. Never blocks, and needs no allocation for ready pages.
    ///
    /// The default fetches one page after the other. Stores that hold several pages in one object, or can read ahead, do better.
    ///
    /// # Errors
    /// Only [`Unsupported`](StoreError::Unsupported), when the lengths of the three slices don't agree; nothing was fetched then.
    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        check_run(self.capabilities().page_size, wanted, out, results)?;
        fetch_each(self, wanted, out, results, waiter);
        Ok(())
    }

    /// As [`fetch`](Store::fetch), for a caller in a signal handler on a thread that was stopped anywhere: `None` if this store, or just now,
    /// can't, and the page is to be asked for elsewhere by `fetch`.
    ///
    /// It never waits, allocates nothing, and uses nothing of the thread's that would have to be made first. Locks are tried, not waited for,
    /// and letting go of one wakes nobody.
    ///
    /// # Errors
    /// As `fetch`; nothing will be completed.
    fn fetch_in_handler(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Option<Result<(), StoreError>> {
        let _ = (handle, key, out);
        None
    }

    /// Forgets the pages `handles` name. Never blocks, can't fail.
    ///
    /// The caller frees each handle exactly once, and not while a fetch of it that this caller began is outstanding. A store stays
    /// memory-safe, keeps its other pages and keeps its accounts right if that is broken.
    fn free(&self, handles: &[Handle]);

    /// What the store holds and has done. Cheap enough to call every second. Never blocks.
    ///
    /// While other threads are at work the figures may be a moment apart from each other; with none they are exact.
    fn stats(&self) -> Stats;

    /// Bytes the object of a stored page takes, its header included, if the store can say so without waiting: the length a page has as it came, or more, says that it
    /// didn't compress. 0 for a page that takes no object. Nothing is fetched, and nothing counted.
    fn stored_len(&self, handle: Handle) -> Option<usize> {
        let _ = handle;
        None
    }

    /// Tells what this store counts beside [`stats`](Store::stats), each under a name of its own such as `fetch_p50_ns`. For people and their
    /// tables: names and figures may change from release to release. Layers and stacks tell what is inside them too, under the same
    /// rules. Never blocks.
    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        let _ = tell;
    }

    /// Does background work (compaction, giving memory back, writing out), at most about `budget` of it. May block.
    ///
    /// Callers run it on a mover thread now and then, sooner when a `put` was [`Full`](StoreError::Full). Correctness never depends on it.
    fn maintain(&self, budget: Budget) -> Maintained {
        let _ = budget;
        Maintained::default()
    }
}

/// How a fetch went, if it didn't fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fetch {
    /// The page is in the caller's buffer.
    Ready,
    /// The page will come by way of the [`Waiter`].
    Pending,
}

/// [`Store::fetch_run`] as one fetch after the other, for stores that do better only now and then. The run is
/// [checked](check_run).
pub fn fetch_each(
    store: &(impl Store + ?Sized),
    wanted: &[Wanted],
    out: &mut [u8],
    results: &mut [Result<Fetch, StoreError>],
    waiter: &Waiter,
) {
    let mut each = waiter.clone();
    // Nothing wanted is no pages of no length.
    let page_size = (out.len() / wanted.len().max(1)).max(1);
    for ((want, page), result) in wanted.iter().zip(out.chunks_exact_mut(page_size)).zip(results) {
        *result = store.fetch(want.handle, want.key, page, &each);
        each.advance();
    }
}

/// The checks [`Store::fetch_run`] owes its caller, for stores that override it.
///
/// # Errors
/// [`StoreError::Unsupported`] if the slices don't agree in length.
pub fn check_run(
    page_size: usize,
    wanted: &[Wanted],
    out: &[u8],
    results: &[Result<Fetch, StoreError>],
) -> Result<(), StoreError> {
    if results.len() != wanted.len() || wanted.len().checked_mul(page_size) != Some(out.len()) {
        return Err(StoreError::Unsupported { what: "a run whose buffer or results don't match its pages" });
    }
    Ok(())
}

/// The checks [`Store::put`] owes its caller.
///
/// # Errors
/// [`StoreError::Unsupported`] if the slices differ in length, the batch is too large, or a page isn't `page_size` long.
pub fn check_put(
    capabilities: &Capabilities,
    pages: &[Page<'_>],
    handles: &[Option<Handle>],
) -> Result<(), StoreError> {
    if pages.len() != handles.len() {
        return Err(StoreError::Unsupported { what: "a batch with fewer or more handles than pages" });
    }
    if pages.len() > capabilities.max_batch {
        return Err(StoreError::Unsupported { what: "a batch larger than max_batch" });
    }
    if pages.iter().any(|page| page.bytes.len() != capabilities.page_size) {
        return Err(StoreError::Unsupported { what: "a page that isn't page_size long" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_can_be_a_trait_object() {
        fn takes(_: Option<&dyn Store>) {}
        takes(None);
    }

    #[test]
    fn check_run_wants_equal_lengths() {
        let key = PageKey { owner: crate::OwnerId(1), page: 1, generation: 0 };
        let want = Wanted { handle: Handle::MIN, key };
        let results = [Ok(Fetch::Ready), Ok(Fetch::Ready)];
        assert!(check_run(4, &[want, want], &[0; 8], &results).is_ok());
        assert!(check_run(4, &[want, want], &[0; 7], &results).is_err());
        assert!(check_run(4, &[want], &[0; 4], &results).is_err());
        assert!(check_run(usize::MAX, &[want, want], &[0; 8], &results).is_err());
    }
}
