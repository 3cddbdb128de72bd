//! A program that does everything to its memory at once, and knows every byte of it.

use crate::limited::{ALL_THE_TIME, Trial, compiled};
use crate::watch::rounds;

/// Seeds of the normal run; a failure says its own.
const SEEDS: [&str; 2] = ["1", "2"];

#[test]
fn every_byte_is_right_while_everything_is_done_to_memory() {
    let test = "every_byte_is_right_while_everything_is_done_to_memory";
    let Some(trial) = Trial::new(test, &["cc"]) else { return };
    let Some(checker) = compiled(&trial, test, "checker") else { return };
    for seed in SEEDS {
        check(
            &trial,
            &[&checker, seed, "3", &rounds(1200, 100_000).to_string(), &trial.place.at("file")],
            true,
        );
        check(
            &trial,
            &[&checker, seed, "2", &rounds(800, 40_000).to_string(), &trial.place.at("file")],
            false,
        );
    }
    trial.place.assert_clean();
}

/// With everything moved out all the time, or under a limit far below what it uses.
fn check(trial: &Trial, words: &[&str], harried: bool) {
    let (output, report) =
        if harried { trial.harried(ALL_THE_TIME, words) } else { trial.limited("4M", words) };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?} {harried}: {} {said}", output.status);
    report.assert_sound();
}
