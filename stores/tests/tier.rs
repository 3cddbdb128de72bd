//! Stacks of stores: the laws, and what goes down when.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use userswap_store::testkit::{Ask, Reference, fetch_and_wait};
use userswap_store::{Budget, Handle, Page, Store};
use userswap_stores::tier::{Settings, Tier};

use pages::{key, page, put, put_page, soft};

const AT_ONCE: Settings = Settings { age: Duration::ZERO, rate: None, admit: None };
/// Pages of noise stay where they are put.
const ANY: Settings = Settings { age: Duration::from_secs(60), rate: None, admit: None };

fn ram(options: &str) -> Arc<dyn Store> {
    userswap_stores::open(&format!("ram:lz4{options}"), 4096).unwrap()
}

fn late() -> Arc<dyn Store> {
    Arc::new(Reference::new(&Ask::default(), None).answering_late())
}

mod that_sinks_at_once {
    use super::*;

    userswap_store::conformance!(|_: &Ask| -> Arc<dyn Store> {
        Arc::new(Tier::new(vec![ram(""), ram(""), late()], AT_ONCE).unwrap())
    });
}

mod with_little_room_at_the_top {
    use super::*;

    userswap_store::conformance!(|_: &Ask| -> Arc<dyn Store> {
        Arc::new(Tier::new(vec![ram("?capacity=512K"), late()], Settings::default()).unwrap())
    });
}

#[cfg(feature = "file")]
mod over_a_file {
    use super::*;

    userswap_store::conformance!(|_: &Ask| -> Arc<dyn Store> {
        let directory = std::env::temp_dir();
        let file = format!("file:{}?reserve=0&size=16M", directory.to_str().unwrap());
        let file = userswap_stores::open(&file, 4096).unwrap();
        Arc::new(Tier::new(vec![ram("?capacity=512K"), file], AT_ONCE).unwrap())
    });
}

/// A stack by a clock that is set by hand, in seconds.
fn stack(stores: Vec<Arc<dyn Store>>, settings: Settings) -> (Arc<AtomicU64>, Tier) {
    let clock = Arc::new(AtomicU64::new(0));
    let its = Arc::clone(&clock);
    let now = Arc::new(move || Duration::from_secs(its.load(Ordering::Relaxed)));
    (clock, Tier::with_clock(stores, settings, now).unwrap())
}

fn figure(store: &dyn Store, wanted: &str) -> u64 {
    let mut found = None;
    store.figures(&mut |name, figure| found = if name == wanted { Some(figure) } else { found });
    found.unwrap()
}

fn pages_by_tier(store: &dyn Store) -> [u64; 2] {
    ["tier0_pages", "tier1_pages"].map(|name| figure(store, name))
}

#[test]
fn what_nobody_touches_goes_down_when_it_is_old() {
    let (clock, tier) = stack(vec![ram(""), ram("")], ANY);
    let handles: Vec<_> = (0..100).map(|number| put(&tier, number).unwrap()).collect();
    clock.store(59, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [100, 0]);
    for (number, handle) in (0..30).zip(&handles) {
        fetch_and_wait(&tier, *handle, key(number)).unwrap();
    }
    clock.store(60, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [30, 70]);
    assert_eq!(figure(&tier, "tier0_sunk"), 70);
    for (number, handle) in (0..).zip(&handles) {
        assert!(fetch_and_wait(&tier, *handle, key(number)).unwrap() == page(number));
    }
    assert_eq!([figure(&tier, "tier0_hits"), figure(&tier, "tier1_hits")], [60, 70]);
    tier.free(&handles);
    assert_eq!((tier.stats().pages, tier.stats().stored_bytes), (0, 0));
}

