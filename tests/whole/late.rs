//! Stores that answer late, in any order, with errors, or don't take pages at all.

use crate::child;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use userswap_engine::fault::FaultWork;
use userswap_engine::memory::Fault;
use userswap_engine::{EvictError, Keep, MemoryError, PagedRegion};
use userswap_store::{PageKey, StoreError};
use userswap_tests::own::Own;
use userswap_tests::random::Random;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::{Watchdog, rounds, until};

const PAGES: u64 = 128;

fn value(page: u64) -> u64 {
    page + 1
}

fn timed_out() -> StoreError {
    StoreError::Io { doing: "reading", source: io::ErrorKind::TimedOut.into() }
}

/// Two thirds of the pages come late, in an order of their own; several threads wait.
#[test]
fn pages_that_come_late_and_in_any_order_all_come() {
    let _watch = Watchdog::new("pages_that_come_late_and_in_any_order_all_come");
    let store = ScriptedStore::new(|key: PageKey| {
        match key.page.wrapping_mul(31).wrapping_add(key.generation.into()) % 3 {
            0 => Answer::Ready,
            _ => Answer::Late(None),
        }
    });
    let store = Arc::new(store.late(5));
    let settings = Own::settings(PAGES, Arc::clone(&store) as _).around(8);
    let Some(own) = settings.build("pages_that_come_late_and_in_any_order_all_come") else { return };
    own.pages.fill_all(value);
    for round in 0..rounds(20, 400) {
        own.evict();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let own = &own;
                scope.spawn(move || {
                    let mut random = Random::new(round << 8 | seed);
                    for _ in 0..PAGES {
                        let page = random.below(PAGES);
                        assert_eq!(own.pages.read(page), Ok(value(page)), "round {round}");
                    }
                });
            }
        });
    }
    own.pages.assert_all(value);
    assert_eq!(own.space.troubles(), (0, 0));
    nothing_left(own, &store);
}

fn nothing_left(own: Own, store: &ScriptedStore) {
    drop(own);
    until("nothing is left in the store", || store.plain().is_empty());
    assert_eq!(store.plain().freed_twice(), 0);
}

/// An error that may pass is tried again, whether it comes at once or late.
#[test]
fn errors_that_pass_lose_nothing() {
    let _watch = Watchdog::new("errors_that_pass_lose_nothing");
    for late in [false, true] {
        let tries = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&tries);
        let store = ScriptedStore::new(move |_| match (counted.fetch_add(1, Ordering::Relaxed) % 3, late) {
            (2, false) => Answer::Ready,
            (_, false) => Answer::Fail(timed_out()),
            (2, true) => Answer::Late(None),
            (_, true) => Answer::Late(Some(timed_out())),
        });
        let store = Arc::new(if late { store.late(7) } else { store });
        let settings = Own::settings(16, Arc::clone(&store) as _).around(1);
        let Some(own) = settings.build("errors_that_pass_lose_nothing") else { return };
        own.pages.fill_all(value);
        own.evict();
        // One page after the other: each is asked for three times.
        own.pages.assert_all(value);
        assert_eq!(tries.load(Ordering::Relaxed), 48, "late: {late}");
        assert_eq!(own.space.troubles().1, 0, "late: {late}");
        nothing_left(own, &store);
    }
}

/// Who waits until a range is back before it is left alone doesn't wait for a page that never comes.
#[test]
fn a_range_with_a_lost_page_is_not_waited_for_for_ever() {
    let name = "a_range_with_a_lost_page_is_not_waited_for_for_ever";
    let _watch = Watchdog::new(name);
    // One of any sixteen neighbours.
    let store = ScriptedStore::new(|key: PageKey| match key.page % 16 {
        3 => Answer::Fail(StoreError::Corrupt { key, what: "checksum" }),
        _ => Answer::Ready,
    });
    let store = Arc::new(store);
    let Some(own) = Own::settings(16, Arc::clone(&store) as _).around(1).build(name) else { return };
    own.pages.fill_all(value);
    own.evict();
    let refused = own.space.let_go_patiently(own.pages.span());
    assert!(matches!(refused, Err(MemoryError::Refused { .. })), "{refused:?}");
    assert_eq!((own.space.troubles().1, own.space.usage().out), (1, 1));
    nothing_left(own, &store);
}

