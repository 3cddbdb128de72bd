//! A program in Java: a virtual machine with its own heap, compiler and threads.

use crate::limited::{Trial, source};
use crate::watch::is_long;

#[test]
fn a_collected_heap_is_checked_to_the_same_sums() {
    let test = "java::a_collected_heap_is_checked_to_the_same_sums";
    if let Some(trial) = Trial::new(test, &["java", "javac"]) {
        sums(&trial);
    }
}

pub(crate) fn sums(trial: &Trial) {
    let built = trial.alone(&["javac", "-d", &trial.place.at(""), &source("Heap.java")]);
    assert!(built.status.success(), "{built:?}");
    let (limit, thousands) = if is_long() { ("128M", "1000") } else { ("48M", "60") };
    for collector in ["-XX:+UseSerialGC", "-XX:+UseG1GC"] {
        let words =
            ["java", "-XX:-UsePerfData", collector, "-Xmx1g", "-cp", &trial.place.at(""), "Heap", thousands];
        trial.same(limit, &words);
    }
    trial.place.assert_clean();
}
