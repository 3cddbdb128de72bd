//! Inline regions: what is theirs alone. What they have in common with others is tested with those, in `region`.

use crate::child;
use crate::path::Calls;
use crate::region::pages_of;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use userswap_engine::core::Transition;
use userswap_engine::{Expected, PagedRegion};
use userswap_store::{PageKey, Store};
use userswap_tests::pages::system_call_on;
use userswap_tests::plain::PlainStore;
use userswap_tests::random::Random;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::{Watchdog, rounds, until};

const PAGES: u64 = 256;

/// A region, or what says that this kernel has none.
fn build(name: &str, store: Arc<dyn Store>) -> Option<PagedRegion> {
    let built = PagedRegion::builder(PAGES * 4096, store).inline().build();
    built.inspect_err(|error| println!("SKIPPED {name}: {error}")).ok()
}

/// Some pages are had in the handler, some by the helper, at once or late, and several threads want them all.
#[test]
fn pages_come_from_stores_that_have_to_be_waited_for() {
    let name = "pages_come_from_stores_that_have_to_be_waited_for";
    let _watch = Watchdog::new(name);
    let store = ScriptedStore::new(|key: PageKey| match key.page % 3 {
        0 => Answer::Ready,
        _ => Answer::Late(None),
    });
    let store = Arc::new(store.late(5));
    let Some(region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    pages.fill_all(|page| page + 1);
    for round in 0..rounds(10, 200) {
        region.evict(..).unwrap();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    let mut random = Random::new(round << 8 | seed);
                    for _ in 0..PAGES {
                        let page = random.below(PAGES);
                        assert_eq!(pages.read(page), Ok(page + 1), "round {round}");
                    }
                });
            }
        });
    }
    assert_eq!(region.troubles(), (0, 0));
    drop(region);
    until("nothing is left in the store", || store.plain().is_empty());
    assert_eq!(store.plain().freed_twice(), 0);
}

