//! `userswap daemon`, and `userswap run --daemon`.

use crate::support::{Place, Talk, json, signal, text, until, with_filler};
use serde_json::Value;
use std::process::Stdio;

#[test]
fn one_daemon_serves_many_and_lets_them_go_when_it_ends() {
    let test = "one_daemon_serves_many_and_lets_them_go_when_it_ends";
    let Some((place, filler)) = with_filler(test) else { return };
    std::fs::write(
        place.path("config"),
        format!("listen = '{}'\ncontrol = '{}'\nlimit = '24M'\nlog = 'json'\n", place.at("s"), place.at("c")),
    )
    .unwrap();
    let log = std::fs::File::create(place.path("log")).unwrap();
    let mut daemon =
        place.userswap(&["daemon", "--config", &place.at("config")]).stderr(log).spawn().unwrap();
    until("it listens", || place.path("c").exists().then_some(()));
    let mut clients: Vec<Talk> = ["r1", "r2"]
        .map(|report| {
            Talk::start(&mut place.userswap(&[
                "run",
                "-q",
                "--daemon",
                &place.at("s"),
                "--report",
                &place.at(report),
                "--",
                &filler,
                "24",
            ]))
        })
        .into();
    for client in &mut clients {
        client.expect("ready");
    }
    let resident = || {
        let output = place.output(&["ctl", "--control", &place.at("c"), "--json", "clients"]);
        let clients: Value = serde_json::from_slice(&output.stdout).unwrap();
        let bytes =
            clients.as_array().unwrap().iter().map(|client| client["resident_bytes"].as_u64().unwrap());
        let bytes: Vec<u64> = bytes.collect();
        (bytes.len() == 2).then(|| bytes.iter().sum::<u64>())
    };
    until("both are under one limit", || resident().filter(|bytes| *bytes <= 24 << 20));
    for client in &mut clients {
        client.ask("check");
    }
    signal(daemon.id(), "TERM");
    assert!(daemon.wait().unwrap().success());
    // All of their memory is their own again.
    for client in &mut clients {
        client.ask("check");
        client.ask("fork");
        assert!(client.end().success());
    }
    assert!(!place.path("s").exists() && !place.path("c").exists());
    let report = json(&place.path("r1"));
    assert!(
        report["duration_s"].as_f64().unwrap() > 0.0 && report["peak_pss_anon_bytes"].is_u64(),
        "{report}"
    );
    for line in std::fs::read_to_string(place.path("log")).unwrap().lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["level"].is_string(), "{line}");
    }
    place.assert_clean();
}

#[test]
fn a_full_disk_costs_what_would_have_been_told_and_nothing_else() {
    let test = "a_full_disk_costs_what_would_have_been_told_and_nothing_else";
    let Some((place, filler)) = with_filler(test) else { return };
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let arguments = ["daemon", "--listen", &place.at("s"), "--limit", "8M", "--log-level", "trace"];
    let mut daemon = place.userswap(&arguments).stderr(full()).spawn().unwrap();
    until("it listens", || place.path("s").exists().then_some(()));
    let arguments = ["run", "--daemon", &place.at("s"), "--", &filler, "16"];
    let mut client = Talk::start(place.userswap(&arguments).stderr(full()));
    client.expect("ready");
    for word in ["check", "churn", "fork", "check"] {
        client.ask(word);
    }
    assert_eq!(client.end().code(), Some(0));
    signal(daemon.id(), "TERM");
    assert!(daemon.wait().unwrap().success());
    // Nor is a status lost with the sentence.
    let wrong = place.userswap(&["run", "--limit", "much", "--", "true"]).stderr(full()).status().unwrap();
    assert_eq!(wrong.code(), Some(125));
    place.assert_clean();
}

#[test]
fn a_daemon_that_nobody_uses_ends_when_it_is_told() {
    let place = Place::new();
    for name in ["TERM", "INT"] {
        let mut daemon = place
            .userswap(&["daemon", "--listen", &place.at("s"), "--log-level", "off"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("it listens", || place.path("s").exists().then_some(()));
        signal(daemon.id(), name);
        assert!(daemon.wait().unwrap().success());
        let mut said = String::new();
        std::io::Read::read_to_string(daemon.stderr.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(said, "");
        assert!(!place.path("s").exists());
    }
}

#[test]
fn the_strict_contract_takes_no_programs_that_know_nothing_of_it() {
    let place = Place::new();
    let mut daemon = place
        .userswap(&[
            "daemon",
            "--listen",
            &place.at("s"),
            "--control",
            &place.at("c"),
            "--contract",
            "strict",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it listens", || place.path("c").exists().then_some(()));
    let output =
        place.output(&["run", "-q", "--daemon", &place.at("s"), "--", "sh", "-c", "sleep 0.2; echo done"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "done\n"));
    assert!(place.output(&["ctl", "--control", &place.at("c"), "drain"]).status.success());
    assert!(daemon.wait().unwrap().success());
    place.assert_clean();
}
