//! What the program says about itself.

use crate::support::{Place, text};
use serde_json::Value;

#[test]
fn every_command_teaches() {
    let place = Place::new();
    for command in ["run", "daemon", "ctl", "store", "doctor", "man", "completions"] {
        let output = place.output(&[command, "--help"]);
        assert!(output.status.success() && text(&output.stdout).contains("Usage: userswap"), "{command}");
    }
    let help = place.output(&["--help"]);
    assert!(text(&help.stdout).contains("userswap run --limit 64M --"));
    assert!(text(&place.output(&["--version"]).stdout).starts_with("userswap "));
    assert_eq!(place.output(&[]).status.code(), Some(2));
}

#[test]
fn manual_pages_are_made_from_the_help() {
    let place = Place::new();
    std::fs::create_dir(place.path("man")).unwrap();
    assert!(place.output(&["man", &place.at("man")]).status.success());
    for page in [
        "userswap.1",
        "userswap-run.1",
        "userswap-daemon.1",
        "userswap-ctl.1",
        "userswap-ctl-evict.1",
        "userswap-store-check.1",
    ] {
        let page = std::fs::read_to_string(place.path("man").join(page)).unwrap();
        assert!(page.contains(".SH NAME"), "{page}");
    }
    let run = std::fs::read_to_string(place.path("man/userswap-run.1")).unwrap();
    assert!(run.contains("limit") && run.contains("127 if there is none"));
    assert_eq!(place.output(&["man", &place.at("nowhere")]).status.code(), Some(1));
}

#[test]
fn completions_know_the_arguments() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = place.output(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("client-limit"), "{shell}");
    }
}

#[test]
fn the_doctor_says_why_and_what_to_do() {
    let place = Place::new();
    let output = place.output(&["doctor", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 7)));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let capabilities = found["capabilities"].as_array().unwrap();
    assert!(capabilities.len() >= 10);
    for capability in capabilities {
        let told = capability["why"].is_string() && capability["remedy"].is_string();
        assert!(capability["there"] == true || told, "{capability}");
    }
    let words = place.output(&["doctor"]);
    assert_eq!(words.status, output.status);
    assert!(text(&words.stdout).starts_with("kernel "));
}