#[test]
fn a_system_call_on_a_page_that_is_out_fails_unless_it_is_pinned() {
    let name = "a_system_call_on_a_page_that_is_out_fails_unless_it_is_pinned";
    let _watch = Watchdog::new(name);
    let store = Arc::new(PlainStore::default());
    let Some(region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    pages.fill_all(|page| page + 1);
    assert!(!region.serves_system_calls());
    region.evict(..).unwrap();
    assert_eq!(system_call_on(pages.address(9)), libc::EFAULT);
    let pinned = region.pin(9 * 4096..11 * 4096).unwrap();
    assert_eq!(region.evict(..).unwrap().moved, 0);
    assert_eq!([9, 10].map(|page| system_call_on(pages.address(page))), [0, 0]);
    assert_eq!(system_call_on(pages.address(11)), libc::EFAULT);
    drop(pinned);
    assert_eq!(region.evict(..).unwrap().moved, 2);
    pages.assert_all(|page| page + 1);
}

#[test]
fn what_was_never_touched_can_be_pinned_too() {
    let name = "what_was_never_touched_can_be_pinned_too";
    let store = Arc::new(PlainStore::default());
    let Some(region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    let before = region.pin(..4096).unwrap();
    assert_eq!(system_call_on(pages.address(0)), 0);
    pages.fill(1, 1);
    assert_eq!(region.evict(..).unwrap().moved, 1);
    assert_eq!(system_call_on(pages.address(0)), 0);
    assert_eq!(system_call_on(pages.address(7)), libc::EFAULT);
    let after = region.pin(7 * 4096..8 * 4096).unwrap();
    assert_eq!(system_call_on(pages.address(7)), 0);
    drop((before, after));
}

/// Contents that are given up never come back, wherever they were: in memory, in a slot on the way out, in the store.
#[test]
fn what_was_discarded_reads_as_zeros() {
    let name = "what_was_discarded_reads_as_zeros";
    let _watch = Watchdog::new(name);
    let store = Arc::new(PlainStore::default());
    let Some(mut region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    let mut random = Random::new(1);
    for round in 1..rounds(30, 1000) {
        pages.fill_all(|page| page + round);
        let kept = random.below(PAGES);
        region.evict(random.below(PAGES) as usize * 4096..).unwrap();
        let before = region.usage();
        region.discard(kept as usize * 4096..).unwrap();
        let after = region.usage();
        assert!(after.resident_bytes + after.out_bytes <= kept * 4096, "{before:?} {after:?}");
        for page in 0..PAGES {
            let held = if page < kept { page + round } else { 0 };
            assert_eq!(pages.read(page), Ok(held), "page {page} of {kept}, round {round}");
        }
    }
    drop(region);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

/// Zeros are put there by the run for who goes through fresh memory in order, and one by one for who doesn't.
#[test]
fn fresh_memory_comes_in_runs() {
    let name = "fresh_memory_comes_in_runs";
    let store = Arc::new(PlainStore::default());
    let Some(region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    pages.fill(0, 7);
    region.evict(..).unwrap();
    for page in 1..PAGES {
        assert_eq!(pages.read(page), Ok(0));
    }
    let touches = region.counts().get(Transition::FirstTouch);
    assert!(touches < 16, "{touches} faults for {PAGES} pages");
    assert_eq!(pages.read(0), Ok(7));
}

#[test]
fn advice_is_taken() {
    let name = "advice_is_taken";
    let store = Arc::new(PlainStore::default());
    let Some(region) = build(name, Arc::clone(&store) as _) else { return };
    let pages = pages_of(&region);
    pages.fill_all(|page| page + 1);
    let faults = |expected| {
        region.evict(..).unwrap();
        region.advise(.., expected).unwrap();
        let before = region.counts().get(Transition::Fetch);
        pages.assert_all(|page| page + 1);
        region.counts().get(Transition::Fetch) - before
    };
    assert_eq!(faults(Expected::Random), PAGES);
    assert_eq!(faults(Expected::Sequential), PAGES / 64);
    // Windows that nobody waits for are none.
    assert!((2..20).contains(&faults(Expected::Unknown)));
    region.evict(..).unwrap();
    region.advise(..8192, Expected::WillNeed).unwrap();
    assert_eq!(region.usage().out_bytes, (PAGES - 2) * 4096);
}

/// Many regions are told apart, and coming and going doesn't disturb those that stay.
#[test]
fn regions_come_and_go_while_others_are_used() {
    let name = "regions_come_and_go_while_others_are_used";
    let _watch = Watchdog::new(name);
    let store = Arc::new(PlainStore::default());
    if build(name, Arc::clone(&store) as _).is_none() {
        return;
    }
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let used: Vec<_> = (0..2)
            .map(|number| {
                let (store, end) = (Arc::clone(&store), &end);
                scope.spawn(move || {
                    let region = build(name, store).unwrap();
                    let pages = pages_of(&region);
                    pages.fill_all(|page| page << 8 | number);
                    while !end.load(Ordering::Relaxed) {
                        region.evict(..).unwrap();
                        pages.assert_all(|page| page << 8 | number);
                    }
                })
            })
            .collect();
        let mut stay = Vec::new();
        for number in 0..rounds(40, 1000) {
            let region = build(name, Arc::clone(&store) as _).unwrap();
            let pages = pages_of(&region);
            pages.part(0, 8).fill_all(|page| page + number);
            region.evict(..).unwrap();
            pages.part(0, 8).assert_all(|page| page + number);
            region.evict(..).unwrap();
            if number % 4 == 0 {
                stay.push((number, region));
            }
        }
        for (number, region) in &stay {
            pages_of(region).part(0, 8).assert_all(|page| page + number);
        }
        end.store(true, Ordering::Relaxed);
        used.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

/// Plays a scenario in a process of its own.
fn play(scenario: &str) -> child::Part {
    child::start("inline", &[scenario])
}

/// Signals whose handlers touch the region come while the thread allocates, faults, moves pages out and brings them in.
#[test]
fn signal_handlers_may_touch_a_region_wherever_they_come() {
    let _watch = Watchdog::new("signal_handlers_may_touch_a_region_wherever_they_come");
    let mut part = play("signals");
    if !part.skipped_or("done") {
        part.wait();
    }
}

#[test]
fn a_forked_child_has_no_region_and_its_parent_has_it_still() {
    let mut part = play("fork");
    if !part.skipped_or("done") {
        part.wait();
    }
}

#[test]
fn a_sigbus_of_somebody_elses_goes_where_it_went() {
    let mut part = play("others");
    if !part.skipped_or("done") {
        part.wait();
    }
}

#[test]
fn a_page_that_is_lost_ends_who_touches_it() {
    let mut part = play("lost");
    if !part.skipped_or("all others are fine") {
        assert_eq!(part.end().signal(), Some(libc::SIGBUS));
    }
}

/// The install, and the return from the signal: nothing else is asked of the kernel.
#[test]
fn a_fault_served_from_memory_is_one_install() {
    const FAULTS: u64 = 256;
    let name = "a_fault_served_from_memory_is_one_install";
    let _watch = Watchdog::new(name);
    let mut part = play("path");
    if part.skipped_or("ready") {
        return;
    }
    let main = part.pid().cast_signed();
    let Some(calls) = Calls::while_touching(name, part, main) else { return };
    assert_eq!((calls.of(libc::SYS_ioctl), calls.of(libc::SYS_rt_sigreturn)), (FAULTS, FAULTS), "{calls:?}");
    // Being told to touch, telling that it did, and getting the helper up once.
    let others = calls.all() - 2 * FAULTS;
    assert!(others <= 8, "{others} other calls: {calls:?}");
}
