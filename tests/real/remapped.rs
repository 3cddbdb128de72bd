//! Ranges that are moved while another thread maps memory where they were.

use crate::limited::{Trial, compiled};
use crate::watch::rounds;

/// A range that the kernel had moved in part was asked for again whole, with another thread's new mapping in the hole: that was moved, too.
#[test]
fn what_another_thread_maps_where_a_range_was_stays_there() {
    let test = "what_another_thread_maps_where_a_range_was_stays_there";
    let Some(trial) = Trial::new(test, &["cc"]) else { return };
    let Some(remapped) = compiled(&trial, test, "remapped") else { return };
    let (output, _) = trial.limited("", &[&remapped, &rounds(3_000, 300_000).to_string()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"all moved\n");
    trial.place.assert_clean();
}
