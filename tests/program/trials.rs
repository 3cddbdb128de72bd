//! `userswap store`: stores tried by themselves.

use crate::support::{Place, text};
use serde_json::Value;
use std::process::Command;

/// The sample in C, compiled. Says that the test is skipped where there is no C compiler.
pub(crate) fn plug_in(test: &str, place: &Place) -> Option<String> {
    let library = place.at("store.so");
    let here = env!("CARGO_MANIFEST_DIR");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-O2", "-shared", "-fPIC", "-I", &format!("{here}/stores/api/include")])
        .args(["-o", &library, &format!("{here}/examples/store-c/store.c")])
        .output();
    let Ok(output) = compiled else {
        println!("SKIPPED {test}: there is no C compiler");
        return None;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(format!("plugin:{library}"))
}

#[test]
fn a_store_that_keeps_the_laws() {
    let place = Place::new();
    let output = place.output(&["store", "check", "ram:lz4"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("ram:lz4 (ram:lz4), pages of 4096 bytes\nkept     round_trips "), "{said}");
    assert!(said.contains("\n10 kept, 0 skipped, 0 broken, in "), "{said}");
}

#[test]
fn a_store_that_breaks_them() {
    let place = Place::new();
    let output = place.output(&["store", "check", "chaos?corruption=1+ram:lz4", "--law", "round_trips"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("\nBROKEN   round_trips "), "{said}");
    assert!(said.contains("\n         zero page, first fetch: byte "), "{said}");
    assert!(said.contains("\n0 kept, 0 skipped, 1 broken"), "{said}");
    let arguments =
        ["store", "check", "chaos?corruption=1+ram:lz4", "--law", "identity_is_checked", "--json"];
    let output = place.output(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["clean"], false);
    assert_eq!(report["laws"].as_array().unwrap().len(), 1);
    assert_eq!(report["laws"][0]["verdict"], "broken");
    assert!(report["laws"][0]["why"].as_str().unwrap().contains("afterwards, page "), "{report}");
}

#[test]
fn a_plug_in_is_a_store_like_others() {
    let place = Place::new();
    let Some(store) = plug_in("a_plug_in_is_a_store_like_others", &place) else { return };
    let output = place.output(&["store", "check", &store]);
    assert!(text(&output.stdout).contains("\n10 kept, 0 skipped, 0 broken"), "{}", text(&output.stdout));
    let output = place.output(&["store", "check", &format!("{store}?speed=11")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("there are no options, and this is one: speed=11"));
}

#[test]
fn what_cannot_be_tried() {
    let place = Place::new();
    let image = place.at("image");
    std::fs::write(&image, [0; 8192]).unwrap();
    for (arguments, status, words) in [
        (&["store", "check", "ram:lzo"][..], 2, "there is no codec lzo"),
        (&["store", "check", "plugin:./no-such.so"], 2, "no-such.so"),
        (&["store", "check", "ram:lz4", "--law", "gravity"], 2, "the laws are round_trips, put_copies"),
        (&["store", "check", "ram:lz4", "--page-size", "100"], 2, "a power of two"),
        (&["store", "bench", "ram:lz4", "--image", "/no/such"], 1, "/no/such"),
        (&["store", "bench", "ram:lz4", "--image", &image], 1, "isn't one word repeated"),
        (&["store", "bench", "ram:lz4", "--image", &image, "--rounds", "0"], 2, "rounds"),
    ] {
        let output = place.output(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

/// 300 pages of text, and one of zeros.
fn image(place: &Place) -> String {
    let image = place.at("image");
    let words: Vec<u8> = (0_u32..)
        .flat_map(|number| {
            format!("line {} of {} ", number.wrapping_mul(2_654_435_761) >> 20, number).into_bytes()
        })
        .take(300 * 4096)
        .chain([0; 4096])
        .collect();
    std::fs::write(&image, words).unwrap();
    image
}

#[test]
fn what_a_store_costs() {
    let place = Place::new();
    let image = image(&place);
    let bench = |store: &str, more: &[&str]| {
        let arguments = [&["store", "bench", store, "--image", &image, "--rounds", "2"], more].concat();
        place.output(&arguments)
    };
    let output = bench("ram:lz4", &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&figures["pages"], &figures["same_filled_left_out"]), (&300.into(), &1.into()));
    for call in ["put_ns", "get_ns"] {
        for who in ["store", "lz4", "copy"] {
            let of = |figure: &str| figures[call][who][figure].as_u64().unwrap();
            assert!(of("p50") > 0 && of("p50") <= of("p99"), "{figures}");
        }
        let by = |figure: &str| figures[call]["by_lz4"][figure].as_f64().unwrap();
        assert!(by("least") > 0.0 && by("least") <= by("median") && by("median") <= by("most"), "{figures}");
    }
    let held = |figure: &str| figures["held"][figure].as_f64().unwrap();
    assert_eq!(held("pages"), 300.0);
    assert!(held("stored_bytes_a_page") > held("lz4_bytes_a_page") && held("ratio") > 1.0, "{figures}");
    assert_eq!((&figures["wrong"], &figures["full"]), (&0.into(), &0.into()));

    // Late ones, by the batch; what doesn't fit; what is wrong.
    let output = bench("chaos?latency=50us+ram:lz4", &["--batch", "16"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    let said = text(&output.stdout);
    for words in ["300 pages of 4096 bytes in 2 rounds", "\n  decompress ", "\nlz4 alone ", "× copying"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let output = bench("ram:lz4?capacity=256K", &[]);
    assert!(output.status.success() && text(&output.stdout).contains("\nFULL "), "{}", text(&output.stdout));
    let output = bench("chaos?corruption=1+ram:lz4", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\nWRONG       600 pages"), "{}", text(&output.stdout));
}
