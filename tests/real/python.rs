//! A Python program with a large heap of small objects.

use crate::limited::{Trial, python, source};
use crate::watch::{is_long, rounds};

#[test]
fn a_heap_of_objects_is_walked_to_the_same_answers() {
    let Some(trial) = Trial::new("a_heap_of_objects_is_walked_to_the_same_answers", &["python3"]) else {
        return;
    };
    let (limit, thousands) = if is_long() { ("64M", "300") } else { ("16M", "10") };
    let (walks, program) = (rounds(2, 4).to_string(), source("walk.py"));
    let report = trial.same(limit, &[&python(&trial), &program, thousands, &walks]);
    assert!(report.number("pages_out") > 4096, "{}", report.0);
    trial.place.assert_clean();
}
