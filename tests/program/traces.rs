//! `userswap record` and `userswap replay`.

use crate::support::{Place, Talk, text, until, with_filler};
use std::cell::Cell;
use std::process::Stdio;

#[test]
fn what_is_no_trace_is_refused() {
    let place = Place::new();
    std::fs::write(place.path("text"), "hello").unwrap();
    for (words, said) in [
        (&["replay", &place.at("text")][..], "this is no trace"),
        (&["replay", &place.at("nowhere")], "reading"),
        (&["replay", "--limit", "half", &place.at("text")], "half"),
        (&["record", "-o", &place.at("no/such"), "--", "true"], "writing the trace"),
    ] {
        let output = place.output(words);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    place.assert_clean();
}

#[test]
fn what_a_command_touches_is_recorded_and_judged() {
    let Some((place, filler)) = with_filler("what_a_command_touches_is_recorded_and_judged") else { return };
    let trace = place.at("trace");
    // Memory is moved out at a window's end, and what is touched after that is seen: so it takes a few windows.
    let checks = Cell::new(8);
    until("something is recorded", || {
        let words = ["record", "-o", &trace, "--window", "20", "--", &filler, "8"];
        let mut record = Talk::start(place.userswap(&words).stderr(Stdio::null()));
        record.expect("ready");
        (0..checks.get()).for_each(|_| record.ask("check"));
        assert!(record.end().success());
        checks.set(checks.get() * 2);
        let judged = place.output(&["replay", "--json", "--limit", "50%", &trace]);
        let judged: serde_json::Value = serde_json::from_slice(&judged.stdout).unwrap();
        judged["touches"].as_u64().filter(|touches| *touches > 1000)
    });
    let output = place.output(&["replay", "--limit", "50%", &trace]);
    for policy in ["default", "belady", "lru", "clock", "s3-fifo", "sieve"] {
        assert!(text(&output.stdout).contains(policy), "{policy} in {}", text(&output.stdout));
    }
    place.assert_clean();
}