#[test]
fn a_full_tier_leaves_puts_to_the_next_and_is_relieved() {
    let (clock, tier) = stack(vec![ram("?capacity=1M"), ram("")], ANY);
    let handles: Vec<_> = (0..400).map(|number| put(&tier, number).unwrap()).collect();
    let [above, below] = pages_by_tier(&tier);
    assert!(above > 150 && below > 100 && above + below == 400, "{above} and {below}");
    // Long before their time, the older the sooner.
    clock.store(50, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert!(pages_by_tier(&tier)[0] < above / 2, "{:?}", pages_by_tier(&tier));
    for (number, handle) in (0..).zip(&handles) {
        assert!(fetch_and_wait(&tier, *handle, key(number)).unwrap() == page(number));
    }
}

#[test]
fn no_more_goes_down_than_was_said() {
    let settings = Settings { age: Duration::from_secs(1), rate: Some(10 * 4096), admit: None };
    let (clock, tier) = stack(vec![ram(""), ram("")], settings);
    let _handles: Vec<_> = (0..100).map(|number| put(&tier, number).unwrap()).collect();
    for second in 1..=5 {
        clock.store(second, Ordering::Relaxed);
        tier.maintain(Budget::UNLIMITED);
        tier.maintain(Budget::UNLIMITED);
        assert_eq!(pages_by_tier(&tier)[1], second * 10);
    }
    clock.store(1000, Ordering::Relaxed);
    tier.maintain(Budget::bytes(3 * 4096));
    assert_eq!(pages_by_tier(&tier)[1], 53);
}

#[test]
fn what_does_not_compress_goes_straight_down() {
    let three = |settings| stack(vec![ram(""), ram(""), late()], settings).1;
    let tier = three(Settings::default());
    let bytes = |number| if number % 3 == 0 { page(number) } else { soft(number) };
    let pages: Vec<_> = (0..300).map(|number| (number, bytes(number))).collect();
    let batch: Vec<_> = pages.iter().map(|(number, bytes)| Page { key: key(*number), bytes }).collect();
    let mut handles = vec![None; batch.len()];
    for (some, handles) in batch.chunks(32).zip(handles.chunks_mut(32)) {
        tier.put(some, handles).unwrap();
    }
    let by_tier = |tier: &Tier| [0, 1, 2].map(|number| figure(tier, &format!("tier{number}_pages")));
    assert_eq!(by_tier(&tier), [200, 0, 100]);
    assert_eq!(["tier0_too_large", "tier1_too_large"].map(|name| figure(&tier, name)), [100, 100]);
    for ((number, bytes), handle) in pages.iter().zip(&handles) {
        assert!(fetch_and_wait(&tier, handle.unwrap(), key(*number)).unwrap() == *bytes, "{number}");
    }
    let handles: Vec<_> = handles.into_iter().flatten().collect();
    tier.free(&handles);
    assert_eq!((tier.stats().pages, tier.stats().stored_bytes), (0, 0));

    let tier = three(Settings { admit: Some(1.0), ..Settings::default() });
    put(&tier, 0).unwrap();
    assert_eq!(by_tier(&tier), [1, 0, 0]);
    let failing = userswap_stores::open("chaos?put_errors=1+ram:lz4", 4096).unwrap();
    let (_, tier) = stack(vec![ram(""), failing], Settings::default());
    let handle = put(&tier, 7).unwrap();
    assert_eq!(pages_by_tier(&tier), [1, 0], "where no tier takes it, it stays");
    assert!(fetch_and_wait(&tier, handle, key(7)).unwrap() == page(7));
}

/// Puts sixteen pages of a block together; its first number is a multiple of that.
fn put_block(tier: &Tier, first: u64, bytes: impl Fn(u64) -> Vec<u8>) -> Vec<Handle> {
    (first..first + 16).map(|number| put_page(tier, number, &bytes(number)).unwrap()).collect()
}

fn bring_back(tier: &Tier, first: u64, handles: &[Handle], bytes: impl Fn(u64) -> Vec<u8>) {
    for (number, handle) in (first..).zip(handles) {
        assert!(fetch_and_wait(tier, *handle, key(number)).unwrap() == bytes(number));
    }
    tier.free(handles);
}

#[test]
fn what_came_back_soon_stays_high_for_longer() {
    let (clock, tier) = stack(vec![ram(""), ram("")], Settings { rate: None, ..Settings::default() });
    let at = |second| clock.store(second, Ordering::Relaxed);
    let (noise, plain) = (put_block(&tier, 0, page), put_block(&tier, 16, soft));
    assert_eq!(pages_by_tier(&tier), [16, 16]);
    at(59);
    bring_back(&tier, 0, &noise, page);
    bring_back(&tier, 16, &plain, soft);
    // Unused from here on, beside some that are new.
    at(100);
    let (noise, plain) = (put_block(&tier, 0, page), put_block(&tier, 16, soft));
    let new = put_block(&tier, 160, soft);
    assert_eq!(pages_by_tier(&tier), [48, 0], "noise, too");
    assert_eq!(figure(&tier, "tier0_kept"), 32);
    at(160);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [32, 16]);
    at(339);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [32, 16]);
    at(340);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [0, 48]);
    bring_back(&tier, 0, &noise, page);
    bring_back(&tier, 16, &plain, soft);
    bring_back(&tier, 160, &new, soft);
    assert_eq!(tier.stats().pages, 0);
}

