//! Fetching: what is in memory at once, the rest by reads of neighbours together.

use std::cell::RefCell;
use std::sync::Arc;

use userswap_store::{Fetch, Handle, PageKey, StoreError, Waiter, Wanted};

use super::buffer::BLOCK;
use super::log::{Found, Trace};
use super::ring::{Lost, Refused};
use super::{File, Shared};
use crate::ram::filled;
use crate::ram::index::{Named, filled_is_of, named};

/// Of pages further apart than this, each is read for itself; one read is at most so long.
const GAP: usize = 16 << 10;
const LONGEST: usize = 256 << 10;

/// Pages that come by one read.
struct Late {
    segment: u32,
    waiter: Waiter,
    pages: Vec<LatePage>,
}

struct LatePage {
    /// Its place in the run.
    place: u64,
    handle: Handle,
    key: PageKey,
    trace: Option<Trace>,
    /// Where its record is in the segment.
    at: usize,
    len: usize,
}

impl Late {
    /// Whether the record lies close enough behind, or within, what is read anyway.
    fn reaches(&self, segment: u32, at: usize, len: usize) -> bool {
        let Some((first, last)) = self.pages.first().zip(self.pages.last()) else { return false };
        let end = last.at + last.len;
        segment == self.segment && at >= last.at && at <= end + GAP && at + len <= first.at + LONGEST
    }
}

impl File {
    /// Fetches pages into a buffer of as many.
    pub(super) fn fetch_all(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) {
        let (shared, page_size) = (&self.shared, self.capabilities.page_size);
        let mut reads: Vec<Late> = Vec::new();
        let mut here: Vec<Option<Trace>> = Vec::new();
        with_scratch(|scratch| {
            let mut log = shared.log.lock();
            for (place, (want, result)) in (0..).zip(wanted.iter().zip(results.iter_mut())) {
                let key = want.key;
                if let Some(Named::Filled { hash, .. }) = named(want.handle) {
                    let right = filled_is_of(key, hash);
                    *result = if right { Ok(Fetch::Ready) } else { Err(StoreError::NotFound { key }) };
                    continue;
                }
                let trace = log.trace(want.handle);
                *result = match log.find(want.handle) {
                    None => Err(StoreError::NotFound { key }),
                    Some(Found::Here(record)) => {
                        // Lengths are told apart by the records themselves.
                        scratch.extend_from_slice(&(record.len() as u64).to_le_bytes());
                        scratch.extend_from_slice(record);
                        here.push(trace);
                        Ok(Fetch::Ready)
                    }
                    Some(Found::There { segment, offset: at, len }) => {
                        let page = LatePage { place, handle: want.handle, key, trace, at, len };
                        match reads.last_mut().filter(|late| late.reaches(segment, at, len)) {
                            Some(late) => late.pages.push(page),
                            None => {
                                reads.push(Late { segment, waiter: waiter.clone(), pages: vec![page] });
                            }
                        }
                        Ok(Fetch::Pending)
                    }
                };
            }
            drop(log);
            let mut rest = &mut scratch[..];
            let mut here = here.into_iter();
            for ((want, page), result) in
                wanted.iter().zip(out.chunks_exact_mut(page_size)).zip(results.iter_mut())
            {
                match (&result, named(want.handle)) {
                    (Ok(Fetch::Pending), _) => {}
                    (Ok(Fetch::Ready), Some(Named::Filled { word, .. })) => {
                        filled::fill(page, u64::from(word) << 32 | u64::from(word));
                        *result = shared.fetched(Ok(()));
                    }
                    (Ok(Fetch::Ready), _) => {
                        let (record, behind) = next_record(rest);
                        rest = behind;
                        let trace = here.next().flatten();
                        *result = shared.fetched(shared.read(want.handle, want.key, trace, record, page));
                    }
                    (Err(_), _) => *result = shared.fetched(Err(StoreError::NotFound { key: want.key })),
                }
            }
        });
        for late in reads {
            let (segment, places): (_, Vec<_>) =
                (late.segment, late.pages.iter().map(|page| page.place).collect());
            if let Err(Refused) = self.read(late) {
                shared.log.lock().unpin(segment, places.len());
                for place in places {
                    if let Some(result) = usize::try_from(place).ok().and_then(|at| results.get_mut(at)) {
                        *result = shared.fetched(Err(StoreError::Closed));
                    }
                }
            }
        }
    }

