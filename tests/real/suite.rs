//! Modules of Python's own tests, of memory, threads and processes.

use crate::limited::{NOW_AND_THEN, Trial, python};
use crate::watch::is_long;

const SHORT: &[&str] = &["test_mmap", "test_fork1", "test_gc"];
const LONG: &[&str] = &[
    "test_threading",
    "test_subprocess",
    "test_array",
    "test_bytes",
    "test_dict",
    "test_io",
    "test_thread",
    "test_weakref",
];

#[test]
fn modules_of_pythons_tests_pass() {
    let Some(trial) = Trial::new("modules_of_pythons_tests_pass", &["python3"]) else { return };
    let python = python(&trial);
    let more = if is_long() { LONG } else { &[] };
    for module in SHORT.iter().chain(more) {
        let words = [&*python, "-m", "test", "-q", module];
        // Some don't pass on this machine, or aren't installed.
        if !trial.alone(&words).status.success() {
            println!("SKIPPED {module}: it doesn't pass by itself");
            continue;
        }
        let (output, report) = trial.harried(NOW_AND_THEN, &words);
        assert!(output.status.success(), "{module}: {}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(report.number("poisoned_pages"), 0, "{module}: {}", report.0);
    }
    trial.place.assert_clean();
}
