//! A program in node: a collector that walks and moves its heap, and several threads.

use crate::limited::{ALL_THE_TIME, Trial, assert_same, source};
use crate::watch::is_long;

#[test]
fn a_collected_heap_is_checked_to_the_same_sums() {
    if let Some(trial) = Trial::new("node::a_collected_heap_is_checked_to_the_same_sums", &["node"]) {
        sums(&trial);
    }
}

pub(crate) fn sums(trial: &Trial) {
    // Its own heap is DONTFORK and stays; buffers and the rest go.
    let words = ["node", "--expose-gc", &source("heap.js"), if is_long() { "300" } else { "20" }];
    let alone = trial.alone(&words);
    assert!(alone.status.success(), "{alone:?}");
    let (output, report) = trial.harried(ALL_THE_TIME, &words);
    assert_same(&alone, &output);
    report.assert_sound();
    trial.place.assert_clean();
}
