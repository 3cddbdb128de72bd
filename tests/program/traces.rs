//! `userswap record` and `userswap replay`.

use crate::support::{Place, text};

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