    fn read(&self, late: Late) -> Result<(), Refused> {
        let Some((first, last)) = late.pages.first().zip(late.pages.last()) else { return Ok(()) };
        let from = first.at / BLOCK * BLOCK;
        let len = (last.at + last.len).next_multiple_of(BLOCK).min(self.segment_len) - from;
        let (shared, offset) = (Arc::clone(&self.shared), self.offset(late.segment) + from as u64);
        let then = move |result: Result<&mut [u8], Lost>| shared.arrived(late, from, result);
        self.ring.read(offset, len, Box::new(then))
    }
}

thread_local! {
    /// Records that were found in memory, and a page: what a thread needs to fetch.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `use_it` with this thread's scratch, or with a fresh one where that is in use or gone.
fn with_scratch<R>(use_it: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.try_with(|kept| std::mem::take(&mut *kept.borrow_mut())).unwrap_or_default();
    scratch.clear();
    let result = use_it(&mut scratch);
    let _ = SCRATCH.try_with(|kept| *kept.borrow_mut() = scratch);
    result
}

impl Shared {
    fn fetched(&self, result: Result<(), StoreError>) -> Result<Fetch, StoreError> {
        self.count(result.is_ok());
        result.map(|()| Fetch::Ready)
    }

    fn count(&self, ok: bool) {
        let calls = &self.counters.calls;
        calls.fetches.add(1);
        if !ok {
            calls.fetch_errors.add(1);
        }
    }

    /// Makes a page of its record, and remembers what came of where.
    fn read(
        &self,
        handle: Handle,
        key: PageKey,
        trace: Option<Trace>,
        record: &mut [u8],
        page: &mut [u8],
    ) -> Result<(), StoreError> {
        let sealed = self.sealed_under(handle, key)?;
        self.records.read(sealed, record, page).map_err(|error| told_of(key, error))?;
        self.came(sealed, trace, page);
        Ok(())
    }

    /// The same, without copying a page that lies in its record as it came.
    fn view<'a>(
        &self,
        page: &LatePage,
        record: &'a mut [u8],
        room: &'a mut [u8],
    ) -> Result<&'a [u8], StoreError> {
        let sealed = self.sealed_under(page.handle, page.key)?;
        let bytes = self.records.view(sealed, record, room).map_err(|error| told_of(page.key, error))?;
        self.came(sealed, page.trace, bytes);
        Ok(bytes)
    }

    fn sealed_under(&self, handle: Handle, key: PageKey) -> Result<PageKey, StoreError> {
        self.unchanged.sealed_under(handle, key).ok_or(StoreError::NotFound { key })
    }

    fn came(&self, sealed: PageKey, trace: Option<Trace>, page: &[u8]) {
        if let Some(trace) = trace {
            self.unchanged.came(sealed, trace, page);
        }
    }

    /// A read ended: each of its pages is given to whoever waits for it.
    fn arrived(&self, late: Late, from: usize, mut result: Result<&mut [u8], Lost>) {
        self.log.lock().unpin(late.segment, late.pages.len());
        if let Ok(bytes) = &result {
            self.counters.reads.add(1);
            self.counters.read_bytes.add(bytes.len() as u64);
        }
        with_scratch(|room| {
            room.resize(self.page_size, 0);
            for page in late.pages {
                let waiter = late.waiter.for_place(page.place);
                let read = match &mut result {
                    Ok(bytes) => match bytes.get_mut(page.at - from..page.at - from + page.len) {
                        Some(record) => self.view(&page, record, room),
                        None => Err(StoreError::Corrupt { key: page.key, what: "length" }),
                    },
                    Err(why) => Err(why.error("reading pages from the store's file")),
                };
                self.count(read.is_ok());
                waiter.complete(read);
            }
        });
    }
}

/// An error with the key that was asked for in place of the one that the record is sealed under.
fn told_of(key: PageKey, error: StoreError) -> StoreError {
    match error {
        StoreError::Corrupt { what, .. } => StoreError::Corrupt { key, what },
        error => error,
    }
}

/// The first of the records in a scratch, and what is behind it.
fn next_record(bytes: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let Some((len, rest)) = bytes.split_first_chunk_mut::<8>() else { return (&mut [], &mut []) };
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(0).min(rest.len());
    rest.split_at_mut(len)
}
