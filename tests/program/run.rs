//! `userswap run`: the command is as it always is, in less memory.

use crate::support::{Place, Talk, json, text, until, with_filler};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn output_input_and_status_are_the_commands() {
    let place = Place::new();
    let mut run =
        place.userswap(&["run", "--", "sh", "-c", "read word; echo got $word; echo bad >&2; exit 7"]);
    let mut run = Talk::start(run.stderr(Stdio::piped()));
    std::io::Write::write_all(run.child.stdin.as_mut().unwrap(), b"it\n").unwrap();
    run.expect("got it");
    assert_eq!(run.end().code(), Some(7));
    let mut said = String::new();
    std::io::Read::read_to_string(run.child.stderr.as_mut().unwrap(), &mut said).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "bad"), "{said}");
    assert!(lines[1].starts_with("userswap: ") && lines[1].contains(" s, "), "{said}");
    place.assert_clean();
}

#[test]
fn a_signals_end_is_128_and_its_number() {
    let place = Place::new();
    for (name, status) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let output = place.output(&["run", "-q", "--", "sh", "-c", &format!("kill -{name} $$")]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(status), ""));
    }
    place.assert_clean();
}

#[test]
fn a_limit_is_held_and_nothing_is_lost() {
    let Some((place, filler)) = with_filler("a_limit_is_held_and_nothing_is_lost") else { return };
    let mut run = Talk::start(&mut place.userswap(&[
        "run",
        "-q",
        "--limit",
        "24M",
        "--control",
        &place.at("c"),
        "--stage-times",
        "--report",
        &place.at("report"),
        "--",
        &filler,
        "96",
    ]));
    run.expect("ready");
    for word in ["check", "churn", "check", "fork", "check"] {
        run.ask(word);
    }
    // Left alone, it is under its limit in the end.
    let resident = || {
        let output = place.output(&["ctl", "--control", &place.at("c"), "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        clients[0]["resident_bytes"].as_u64()
    };
    until("it is under its limit", || resident().filter(|bytes| *bytes <= 24 << 20));
    run.ask("check");
    assert!(run.end().success());
    let report = json(&place.path("report"));
    let number = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"));
    assert!(number("pages_out") > 18_000 && number("pages_in") > 0 && number("faults") > 0, "{report}");
    assert_eq!((number("poisoned_pages"), report["unmanaged"].as_array().unwrap().len()), (0, 0), "{report}");
    assert!(number("raw_bytes") > number("stored_bytes") && number("store_memory_bytes") > 0, "{report}");
    assert!(number("peak_pss_anon_bytes") > 16 << 20 && report["ratio"].as_f64().unwrap() > 1.0, "{report}");
    assert!(report["duration_s"].as_f64().unwrap() > 0.0 && report["same_filled_pages"].is_u64());
    let times = ["p50", "p99", "p999", "max"].map(|key| report["fault_ns"][key].as_u64().unwrap());
    assert!(times[0] > 0 && times.is_sorted(), "{report}");
    for stage in ["lookup", "load", "install", "wake"] {
        assert!(report["stage_ns"][stage]["p50"].as_u64().unwrap() > 0, "{stage} in {report}");
    }
    place.assert_clean();
}

/// Wrappers that execute what they wrap were counted again and again, each with all of the memory of the last: their agent ends before their memory
/// does, and only at its end the daemon looked whether they were gone.
#[test]
fn a_process_that_becomes_another_program_is_one_client() {
    let test = "a_process_that_becomes_another_program_is_one_client";
    let Some((place, filler)) = with_filler(test) else { return };
    let script = format!("i=$((${{i:-0}} + 1))\nexport i\n[ $i = 20 ] || exec sh $0\nexec {filler} 16\n");
    std::fs::write(place.path("wrapper"), script).unwrap();
    let wrapper = place.at("wrapper");
    let arguments = ["run", "-q", "--limit", "64M", "--control", &place.at("c"), "--", "sh", &wrapper];
    let mut run = Talk::start(&mut place.userswap(&arguments));
    run.expect("ready");
    let clients = || {
        let output = place.output(&["ctl", "--control", &place.at("c"), "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        clients.as_array().unwrap().len()
    };
    until("there is one client", || (clients() == 1).then_some(()));
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn what_goes_on_after_the_command_has_its_memory_back() {
    let Some((place, filler)) = with_filler("what_goes_on_after_the_command_has_its_memory_back") else {
        return;
    };
    let fifo = place.at("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The command ends when the filler, in the background, has been moved out by another's order.
    let script =
        format!("{filler} 32 <{fifo} >{out} & exec 9>{fifo}; read word || true", out = place.at("out"));
    let mut run = Talk::start(&mut place.userswap(&[
        "run",
        "-q",
        "--control",
        &place.at("c"),
        "--",
        "sh",
        "-c",
        &script,
    ]));
    until("it is ready", || std::fs::read_to_string(place.path("out")).ok().filter(|out| out == "ready\n"));
    let moved = || {
        let output = place.output(&["ctl", "--control", &place.at("c"), "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        clients.as_array()?.iter().find_map(|client| {
            let pid = client["pid"].as_u64()?.to_string();
            let output = place.output(&["ctl", "--control", &place.at("c"), "--json", "evict", &pid]);
            let evicted: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            evicted["moved_bytes"].as_u64().filter(|bytes| *bytes >= 30 << 20)
        })
    };
    until("it is moved out", moved);
    let to_filler = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    assert!(run.end().success());
    std::io::Write::write_all(&mut &to_filler, b"check\n").unwrap();
    drop(to_filler);
    until("it has checked", || {
        std::fs::read_to_string(place.path("out")).ok().filter(|out| out == "ready\nchecked\n")
    });
    place.assert_clean();
}

/// The run never ended: what was out of a child that was gone before it called was asked back into it for ever.
#[test]
fn children_that_are_gone_with_memory_out_hold_nobody_up() {
    let test = "children_that_are_gone_with_memory_out_hold_nobody_up";
    let Some((place, filler)) = with_filler(test) else { return };
    let control = place.at("c");
    let mut run =
        Talk::start(&mut place.userswap(&["run", "-q", "--control", &control, "--", &filler, "16"]));
    run.expect("ready");
    let evict = || {
        let output = place.output(&["ctl", "--control", &control, "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let pid = clients[0]["pid"].as_u64()?.to_string();
        let output = place.output(&["ctl", "--control", &control, "--json", "evict", &pid]);
        let evicted: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        evicted["moved_bytes"].as_u64().filter(|bytes| *bytes >= 15 << 20)
    };
    until("it is moved out", evict);
    for _ in 0..4 {
        run.ask("abandon");
    }
    drop(run.child.stdin.take());
    let child = std::cell::RefCell::new(&mut run.child);
    assert!(until("it ends", || child.borrow_mut().try_wait().unwrap()).success());
    place.assert_clean();
}

#[test]
fn what_cant_be_managed_runs_and_is_told() {
    let place = Place::new();
    if crate::filler::build(&place.path("static"), &["-static"]).is_none() {
        println!("SKIPPED what_cant_be_managed_runs_and_is_told: no static programs can be built");
        return;
    }
    let mut run = Talk::start(&mut place.userswap(&[
        "run",
        "-q",
        "--limit",
        "8M",
        "--report",
        &place.at("report"),
        "--",
        &place.at("static"),
        "16",
    ]));
    run.expect("ready");
    run.ask("check");
    assert!(run.end().success());
    let unmanaged = &json(&place.path("report"))["unmanaged"];
    assert_eq!(unmanaged[0]["program"], place.at("static"));
    assert_eq!(unmanaged[0]["reason"], "it is statically linked");
    place.assert_clean();
}

#[test]
fn what_was_to_be_loaded_beside_it_still_is() {
    let place = Place::new();
    let output = place
        .userswap(&["run", "-q", "--", "sh", "-c", "echo $LD_PRELOAD"])
        .env("LD_PRELOAD", "/nonexistent/other.so")
        .output()
        .unwrap();
    let list = text(&output.stdout).trim_end();
    assert!(list.ends_with("/userswap.so:/nonexistent/other.so"), "{list}");
    place.assert_clean();
}

/// What serves a client that has nothing out sleeps, on both ends. (What samples for the record does not.)
#[test]
fn nobody_wakes_for_a_client_at_rest() {
    let Some((place, filler)) = with_filler("nobody_wakes_for_a_client_at_rest") else { return };
    let control = place.at("c");
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--control", &control, "--", &filler, "8"]));
    run.expect("ready");
    let client = until("it is a client", || {
        let output = place.output(&["ctl", "--control", &control, "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        clients[0]["pid"].as_u64()
    });
    let client = u32::try_from(client).unwrap();
    // The sleeps of the threads that serve it: the handlers and its steward here, the agent there.
    let sleeps = || {
        let mut sleeps = of_threads(run.pid(), |name| {
            name.starts_with("userswap-fault") || name.starts_with("userswap-stew")
        });
        sleeps.extend(of_threads(client, |name| name == "userswap"));
        sleeps
    };
    until("nothing wakes for a second", || {
        let before = sleeps();
        std::thread::sleep(Duration::from_secs(1));
        (before == sleeps() && before.len() >= 3).then_some(())
    });
    assert!(run.end().success());
    place.assert_clean();
}

/// How often each of a process's threads of certain names went to sleep.
fn of_threads(pid: u32, counts: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut found: Vec<(String, u64)> = threads
        .filter_map(|thread| {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).ok()?;
            let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let (name, number) = (of("Name:")?, of("Pid:")?);
            let slept = of("voluntary_ctxt_switches:")?.parse().ok()?;
            counts(name).then(|| (format!("{name} {number}"), slept))
        })
        .collect();
    found.sort();
    found
}
