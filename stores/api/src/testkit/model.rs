//! The law that compares a store with a map: any sequence of calls, and the shortest that shows a difference.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};

use super::images::varied;
use super::steps::{Outcome, expect_page, gauges, put_one, verdict};
use super::{Ask, Make, Verdict};
use crate::{Budget, Handle, OwnerId, PageKey, Store};

/// A step of the model law.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u64),
    Fetch(u8),
    Free(u8),
    FreeTwice(u8),
    Maintain(u16),
}

pub(super) fn model(make: &dyn Make) -> Verdict {
    let step = prop_oneof![
        4 => (any::<u8>(), 0..40_u64).prop_map(|(page, seed)| Step::Put(page, seed)),
        3 => any::<u8>().prop_map(Step::Fetch),
        2 => any::<u8>().prop_map(Step::Free),
        1 => any::<u8>().prop_map(Step::FreeTwice),
        1 => any::<u16>().prop_map(Step::Maintain),
    ];
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&prop::collection::vec(step, 1..300), |steps| {
        play(&*make.make(&Ask::default()), &steps).map_err(TestCaseError::fail)
    });
    verdict(outcome.map_err(|error| error.to_string()))
}

/// Plays the steps against the store and a map.
fn play(store: &dyn Store, steps: &[Step]) -> Outcome {
    let size = store.capabilities().page_size;
    let mut map: BTreeMap<u8, (PageKey, Handle, u64)> = BTreeMap::new();
    for (generation, step) in (0..).zip(steps) {
        match *step {
            Step::Put(page, seed) => {
                let key = PageKey { owner: OwnerId(7), page: u64::from(page), generation };
                let handle = put_one(store, key, &varied(seed, size)).map_err(|e| e.to_string())?;
                if let Some((_, old, _)) = map.insert(page, (key, handle, seed)) {
                    store.free(&[old]);
                }
            }
            Step::Fetch(page) => {
                if let Some((key, handle, seed)) = map.get(&page) {
                    expect_page(store, *handle, *key, &varied(*seed, size))
                        .map_err(|how| format!("{key}: {how}"))?;
                }
            }
            Step::Free(page) => {
                if let Some((_, handle, _)) = map.remove(&page) {
                    store.free(&[handle]);
                }
            }
            Step::FreeTwice(page) => {
                // Only of pages with objects of their own: what lives in a handle can't be told from a twin.
                if map.get(&page).is_some_and(|(_, _, seed)| seed % 5 == 0)
                    && let Some((_, handle, _)) = map.remove(&page)
                {
                    store.free(&[handle]);
                    store.free(&[handle]);
                }
            }
            Step::Maintain(bytes) => drop(store.maintain(Budget::bytes(u64::from(bytes)))),
        }
        let expected = map.len() as u64;
        if store.stats().pages != expected {
            return Err(format!("{expected} pages are counted as {}", store.stats().pages));
        }
    }
    for (key, handle, seed) in map.values() {
        expect_page(store, *handle, *key, &varied(*seed, size))
            .map_err(|how| format!("at the end, {key}: {how}"))?;
        store.free(&[*handle]);
    }
    match gauges(store) {
        [0, 0, 0] => Ok(()),
        left => Err(format!("pages, raw and stored bytes left at the end: {left:?}")),
    }
}
