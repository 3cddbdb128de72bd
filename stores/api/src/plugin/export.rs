//! A [`Store`] behind the C interface.
//!
//! Unsafe because its callers are C: pointers come as they come, and are what the header says they are. Each function makes references of
//! them for its own time alone.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{
    ABI, Answer, Config, Flags, Open, RawCapabilities, RawConfig, RawKey, RawMaintained, RawStats, Table, WHY,
};
use crate::{Budget, Completion, Fetch, FetchKind, Handle, Medium, Page, Store, StoreError, Waiter};

// SAFETY: a table is only read; its name is a string that is never changed.
unsafe impl Sync for Table {}

/// The table of what `O` opens.
pub const fn table<O: Open>(name: &'static CStr) -> Table {
    Table {
        abi: ABI,
        #[allow(clippy::cast_possible_truncation, reason = "some eighty bytes")]
        size: size_of::<Table>() as u32,
        name: name.as_ptr(),
        open: Some(open::<O>),
        close: Some(close),
        put: Some(put),
        put_batch: Some(put_batch),
        get: Some(get),
        remove: Some(remove),
        stats: Some(stats),
        maintain: Some(maintain),
    }
}

/// What the `void *` of an exported store leads to.
struct Exported {
    store: Arc<dyn Store>,
    page_size: usize,
}

/// What a `void *` leads to.
///
/// # Safety
/// It is one that [`open`] gave, and [`close`] wasn't called with it.
unsafe fn exported<'a>(store: *mut c_void) -> &'a Exported {
    // SAFETY: `open` made it of a box, which is there until `close`; it is only ever shared.
    unsafe { &*store.cast::<Exported>() }
}

unsafe extern "C" fn open<O: Open>(
    config: *const RawConfig,
    capabilities: *mut RawCapabilities,
    store: *mut *mut c_void,
    why: *mut c_char,
) -> i32 {
    answer(why, || {
        // SAFETY: the caller gives a configuration whose options are a string.
        let (config, options) = unsafe { (&*config, CStr::from_ptr((*config).options)) };
        let wrong = |what| StoreError::Unsupported { what };
        let config = Config {
            page_size: usize::try_from(config.page_size).map_err(|_| wrong("pages of this size"))?,
            capacity: Some(config.capacity).filter(|bytes| *bytes > 0),
            options: options.to_str().map_err(|_| wrong("options that aren't UTF-8"))?,
        };
        let opened = O::open(&config)?;
        let can = opened.capabilities();
        if can.page_size != config.page_size {
            return Err(wrong("pages of this size"));
        }
        let mut flags = 0;
        for (bit, set) in [
            (Flags::GET_MAY_WAIT, can.fetch != FetchKind::Ready),
            (Flags::ON_DEVICE, can.medium == Medium::Device),
            (Flags::ENCRYPTS, can.encrypts),
            (Flags::COUNTS_SAME_FILLED, can.detects_same_filled),
        ] {
            flags |= if set { bit } else { 0 };
        }
        let exported = Box::new(Exported { store: opened, page_size: can.page_size });
        // SAFETY: the caller gives room for both.
        unsafe {
            (*capabilities).flags = flags;
            (*capabilities).capacity = can.capacity.unwrap_or(0);
            (*capabilities).max_batch = can.max_batch as u64;
            *store = Box::into_raw(exported).cast();
        }
        Ok(())
    })
}

unsafe extern "C" fn close(store: *mut c_void) {
    // SAFETY: `open` made it of a box, and this is the one call that ends it.
    let exported = unsafe { Box::from_raw(store.cast::<Exported>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(exported)));
}

unsafe extern "C" fn put(
    store: *mut c_void,
    key: *const RawKey,
    page: *const u8,
    id: *mut u64,
    why: *mut c_char,
) -> i32 {
    // SAFETY: one key, one page, room for one id.
    unsafe { put_batch(store, 1, key, &raw const page, id, why) }
}

unsafe extern "C" fn put_batch(
    store: *mut c_void,
    count: u64,
    keys: *const RawKey,
    pages: *const *const u8,
    ids: *mut u64,
    why: *mut c_char,
) -> i32 {
    answer(why, || {
        let count =
            usize::try_from(count).map_err(|_| StoreError::Unsupported { what: "batches of this size" })?;
        // SAFETY: the store is open; the caller gives so many of each, each page as long as they all are, and nobody changes them meanwhile.
        let (exported, batch, ids) = unsafe {
            let exported = exported(store);
            let keys = std::slice::from_raw_parts(keys, count);
            let pages = std::slice::from_raw_parts(pages, count);
            let page = |page: &*const u8| std::slice::from_raw_parts(*page, exported.page_size);
            let batch: Vec<Page<'_>> = keys
                .iter()
                .zip(pages)
                .map(|(key, bytes)| Page { key: (*key).into(), bytes: page(bytes) })
                .collect();
            (exported, batch, std::slice::from_raw_parts_mut(ids, count))
        };
        let mut handles = vec![None; count];
        exported.store.put(&batch, &mut handles)?;
        for (id, handle) in ids.iter_mut().zip(handles) {
            *id = handle.map_or(0, Handle::into_raw);
        }
        Ok(())
    })
}

