//! Stacks of stores: the laws, and what goes down when.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use userswap_store::testkit::{Ask, Reference, fetch_and_wait};
use userswap_store::{Budget, Store};
use userswap_stores::tier::{Settings, Tier};

use pages::{key, page, put};

const AT_ONCE: Settings = Settings { age: Duration::ZERO, rate: None };

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
    let settings = Settings { age: Duration::from_secs(60), rate: None };
    let (clock, tier) = stack(vec![ram(""), ram("")], settings);
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
    let (clock, tier) =
        stack(vec![ram("?capacity=1M"), ram("")], Settings { rate: None, ..Settings::default() });
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
    let settings = Settings { age: Duration::from_secs(1), rate: Some(10 * 4096) };
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