#[test]
fn what_came_back_late_is_put_lower_where_that_costs_no_reading() {
    for (below, straight) in [(ram(""), 16), (late(), 0)] {
        let (clock, tier) = stack(vec![ram(""), below], Settings { rate: None, ..Settings::default() });
        let at = |second| clock.store(second, Ordering::Relaxed);
        let handles = put_block(&tier, 32, soft);
        // Freed without having been fetched: nothing is known of these.
        let unfetched = put_block(&tier, 64, soft);
        at(60);
        tier.maintain(Budget::UNLIMITED);
        assert_eq!(pages_by_tier(&tier), [0, 32]);
        at(61);
        bring_back(&tier, 32, &handles, soft);
        tier.free(&unfetched);
        at(70);
        let (handles, others) = (put_block(&tier, 32, soft), put_block(&tier, 64, soft));
        assert_eq!(pages_by_tier(&tier), [32 - straight, straight]);
        assert_eq!(figure(&tier, "tier1_put_straight"), straight);
        tier.free(&others);
        // Away for long, and then in memory for so long that it says nothing any more.
        at(131);
        bring_back(&tier, 32, &handles, soft);
        at(131 + 16 * 60 + 1);
        put_block(&tier, 32, soft);
        assert_eq!(pages_by_tier(&tier), [16, 0]);
    }
}

#[test]
fn a_batch_of_several_pasts_is_stored_whole_or_not_at_all() {
    let (clock, tier) = stack(vec![ram("?capacity=1M"), ram("?capacity=1M")], ANY);
    let block = put_block(&tier, 0, soft);
    clock.store(100, Ordering::Relaxed);
    bring_back(&tier, 0, &block, soft);
    // Sixteen that go straight down, and more noise than there is room for.
    let bytes: Vec<_> =
        (0..600).map(|number| if number < 16 { soft(number) } else { page(number) }).collect();
    let batch: Vec<_> = (0..).zip(&bytes).map(|(number, bytes)| Page { key: key(number), bytes }).collect();
    let mut handles = vec![None; batch.len()];
    assert!(tier.put(&batch, &mut handles).unwrap_err().is_retryable());
    assert!(handles.iter().all(Option::is_none));
    assert_eq!((tier.stats().pages, tier.stats().puts), (0, 16));
}

#[test]
fn figures_say_how_old_the_pages_of_a_tier_are() {
    let (clock, tier) = stack(vec![ram("?capacity=64M"), ram("")], ANY);
    for (second, first) in [(0, 0), (100, 16), (130, 32), (155, 48)] {
        clock.store(second, Ordering::Relaxed);
        tier.maintain(Budget::UNLIMITED);
        put_block(&tier, first, soft);
    }
    clock.store(159, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    let ages = |tier_number| {
        ["under_10s", "under_1m", "under_10m", "older"]
            .map(|name| figure(&tier, &format!("tier{tier_number}_pages_{name}")))
    };
    assert_eq!((ages(0), ages(1)), ([16, 32, 0, 0], [0, 16, 0, 0]));
    clock.store(800, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(ages(0), [0, 0, 0, 0]);
    clock.store(2000, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(ages(1), [0, 0, 0, 64]);
    assert_eq!(figure(&tier, "tier0_capacity_bytes"), 64 << 20);
}

/// A tier that takes nothing is gone round; when none takes anything, the caller keeps the page.
#[test]
fn tiers_that_fail_are_gone_round() {
    let failing = || userswap_stores::open("chaos?put_errors=1+ram:lz4", 4096).unwrap();
    let (clock, tier) = stack(vec![ram(""), failing(), ram("")], AT_ONCE);
    let handle = put(&tier, 1).unwrap();
    clock.store(1, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(figure(&tier, "tier2_pages"), 1);
    assert!(fetch_and_wait(&tier, handle, key(1)).unwrap() == page(1));
    let (clock, tier) = stack(vec![ram(""), failing()], AT_ONCE);
    let handle = put(&tier, 1).unwrap();
    clock.store(1, Ordering::Relaxed);
    tier.maintain(Budget::UNLIMITED);
    assert_eq!(pages_by_tier(&tier), [1, 0]);
    assert!(fetch_and_wait(&tier, handle, key(1)).unwrap() == page(1));
    let (_, tier) = stack(vec![failing(), failing()], AT_ONCE);
    assert!(put(&tier, 1).unwrap_err().is_retryable());
    assert_eq!(tier.stats().pages, 0);
}

/// Fetches among moves: never another's bytes, never lost.
#[test]
fn fetches_and_moves_at_once() {
    let tier = Tier::new(vec![ram(""), ram(""), ram("")], AT_ONCE).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                tier.maintain(Budget::UNLIMITED);
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|owner| {
                let tier = &tier;
                scope.spawn(move || {
                    for round in 0..60 {
                        let first = (owner * 100 + round) * 1000;
                        let handles: Vec<_> =
                            (first..first + 20).map(|number| put(tier, number).unwrap()).collect();
                        for (number, handle) in (first..).zip(&handles).chain((first..).zip(&handles)) {
                            assert!(fetch_and_wait(tier, *handle, key(number)).unwrap() == page(number));
                        }
                        tier.free(&handles);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(figure(&tier, "tier0_sunk") > 0);
    assert_eq!((tier.stats().pages, tier.stats().fetch_errors), (0, 0));
}
