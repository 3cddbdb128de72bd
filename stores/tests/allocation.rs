//! Putting and fetching take no memory from the allocator.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use userswap_store::{Budget, Fetch, OwnerId, Page, PageKey, Store, StoreError, Waiter, Wanted};
use userswap_stores::ram::{Codec, Ram};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: needed to see allocations; each call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are the system allocator's requirements.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn a_running_store_does_not_allocate() {
    let codecs = [
        (Codec::Lz4, 1000),
        #[cfg(feature = "ram-zstd")]
        (Codec::Zstd { level: -1 }, 100_000),
        // With a dictionary from the first call of `maintain` on.
        #[cfg(feature = "ram-zstd")]
        (Codec::Zstd { level: -1 }, 100),
    ];
    for (codec, dictionary_from) in codecs {
        let builder = Ram::with_codec(codec).dictionary_from(dictionary_from);
        let store = builder.dense(None).build().unwrap();
        let images: Vec<Vec<u8>> =
            userswap_store::testkit::images(4096).into_iter().map(|image| image.bytes).collect();
        let keys: Vec<PageKey> =
            (0..600).map(|page| PageKey { owner: OwnerId(1), page, generation: 0 }).collect();
        let pages: Vec<Page<'_>> =
            keys.iter().zip(images.iter().cycle()).map(|(key, bytes)| Page { key: *key, bytes }).collect();
        let mut handles = vec![None; pages.len()];
        let growing = count(|| store.put(&pages, &mut handles).unwrap());
        assert!(
            growing < 200,
            "{growing} allocations for 600 pages in a new store: by slab and chunk, not by page"
        );

        let before = store.stats().stored_bytes;
        store.maintain(Budget::UNLIMITED);
        let has_dictionary = store.stats().stored_bytes != before;
        assert_eq!(has_dictionary, dictionary_from == 100);

        let mut out = vec![0; 4096 * 16];
        let mut results: Vec<Result<Fetch, StoreError>> = (0..16).map(|_| Ok(Fetch::Pending)).collect();
        let waiter = Waiter::none();
        let wanted: Vec<Wanted> = keys
            .iter()
            .zip(&handles)
            .map(|(key, handle)| Wanted { handle: handle.unwrap(), key: *key })
            .collect();
        let run = |out: &mut [u8], results: &mut [Result<Fetch, StoreError>]| {
            for wanted in wanted.chunks_exact(16) {
                store.fetch_run(wanted, out, results, &waiter).unwrap();
                assert!(results.iter().all(|result| matches!(result, Ok(Fetch::Ready))));
            }
        };
        // The thread's decompressor is made at its first use.
        run(&mut out, &mut results);
        assert_eq!(count(|| run(&mut out, &mut results)), 0, "{codec:?}: fetching in runs");
        let singly = count(|| {
            for wanted in &wanted {
                store.fetch(wanted.handle, wanted.key, &mut out[..4096], &waiter).unwrap();
            }
        });
        assert_eq!(singly, 0, "{codec:?}: fetching");
        let mut turn_over = || {
            for (page, handle) in pages.iter().zip(&mut handles) {
                store.free(&[handle.take().unwrap()]);
                store.put(&[*page], std::slice::from_mut(handle)).unwrap();
            }
        };
        if has_dictionary {
            // What an owner's samples lie in is made once, and so is what the index needs for a dictionary.
            turn_over();
            turn_over();
        }
        let turnover = count(turn_over);
        assert_eq!(turnover, 0, "{codec:?}: freeing and putting");
        assert_eq!(count(|| assert_eq!(store.stats().pages, 600)), 0, "{codec:?}: stats");
    }
}
