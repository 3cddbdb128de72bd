//! Threads by the thousand: the kernel writes to their memory when they are past being served.

use crate::limited::{ALL_THE_TIME, Trial, compiled};
use crate::watch::rounds;

#[test]
fn threads_by_the_thousand_are_all_joined() {
    let test = "threads_by_the_thousand_are_all_joined";
    let Some(trial) = Trial::new(test, &["cc"]) else { return };
    let Some(threads) = compiled(&trial, test, "threads") else { return };
    let (output, report) = trial.harried(ALL_THE_TIME, &[&threads, &rounds(4_000, 200_000).to_string()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"joined\n");
    report.assert_sound();
    trial.place.assert_clean();
}
