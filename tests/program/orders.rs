//! `userswap ctl`: what can be asked of a running daemon, and what it then does.

use crate::support::{Place, Talk, ask, text, until, with_filler};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;

/// A filler of 48 MiB, managed.
fn start(place: &Place, filler: &str) -> (Talk, u32) {
    let mut run =
        Talk::start(&mut place.userswap(&["run", "-q", "--control", &place.at("c"), "--", filler, "48"]));
    run.expect("ready");
    let pid = until("it is a client", || ask(place, &["clients"])[0]["pid"].as_u64());
    (run, u32::try_from(pid).unwrap())
}

#[test]
fn memory_goes_out_and_comes_back_as_it_is_told() {
    let test = "memory_goes_out_and_comes_back_as_it_is_told";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, pid) = start(&place, &filler);
    let name = pid.to_string();

    let some = ask(&place, &["evict", &name, "--bytes", "8M"])["moved_bytes"].as_u64().unwrap();
    assert!((8 << 20..16 << 20).contains(&some), "{some}");
    let rest = ask(&place, &["evict", &name])["moved_bytes"].as_u64().unwrap();
    assert!(some + rest >= 47 << 20, "{some} {rest}");

    let status = ask(&place, &["status"]);
    assert_eq!(status["worker_pid"].as_u64(), Some(u64::from(run.pid())));
    let client = &status["clients"][0];
    assert_eq!(client["pid"].as_u64(), Some(u64::from(pid)));
    assert!(client["moved_out_bytes"].as_u64().unwrap() >= 47 << 20, "{status}");
    assert!(client["resident_bytes"].as_u64().unwrap() < 16 << 20, "{status}");
    assert!(client["standby_bytes"].is_u64(), "{status}");
    assert!(status["store"]["pages"].as_u64().unwrap() >= 12_000, "{status}");
    assert!(status["totals"]["pages_out"].as_u64().unwrap() >= 12_000, "{status}");

    assert!(ask(&place, &["restore", &name])["restored_bytes"].as_u64().unwrap() >= 40 << 20);
    assert_eq!(ask(&place, &["status"])["store"]["pages"].as_u64(), Some(0));
    run.ask("check");

    ask(&place, &["limit", "16M"]);
    until("the new limit is held", || {
        ask(&place, &["clients"])[0]["resident_bytes"].as_u64().filter(|bytes| *bytes <= 16 << 20)
    });
    assert_eq!(ask(&place, &["status"])["limit_bytes"].as_u64(), Some(16 << 20));
    run.ask("check");
    assert_eq!(ask(&place, &["limit", "0"])["limit_bytes"].as_u64(), Some(0));

    // For people the same is said in words.
    for (words, said) in
        [(vec!["status"], "worker"), (vec!["clients"], "IN MEMORY"), (vec!["evict", &name], "moved out")]
    {
        let output = place.output(&[&["ctl", "--control", &place.at("c")][..], &words].concat());
        assert!(text(&output.stdout).contains(said), "{}", text(&output.stdout));
    }
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn what_was_in_memory_is_kept_in_a_file_and_comes_back_from_it() {
    let test = "what_was_in_memory_is_kept_in_a_file_and_comes_back_from_it";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, pid) = start(&place, &filler);
    let (name, file) = (pid.to_string(), place.at("set"));
    let out = || ask(&place, &["clients"])[0]["moved_out_bytes"].as_u64().unwrap();
    ask(&place, &["evict", &name]);
    run.ask("quarter");
    let saved = ask(&place, &["working-set", "save", &name, &file])["saved_bytes"].as_u64().unwrap();
    assert!((12 << 20..24 << 20).contains(&saved), "{saved}");
    ask(&place, &["evict", &name]);
    let all = out();
    assert!(all >= 47 << 20, "{all}");
    let brought = ask(&place, &["working-set", "load", &name, &file])["brought_bytes"].as_u64().unwrap();
    assert!((11 << 20..=saved).contains(&brought), "{brought} of {saved}");
    let left = out();
    assert!((all - saved..all - (11 << 20)).contains(&left), "{left} of {all}, {saved} saved");
    // What is in memory isn't asked for again; what it reads is what it was.
    assert_eq!(ask(&place, &["working-set", "load", &name, &file])["brought_bytes"].as_u64(), Some(0));
    run.ask("quarter");
    run.ask("check");
    // Nothing in a file is believed.
    for (bad, said) in [
        ("nonsense", "this is no working set"),
        ("userswap working set 1\npage-bytes: 4096\n10 1\n5 1\n", "line 4"),
        ("userswap working set 1\npage-bytes: 8192\n10 1\n", "8192 bytes"),
    ] {
        std::fs::write(&file, bad).unwrap();
        let output = place.output(&["ctl", "--control", &place.at("c"), "working-set", "load", &name, &file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    // Nor does what it names have to be there.
    std::fs::write(&file, "userswap working set 1\npage-bytes: 4096\n1 34359738000\n").unwrap();
    ask(&place, &["evict", &name]);
    let brought = ask(&place, &["working-set", "load", &name, &file])["brought_bytes"].as_u64().unwrap();
    assert!(brought >= 47 << 20, "all there is: {brought}");
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

/// A child's address space didn't know its sentinel, so no child was ever taken on, and each waited ten seconds to be.
#[test]
fn a_forked_child_is_a_client_of_its_own() {
    let test = "a_forked_child_is_a_client_of_its_own";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, pid) = start(&place, &filler);
    ask(&place, &["evict", &pid.to_string()]);
    run.ask("follow");
    let child = until("the child is a client", || {
        let clients = ask(&place, &["clients"]);
        let mut pids = clients.as_array().unwrap().iter().filter_map(|client| client["pid"].as_u64());
        pids.find(|other| *other != 0 && *other != u64::from(pid))
    });
    // What is its own then can go.
    run.ask("churn");
    let moved = ask(&place, &["evict", &child.to_string()])["moved_bytes"].as_u64().unwrap();
    assert!(moved >= 40 << 20, "{moved}");
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

/// What a mapping grew by as it moved stayed registered for ever, and so mremap failed for ever once the rest was back.
#[test]
fn what_grew_while_it_was_out_can_grow_again() {
    let test = "what_grew_while_it_was_out_can_grow_again";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, pid) = start(&place, &filler);
    run.ask("paint");
    for _ in 0..3 {
        ask(&place, &["evict", &pid.to_string()]);
        run.ask("outgrow");
        ask(&place, &["restore", &pid.to_string()]);
        run.ask("outgrow");
    }
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn after_a_drain_the_command_goes_on_by_itself() {
    let test = "after_a_drain_the_command_goes_on_by_itself";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, pid) = start(&place, &filler);
    ask(&place, &["evict", &pid.to_string()]);
    assert_eq!(ask(&place, &["drain"])["clients"].as_u64(), Some(1));
    assert_eq!(ask(&place, &["clients"]).as_array().unwrap().len(), 0);
    run.ask("check");
    run.ask("fork");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn who_isnt_served_cant_be_moved() {
    let place = Place::new();
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--control", &place.at("c"), "--", "cat"]));
    until("it listens", || place.path("c").exists().then_some(()));
    let output = place.output(&["ctl", "--control", &place.at("c"), "evict", "1"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(6), "userswap: process 1 is no client\n"));
    let mode = std::fs::metadata(place.path("c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn what_isnt_a_request_is_refused_and_no_harm() {
    let place = Place::new();
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--control", &place.at("c"), "--", "cat"]));
    until("it listens", || place.path("c").exists().then_some(()));
    for line in [
        &b"hello\n"[..],
        b"{\"do\":\"dance\"}\n",
        b"{\"do\":\"evict\",\"pid\":-1}\n",
        &[b'x'; 20_000],
        b"\xff\n",
    ] {
        let socket = std::os::unix::net::UnixStream::connect(place.path("c")).unwrap();
        // It may hang up on what is too long before all of it was written.
        let _ = (&socket).write_all(line);
        let mut answer = String::new();
        let read = BufReader::new(&socket).read_line(&mut answer);
        if read.is_ok() {
            assert!(answer.starts_with("{\"error\":{\"kind\":\"request\""), "{answer}");
        }
    }
    // Hung up in the middle of a line.
    drop(std::os::unix::net::UnixStream::connect(place.path("c")).unwrap().write_all(b"{\"do\""));
    assert_eq!(ask(&place, &["limit", "0"])["limit_bytes"].as_u64(), Some(0));
    assert!(run.end().success());
}
