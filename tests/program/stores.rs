//! Where pages go: the command is the same whatever store they go to.

use crate::support::{Place, Talk, json, text, until, with_filler};

/// Limited to a third of what it fills, from and to this store.
fn served_from(test: &str, store: impl Fn(&Place) -> String) {
    let Some((place, filler)) = with_filler(test) else { return };
    let store = store(&place);
    let report = place.at("report");
    let control = place.at("c");
    let mut arguments = vec!["run", "-q", "--limit", "12M", "--store", &store, "--report", &report];
    arguments.extend(["--control", &control, "--", &filler, "32"]);
    let mut run = Talk::start(&mut place.userswap(&arguments));
    run.expect("ready");
    // A file takes its time; left alone, it is under its limit in the end.
    until("it is under its limit", || {
        let output = place.output(&["ctl", "--control", &control, "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        clients[0]["resident_bytes"].as_u64().filter(|bytes| *bytes <= 12 << 20)
    });
    for word in ["check", "churn", "check", "fork", "check"] {
        run.ask(word);
    }
    assert!(run.end().success());
    let report = json(&place.path("report"));
    let number = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"));
    assert!(number("pages_out") > 5000 && number("pages_in") > 0, "{report}");
    assert_eq!(number("poisoned_pages"), 0, "{report}");
    place.assert_clean();
}

#[test]
fn a_file_without_a_name() {
    served_from("a_file_without_a_name", |place| format!("file:{}?size=256M&reserve=0", place.at("")));
}

#[test]
fn a_named_file_as_it_comes() {
    served_from("a_named_file_as_it_comes", |place| {
        format!("file:{}?size=256M&reserve=0&compress=off&encrypt=off", place.at("store"))
    });
}

/// What memory has no room for goes into the file.
#[test]
fn memory_over_a_file() {
    served_from("memory_over_a_file", |place| {
        format!("tier?age=1s:ram:lz4?capacity=4M>file:{}?size=256M&reserve=0", place.at(""))
    });
}

#[test]
fn layers_around_memory() {
    served_from("layers_around_memory", |_| "checked+metered+ram:lz4?capacity=64M".to_owned());
}

/// In a shared library, without a word of Rust in it.
#[test]
fn a_store_that_somebody_else_wrote() {
    let test = "a_store_that_somebody_else_wrote";
    served_from(test, |place| crate::trials::plug_in(test, place).unwrap());
}

/// Every fetch is late and some have to be asked for again.
#[test]
fn a_store_that_is_late_and_fails_now_and_then() {
    served_from("a_store_that_is_late_and_fails_now_and_then", |_| {
        "chaos?latency=100us&fetch_errors=0.02&put_errors=0.02+ram:lz4".to_owned()
    });
}

#[test]
fn what_is_wrong_with_a_store_is_pointed_at() {
    let place = Place::new();
    let output = place.output(&["run", "--store", "checked+ram:lz4?size=1M", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("ram:lz4 has no option size (column 17)"), "{said}");
    assert!(said.ends_with("\n                  ^^^^\n"), "{said}");
    place.assert_clean();
}