unsafe extern "C" fn get(
    store: *mut c_void,
    id: u64,
    key: *const RawKey,
    page: *mut u8,
    length: *mut u64,
    why: *mut c_char,
) -> i32 {
    answer(why, || {
        // SAFETY: the store is open; the caller gives a key, and a page nobody else has.
        let (exported, key, page) = unsafe {
            let exported = exported(store);
            (exported, (*key).into(), std::slice::from_raw_parts_mut(page, exported.page_size))
        };
        let handle = Handle::from_raw(id).ok_or(StoreError::NotFound { key })?;
        let arrival = Arc::new(Arrival::default());
        match exported.store.fetch(handle, key, page, &Waiter::new(arrival.clone(), 0))? {
            Fetch::Ready => {}
            Fetch::Pending => page.copy_from_slice(&arrival.wait()?),
        }
        // SAFETY: the caller gives room for it.
        unsafe { *length = exported.page_size as u64 };
        Ok(())
    })
}

unsafe extern "C" fn remove(store: *mut c_void, id: u64) {
    // SAFETY: the store is open.
    let exported = unsafe { exported(store) };
    if let Some(handle) = Handle::from_raw(id) {
        let _ = catch_unwind(AssertUnwindSafe(|| exported.store.free(&[handle])));
    }
}

unsafe extern "C" fn stats(store: *mut c_void, stats: *mut RawStats) {
    // SAFETY: the store is open; the caller gives room for its figures.
    let (exported, stats) = unsafe { (exported(store), &mut *stats) };
    if let Ok(found) = catch_unwind(AssertUnwindSafe(|| exported.store.stats())) {
        stats.stored_bytes = found.stored_bytes;
        stats.memory_bytes = found.memory_bytes;
        stats.device_bytes = found.device_bytes;
        stats.same_filled_pages = found.same_filled_pages;
        stats.incompressible_pages = found.incompressible_pages;
    }
}

unsafe extern "C" fn maintain(store: *mut c_void, bytes: u64, done: *mut RawMaintained) {
    // SAFETY: the store is open; the caller gives room for the figures.
    let (exported, done) = unsafe { (exported(store), &mut *done) };
    if let Ok(found) = catch_unwind(AssertUnwindSafe(|| exported.store.maintain(Budget::bytes(bytes)))) {
        done.more = u32::from(found.more);
        done.moved_bytes = found.moved_bytes;
        done.released_bytes = found.released_bytes;
    }
}

/// Does it, and tells how it went. A panic would end the program if it went on into C.
fn answer(why: *mut c_char, act: impl FnOnce() -> Result<(), StoreError>) -> i32 {
    let (answer, sentence) = match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(())) => return Answer::Ok as i32,
        Ok(Err(error)) => (number(&error), chain(&error)),
        Err(_) => (Answer::Failed, "the store panicked".to_owned()),
    };
    let sentence = sentence.replace('\0', " ");
    let end = sentence.floor_char_boundary(WHY - 1);
    // SAFETY: the caller gives room for WHY bytes; the sentence and its 0 are no more.
    unsafe {
        std::ptr::copy_nonoverlapping(sentence.as_ptr(), why.cast(), end);
        *why.add(end) = 0;
    }
    answer as i32
}

fn number(error: &StoreError) -> Answer {
    match error {
        StoreError::Full { .. } => Answer::Full,
        StoreError::NotFound { .. } => Answer::NotFound,
        StoreError::Corrupt { .. } => Answer::Damaged,
        StoreError::Io { .. } if error.is_retryable() => Answer::Again,
        StoreError::Io { .. } => Answer::Failed,
        StoreError::Closed => Answer::Closed,
        StoreError::Unsupported { .. } => Answer::Refused,
    }
}

/// An error and its reasons.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

/// Where a page that comes later arrives.
#[derive(Default)]
struct Arrival {
    page: Mutex<Option<Result<Vec<u8>, StoreError>>>,
    came: Condvar,
}

