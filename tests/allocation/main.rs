//! A fault served from memory allocates nothing. A program of its own, for its allocator counts.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use userswap_engine::PagedRegion;
use userswap_tests::own::Own;
use userswap_tests::pages::Pages;
use userswap_tests::watch::Watchdog;
use userswap_uffd::Span;

/// The system's, and it counts what fault handlers take.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static BY_HANDLERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// What is known of this thread: nothing yet, that it is a handler, that it isn't.
    static KIND: Cell<u8> = const { Cell::new(0) };
    /// What it has taken.
    static BY_THIS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: needed to count. Every call is the system allocator's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    let _ = BY_THIS.try_with(|count| count.set(count.get() + 1));
    if COUNTING.load(Ordering::Relaxed) && is_handler() {
        BY_HANDLERS.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_handler() -> bool {
    // A thread whose variables are gone already is no handler at work.
    KIND.try_with(|kind| {
        if kind.get() == 0 {
            let mut name = [0u8; 16];
            // SAFETY: needed because names can't be asked for otherwise without an allocation; the kernel writes 16 bytes.
            unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
            kind.set(if name.starts_with(b"userswap-fault") { 1 } else { 2 });
        }
        kind.get() == 1
    })
    .unwrap_or(false)
}

/// Everything that this thread takes counts, whoever took it: between the two there is nothing but touches.
#[test]
fn a_fault_served_in_its_own_thread_allocates_nothing() {
    let _watch = Watchdog::new("a_fault_served_in_its_own_thread_allocates_nothing");
    let store = userswap_stores::open("ram:lz4", 4096).unwrap();
    let built = PagedRegion::builder(512 * 4096, store).inline().build();
    let region = match built {
        Ok(region) => region,
        Err(error) => {
            println!("SKIPPED a_fault_served_in_its_own_thread_allocates_nothing: {error}");
            return;
        }
    };
    let span = Span::new(region.as_ptr().expose_provenance() as u64, region.len() as u64).unwrap();
    // SAFETY: read-write memory that lives as long as the region, of which nobody makes a slice.
    let pages = unsafe { Pages::new(span) };
    pages.fill_all(|page| page + 1);
    for round in 0..3 {
        region.evict(..).unwrap();
        // A thread that never faulted before.
        let taken = std::thread::scope(|scope| {
            let touching = scope.spawn(|| {
                let before = BY_THIS.get();
                for page in 0..128 {
                    assert_eq!(pages.peek(511 - page * 2), 512 - page * 2);
                }
                for page in 0..512 {
                    assert_eq!(pages.peek(page), page + 1);
                }
                BY_THIS.get() - before
            });
            touching.join().unwrap()
        });
        assert_eq!(taken, 0, "round {round}");
    }
}

#[test]
fn a_fault_served_from_memory_allocates_nothing() {
    let _watch = Watchdog::new("a_fault_served_from_memory_allocates_nothing");
    for spec in ["ram:lz4", "ram:zstd"] {
        let store = userswap_stores::open(spec, 4096).unwrap();
        let settings = Own::settings(512, Arc::clone(&store)).around(32);
        let Some(own) = settings.build("a_fault_served_from_memory_allocates_nothing") else { return };
        own.pages.fill_all(|page| page + 1);
        own.evict();
        // What is made once is made by now: codecs, buffers, tables.
        own.pages.assert_all(|page| page + 1);
        for _ in 0..2 {
            own.evict();
            let before = own.space.counts().get(userswap_engine::core::Transition::Fetch);
            COUNTING.store(true, Ordering::SeqCst);
            // One by one, from both ends, and then in order with what comes along.
            for page in 0..128 {
                assert_eq!(own.pages.peek(511 - page * 2), 512 - page * 2);
            }
            for page in 0..512 {
                assert_eq!(own.pages.peek(page), page + 1);
            }
            COUNTING.store(false, Ordering::SeqCst);
            assert!(own.space.counts().get(userswap_engine::core::Transition::Fetch) > before);
        }
        assert_eq!(BY_HANDLERS.load(Ordering::SeqCst), 0, "{spec}");
    }
}
