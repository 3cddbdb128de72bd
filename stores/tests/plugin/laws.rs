//! The kit's laws, through the C interface.

use std::sync::{Arc, LazyLock};

use userswap_store::Store;
use userswap_store::testkit::{Ask, Verdict, check};

use crate::support::{Library, compile, template};

fn options(ask: &Ask, more: &str) -> String {
    let capacity = ask.capacity.map(|bytes| format!("capacity={bytes}"));
    let parts: Vec<_> = capacity.into_iter().chain((!more.is_empty()).then(|| more.to_owned())).collect();
    parts.join("&")
}

/// Every law is kept, and none skipped.
fn assert_clean(library: &Library, more: &str) {
    let make = |ask: &Ask| -> Arc<dyn Store> { library.open(&options(ask, more)).unwrap() };
    let report = check(&make);
    assert!(report.0.iter().all(|(_, verdict)| *verdict == Verdict::Kept), "{report}");
}

static TEMPLATE: LazyLock<Library> = LazyLock::new(template);

/// A law at a time, as the template's own tests do without the interface between.
mod the_template {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> { TEMPLATE.open(&options(ask, "")).unwrap() });
}

#[test]
fn the_sample_in_c() {
    let Some(library) = compile("the_sample_in_c", "../examples/store-c/store.c", &[]) else { return };
    assert_clean(&library, "");
}

/// It counts the gets of each object, and ends the program if an id that isn't in use is asked for.
#[test]
fn one_that_watches_us() {
    let Some(library) = compile("one_that_watches_us", "tests/plugin/nonsense.c", &[]) else { return };
    assert_clean(&library, "");
}

#[test]
fn one_whose_gets_wait() {
    let Some(library) = compile("one_whose_gets_wait", "tests/plugin/nonsense.c", &[]) else { return };
    assert_clean(&library, "wrong=late");
}
