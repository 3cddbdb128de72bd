//! What comes along with the pages that threads wait for: how much of it is wanted, by the order in which memory is gone through. Pages are
//! counted, nothing is timed.

use crate::region::pages_of;
use std::sync::Arc;
use userswap_engine::PagedRegion;
use userswap_engine::core::{Counts, Transition};
use userswap_tests::own::Own;
use userswap_tests::pages::Pages;
use userswap_tests::plain::PlainStore;
use userswap_tests::random::Random;
use userswap_tests::watch::{Watchdog, until};

const PAGES: u64 = 8192;

/// What a thread reads, in order, no page twice.
fn order(pattern: &str) -> Vec<u64> {
    let strided = |stride: usize| (0..PAGES).step_by(stride).collect::<Vec<_>>();
    match pattern {
        "sequential" => strided(1),
        "backwards" => (0..PAGES).rev().collect(),
        "every third" => strided(3),
        "every seventeenth" => strided(17),
        "two streams" => (0..PAGES / 2).flat_map(|at| [at, at + PAGES / 2]).collect(),
        "four streams of distances 1 to 4" => {
            (0..PAGES / 16).flat_map(|at| (0..4).map(move |of| of * PAGES / 4 + at * (of + 1))).collect()
        }
        _ => {
            let mut random = Random::new(11);
            let mut all: Vec<u64> = (0..PAGES).collect();
            (1..all.len()).rev().for_each(|at| all.swap(at, random.below(at as u64 + 1) as usize));
            all.truncate(all.len() / 4);
            all
        }
    }
}

/// Pages put in place, those of them that were asked for, and those that have a verdict, for and against.
fn counted(counts: &Counts) -> [u64; 4] {
    let of = |transition| counts.get(transition);
    [
        of(Transition::Installed),
        of(Transition::Fetch) + of(Transition::Recall),
        of(Transition::AlongUsed),
        of(Transition::AlongUnused),
    ]
}

/// Goes through memory that is all out in each order, and looks what came.
fn go_through(name: &str, pages: &Pages, counts: impl Fn() -> [u64; 4], evict: impl Fn()) {
    pages.fill_all(|page| page + 1);
    for pattern in [
        "random",
        "sequential",
        "backwards",
        "every third",
        "every seventeenth",
        "two streams",
        "four streams of distances 1 to 4",
    ] {
        evict();
        let before = counts();
        let order = order(pattern);
        for page in &order {
            assert_eq!(pages.read(*page), Ok(page + 1));
        }
        let touched = order.len() as u64;
        // Who brought the last pages may not have counted them yet.
        until("all that was touched is counted", || counts()[0] - before[0] >= touched);
        let after = counts();
        let [came, asked, used, unused] = [0, 1, 2, 3].map(|at| after[at] - before[at]);
        let (along, in_vain) = (came - asked, came - touched);
        println!(
            "{name}, {pattern}: {touched} touched, {asked} asked for, {came} came, {in_vain} in vain; verdicts {used} and {unused}"
        );
        if pattern == "random" {
            assert!(in_vain * 20 <= touched, "{name}, {pattern}: {in_vain} in vain beside {touched}");
        } else {
            assert!(in_vain * 5 <= along, "{name}, {pattern}: {in_vain} of {along} in vain");
            assert!(asked * 2 <= touched, "{name}, {pattern}: {asked} of {touched} asked for");
            assert!(used >= unused * 3, "{name}, {pattern}: verdicts {used} and {unused}");
        }
    }
}

#[test]
fn what_comes_along_is_wanted_in_an_address_space() {
    let name = "what_comes_along_is_wanted_in_an_address_space";
    let _watch = Watchdog::new(name);
    let store = Arc::new(PlainStore::default());
    let Some(own) = Own::settings(PAGES, Arc::clone(&store) as _).build(name) else { return };
    go_through(
        name,
        &own.pages,
        || counted(own.space.counts()),
        || {
            own.evict();
        },
    );
    assert_eq!(store.freed_twice(), 0);
}

#[test]
fn what_comes_along_is_wanted_in_a_region() {
    let _watch = Watchdog::new("what_comes_along_is_wanted_in_a_region");
    for inline in [false, true] {
        let store = Arc::new(PlainStore::default());
        let builder = PagedRegion::builder(PAGES * 4096, Arc::clone(&store) as _);
        let name = if inline { "inline" } else { "local" };
        let region = match if inline { builder.inline() } else { builder }.build() {
            Ok(region) => region,
            Err(error) => {
                println!("SKIPPED {name}: {error}");
                continue;
            }
        };
        let pages = pages_of(&region);
        go_through(
            name,
            &pages,
            || counted(region.counts()),
            || {
                region.evict(..).unwrap();
            },
        );
        drop(region);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}