/// The page whose bytes are damaged is lost, and says so: SIGBUS, EFAULT, never zeros. Its neighbours are as they were.
#[test]
fn a_lost_page_is_a_bus_error_and_nothing_else_is_lost() {
    let _watch = Watchdog::new("a_lost_page_is_a_bus_error_and_nothing_else_is_lost");
    let mut part = child::start("lost", &[]);
    if part.skipped_or("all others are fine") {
        return;
    }
    let status = part.end();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// A store that is full, or fails, or wants to be asked again: pages that moved stand in their slots, the others stay.
#[test]
fn what_a_store_does_not_take_stays() {
    let _watch = Watchdog::new("what_a_store_does_not_take_stays");
    let refuse = Arc::new(AtomicU64::new(0));
    let refusing = Arc::clone(&refuse);
    let store =
        ScriptedStore::new(|_| Answer::Ready).on_put(move |pages| match refusing.load(Ordering::Relaxed) {
            0 => Ok(()),
            1 => Err(StoreError::Full { needed: pages as u64 * 4096, available: 0, capacity: 0 }),
            _ => Err(StoreError::Io { doing: "writing", source: io::ErrorKind::Other.into() }),
        });
    let store = Arc::new(store);
    // Room for half the pages in slots.
    let settings = Own::settings(PAGES, Arc::clone(&store) as _).slots(PAGES / 2, 16);
    let Some(own) = settings.build("what_a_store_does_not_take_stays") else { return };
    for kind in [1, 2] {
        own.pages.fill_all(|page| value(page) << kind);
        refuse.store(kind, Ordering::Relaxed);
        // Once and again, until the slots are full of what can't be written.
        for _ in 0..PAGES / 16 {
            let stopped = own.space.move_out(own.pages.span(), u64::MAX, Keep::Stored);
            assert!(matches!(stopped, Err(EvictError::Store(_) | EvictError::NoSlot)), "{stopped:?}");
        }
        // Handlers let go of slots and objects after they have woken who waited.
        until("nothing is held but what stands", || {
            let usage = own.space.usage();
            (usage.out, usage.standby, store.plain().len()) == (PAGES / 2, PAGES / 2, 0)
        });
        // A few come back from there, and go again.
        own.pages.part(0, 8).assert_all(|page| value(page) << kind);
        assert!(own.space.write_out(u64::MAX).is_err());
        refuse.store(0, Ordering::Relaxed);
        own.space.write_out(u64::MAX).unwrap();
        until("nothing stands any more", || own.space.usage().standby == 0);
        own.evict();
        assert_eq!(store.plain().len() as u64, PAGES);
        own.pages.assert_all(|page| value(page) << kind);
        until("everything is given back", || store.plain().is_empty());
    }
    nothing_left(own, &store);
}

/// A region goes while pages for it are on their way.
#[test]
fn a_region_dropped_while_pages_are_on_their_way_leaves_nothing() {
    let _watch = Watchdog::new("a_region_dropped_while_pages_are_on_their_way_leaves_nothing");
    let store = Arc::new(ScriptedStore::new(|_| Answer::Late(None)).late(3));
    let name = "a_region_dropped_while_pages_are_on_their_way_leaves_nothing";
    for round in 0..20 {
        let settings = Own::settings(PAGES, Arc::clone(&store) as _).around(4);
        let Some(own) = settings.build(name) else { return };
        own.pages.fill_all(value);
        own.evict();
        store.hold(true);
        let space = Arc::clone(&own.space);
        // Whoever waits for it all is told that the region is gone, or gets it all.
        let waiting = std::thread::spawn({
            let (space, span) = (Arc::clone(&own.space), own.pages.span());
            move || space.bring_back(span, 4)
        });
        until("pages are on their way", || store.due() > 0);
        if round % 2 == 0 {
            store.hold(false);
        }
        drop(own);
        store.hold(false);
        let _ = waiting.join().unwrap();
        drop(space);
        until("nothing is left in the store", || store.plain().is_empty());
    }
    assert_eq!(store.plain().freed_twice(), 0);
}

/// Bringing in returns when the pages are there, not when they were asked for.
#[test]
fn what_is_brought_in_from_a_late_store_is_there() {
    let _watch = Watchdog::new("what_is_brought_in_from_a_late_store_is_there");
    let store = Arc::new(ScriptedStore::new(|_| Answer::Late(None)).late(11));
    let mut region = PagedRegion::builder(PAGES * 4096, Arc::clone(&store) as _).build().unwrap();
    region.as_mut_slice().fill(7);
    for _ in 0..10 {
        assert_eq!(region.evict(..).unwrap().stored, PAGES);
        assert_eq!(region.bring_in(..).unwrap(), PAGES);
        assert_eq!(region.usage().out_bytes, 0);
    }
    assert!(region.as_slice().iter().all(|byte| *byte == 7));
    drop(region);
    until("nothing is left in the store", || store.plain().is_empty());
}

/// A handler has read of a fault in a region that goes before it is served, and another region of the process stands there by
/// then. One userfaultfd's zero page would fill the other one's hole: a page that is out would read as zeros.
#[test]
fn a_fault_that_outlives_its_region_leaves_the_next_one_alone() {
    let name = "a_fault_that_outlives_its_region_leaves_the_next_one_alone";
    let _watch = Watchdog::new(name);
    let store = Arc::new(ScriptedStore::new(|_| Answer::Ready));
    let settings = Own::settings(4, Arc::clone(&store) as _);
    let (Some(gone), Some(next)) =
        (settings.build(name), Own::settings(PAGES, Arc::clone(&store) as _).build(name))
    else {
        return;
    };
    next.pages.fill_all(value);
    next.evict();
    gone.engine.forget(gone.id);
    let fault = Fault { addr: next.pages.span().start(), write: false, thread: None };
    FaultWork::new(1).run(&gone.space, fault);
    next.pages.assert_all(value);
    drop(gone);
    nothing_left(next, &store);
}