impl Arrival {
    fn wait(&self) -> Result<Vec<u8>, StoreError> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(arrived) = page.take() {
                return arrived;
            }
            page = self.came.wait(page).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Completion for Arrival {
    fn complete(&self, _: u64, page: Result<&[u8], StoreError>) {
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = Some(page.map(<[u8]>::to_vec));
        self.came.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Ask, Reference};
    use crate::{Capabilities, OwnerId, PageKey, Stats};

    struct Late;
    impl Open for Late {
        fn open(config: &Config<'_>) -> Result<Arc<dyn Store>, StoreError> {
            assert_eq!(config.each().collect::<Vec<_>>(), [("a", "1"), ("b", "")]);
            let ask = Ask { capacity: config.capacity };
            Ok(Arc::new(Reference::new(&ask, None).answering_late()))
        }
    }

    /// It panics wherever it can.
    struct Panics;
    impl Open for Panics {
        fn open(config: &Config<'_>) -> Result<Arc<dyn Store>, StoreError> {
            assert!(config.page_size == 4096, "other pages");
            Ok(Arc::new(Self))
        }
    }
    impl Store for Panics {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new("panics", 4096)
        }
        fn put(&self, _: &[Page<'_>], _: &mut [Option<Handle>]) -> Result<(), StoreError> {
            panic!("put")
        }
        fn fetch(&self, _: Handle, _: PageKey, _: &mut [u8], _: &Waiter) -> Result<Fetch, StoreError> {
            panic!("fetch")
        }
        fn free(&self, _: &[Handle]) {
            panic!("free")
        }
        fn stats(&self) -> Stats {
            panic!("stats")
        }
        fn maintain(&self, _: Budget) -> crate::Maintained {
            panic!("maintain")
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("drop")
        }
    }

    fn opened<O: Open>(page_size: u64) -> (i32, *mut c_void, RawCapabilities, String) {
        let size = 32;
        let options = c"a=1&b";
        let config = RawConfig { size, reserved: 0, page_size, capacity: 8192, options: options.as_ptr() };
        let mut capabilities = RawCapabilities::default();
        let (mut store, mut why) = (std::ptr::null_mut(), [0; WHY]);
        // SAFETY: everything is there.
        let answer =
            unsafe { open::<O>(&raw const config, &raw mut capabilities, &raw mut store, why.as_mut_ptr()) };
        (answer, store, capabilities, said(&why))
    }

    fn said(why: &[c_char; WHY]) -> String {
        // SAFETY: it was all zeros, and a sentence is ended.
        unsafe { CStr::from_ptr(why.as_ptr()) }.to_str().unwrap().to_owned()
    }

    static KEY: RawKey = RawKey { owner: 1, page: 2, generation: 3, reserved: 0 };

    #[test]
    fn late_pages_are_waited_for_and_errors_say_why() {
        let (answer, store, capabilities, _) = opened::<Late>(4096);
        assert_eq!((answer, capabilities.flags, capabilities.capacity), (0, Flags::GET_MAY_WAIT, 8192));
        assert_eq!(PageKey::from(KEY), PageKey { owner: OwnerId(1), page: 2, generation: 3 });
        let (page, mut out, mut id, mut length, mut why) = ([7; 4096], [0; 4096], 0, 0, [0; WHY]);
        // SAFETY: the store is open, and everything is as long as it has to be.
        unsafe {
            let put = |id: &mut u64, why: &mut [c_char; WHY]| {
                put(store, &raw const KEY, page.as_ptr(), id, why.as_mut_ptr())
            };
            assert_eq!(put(&mut id, &mut why), 0);
            let key = &raw const KEY;
            assert_eq!(get(store, id, key, out.as_mut_ptr(), &raw mut length, why.as_mut_ptr()), 0);
            assert_eq!((out, length), (page, 4096));
            assert_eq!(put(&mut length, &mut why), 0);
            assert_eq!(put(&mut length, &mut why), Answer::Full as i32);
            assert_eq!(said(&why), "the store is full: 4096 bytes needed, 0 of 8192 left");
            remove(store, id);
            let gone = get(store, id, key, out.as_mut_ptr(), &raw mut length, why.as_mut_ptr());
            assert_eq!(gone, Answer::NotFound as i32);
            let mut figures = RawStats::default();
            stats(store, &raw mut figures);
            assert_eq!((figures.stored_bytes, figures.memory_bytes), (4096, 4096));
            close(store);
        }
    }

    #[test]
    fn panics_end_where_c_begins() {
        let (answer, _, _, why) = opened::<Panics>(512);
        assert_eq!((answer, &*why), (Answer::Failed as i32, "the store panicked"));
        let (answer, store, ..) = opened::<Panics>(4096);
        assert_eq!(answer, 0);
        let (mut page, mut id, mut length, mut why) = ([7; 4096], 5, 0, [0; WHY]);
        // SAFETY: the store is open, and everything is as long as it has to be.
        unsafe {
            let key = &raw const KEY;
            let failed = Answer::Failed as i32;
            assert_eq!(put(store, key, page.as_ptr(), &raw mut id, why.as_mut_ptr()), failed);
            assert_eq!(said(&why), "the store panicked");
            let got = get(store, 5, key, page.as_mut_ptr(), &raw mut length, why.as_mut_ptr());
            assert_eq!((got, length), (failed, 0));
            remove(store, 5);
            let (mut figures, mut done) = (RawStats::default(), RawMaintained::default());
            stats(store, &raw mut figures);
            maintain(store, 1, &raw mut done);
            assert_eq!((figures, done), (RawStats::default(), RawMaintained::default()));
            close(store);
        }
    }
}
