//! `--policy` and `userswap ctl policy`: what is taken, what is refused, and what programs then have done to them.

use crate::support::{Place, Talk, ask, text, until, with_filler};

/// A filler of 48 MiB under a policy, managed.
fn start(place: &Place, filler: &str, policy: &str) -> (Talk, String) {
    let control = place.at("c");
    let arguments = ["run", "-q", "--policy", policy, "--control", &control, "--", filler, "48"];
    let mut run = Talk::start(&mut place.userswap(&arguments));
    run.expect("ready");
    let pid = until("it is a client", || ask(place, &["clients"])[0]["pid"].as_u64());
    (run, pid.to_string())
}

fn write(place: &Place, name: &str, content: &str) -> String {
    std::fs::write(place.path(name), content).unwrap();
    place.at(name)
}

fn out(place: &Place) -> u64 {
    ask(place, &["clients"])[0]["moved_out_bytes"].as_u64().unwrap()
}

#[test]
fn a_policy_that_cant_be_meant_is_refused_in_one_sentence() {
    let place = Place::new();
    let file = write(&place, "p.toml", "preset = 'proactive'\n[proactive]\nstal = '1%'\n");
    let senseless = write(&place, "s.toml", "[chromium]\npages-per-region = 0\n");
    for (policy, said) in [
        (file.as_str(), "line 3: unknown field `stal`, expected one of `stall`, `promotion`"),
        (&senseless, "chromium.pages-per-region: it is from 1 to 512"),
        ("greedy", "'greedy' is no preset (off, limit, chromium, proactive), and no file that can be read"),
    ] {
        let run = place.output(&["run", "--policy", policy, "--", "true"]);
        assert_eq!(run.status.code(), Some(125));
        let config = write(&place, "d.toml", &format!("listen = '{}'\npolicy = '{policy}'\n", place.at("s")));
        let daemon = place.output(&["daemon", "--config", &config]);
        assert_eq!(daemon.status.code(), Some(2));
        for output in [run, daemon] {
            let error = text(&output.stderr);
            assert!(error.contains(said) && error.lines().count() == 1, "{error}");
        }
    }
    place.assert_clean();
}

#[test]
fn the_policy_in_force_is_shown_and_changed_and_a_bad_one_changes_nothing() {
    let place = Place::new();
    let control = place.at("c");
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--control", &control, "--", "cat"]));
    until("it listens", || place.path("c").exists().then_some(()));
    let ctl = |words: &[&str]| place.output(&[&["ctl", "--control", &control, "policy"][..], words].concat());
    assert_eq!(text(&ctl(&[]).stdout), "preset = \"limit\"\n\n[limit]\nfair = false\n");
    let file = write(&place, "p.toml", "preset = 'chromium'\n[chromium]\nidle = '5s'\n");
    let shown = ctl(&[&file]);
    assert!(
        text(&shown.stdout).starts_with("preset = \"chromium\"\n\n[limit]\nfair = false\n\n[chromium]\n")
    );
    assert!(text(&shown.stdout).contains("idle = \"5s\"\n") && text(&ctl(&[]).stdout) == text(&shown.stdout));
    // What is shown says the same again.
    let again = write(&place, "again.toml", text(&shown.stdout));
    assert_eq!(ctl(&[&again]).stdout, shown.stdout);
    let bad = write(&place, "bad.toml", "preset = 'limit'\nlimits = 3\n");
    for refused in [ctl(&[&bad]), ctl(&["nothing"])] {
        assert_eq!(refused.status.code(), Some(2));
    }
    // One that another program than this asks for is refused by the daemon.
    let mut line = String::new();
    {
        use std::io::{BufRead, BufReader, Write};
        let socket = std::os::unix::net::UnixStream::connect(place.path("c")).unwrap();
        let order = br#"{"do":"policy","set":{"preset":"off","proactive":{"stall":0}}}"#;
        (&socket).write_all(&[&order[..], b"\n"].concat()).unwrap();
        BufReader::new(&socket).read_line(&mut line).unwrap();
    }
    assert!(line.contains(r#""kind":"request""#) && line.contains("proactive.stall"), "{line}");
    let json = ask(&place, &["policy"]);
    assert_eq!(
        (&json["policy"]["preset"], &json["policy"]["chromium"]["idle"]),
        (&"chromium".into(), &"5s".into())
    );
    assert_eq!(
        place.output(&["ctl", "--control", &control, "hint", "1", "frozen=yes"]).status.code(),
        Some(6)
    );
    assert_eq!(
        place.output(&["ctl", "--control", &control, "hint", "1", "tired=yes"]).status.code(),
        Some(2)
    );
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn off_leaves_a_program_alone_whatever_the_limit_and_limit_holds_it() {
    let test = "off_leaves_a_program_alone_whatever_the_limit_and_limit_holds_it";
    let Some((place, filler)) = with_filler(test) else { return };
    let (mut run, _) = start(&place, &filler, "off");
    ask(&place, &["limit", "16M"]);
    assert_eq!(ask(&place, &["status"])["limit_bytes"].as_u64(), Some(16 << 20));
    run.ask("check");
    assert_eq!(out(&place), 0);
    ask(&place, &["policy", "limit"]);
    until("the limit is held", || {
        ask(&place, &["clients"])[0]["resident_bytes"].as_u64().filter(|bytes| *bytes <= 16 << 20)
    });
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn a_program_that_freezes_has_a_round_and_what_came_back_is_out_no_more() {
    let test = "a_program_that_freezes_has_a_round_and_what_came_back_is_out_no_more";
    let Some((place, filler)) = with_filler(test) else { return };
    let policy = "preset = 'chromium'\n[chromium]\nclient-every = '0s'\nidle = '0s'\nmax-client = '4M'\npressure = 'off'\n";
    let (mut run, pid) = start(&place, &filler, &write(&place, "p.toml", policy));
    for round in 0..3 {
        ask(&place, &["hint", &pid, "frozen=yes"]);
        // Full with the first round, unless it is known what came back of the one before.
        until("a round is done", || (out(&place) == 4 << 20).then_some(()));
        ask(&place, &["hint", &pid, "frozen=no", "visible=no"]);
        run.ask("check");
        assert_eq!(out(&place), 0, "after round {round}");
    }
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn pressure_has_programs_out_of_sight_give_memory() {
    let test = "pressure_has_programs_out_of_sight_give_memory";
    let Some((place, filler)) = with_filler(test) else { return };
    let mut waited = 0u64;
    let mut press = || {
        waited += 10_000_000;
        let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={waited}\n");
        // Renamed, so that it is never read half written.
        std::fs::write(place.path("new"), line).unwrap();
        std::fs::rename(place.path("new"), place.path("pressure")).unwrap();
    };
    press();
    let policy = format!(
        "preset = 'chromium'\n[chromium]\nclient-every = '0s'\nwalk-every = '0s'\nidle = '0s'\npressure = '{}'\n",
        place.at("pressure")
    );
    let (mut run, _) = start(&place, &filler, &write(&place, "p.toml", &policy));
    let press = std::cell::RefCell::new(press);
    // A hundred regions of 16 pages each time.
    until("two rounds are done", || {
        press.borrow_mut()();
        (out(&place) >= 200 * 16 * 4096).then_some(())
    });
    run.ask("check");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn what_an_idle_program_doesnt_miss_is_taken_without_any_limit() {
    let test = "what_an_idle_program_doesnt_miss_is_taken_without_any_limit";
    let Some((place, filler)) = with_filler(test) else { return };
    let policy = "preset = 'proactive'\n[proactive]\ninterval = '20ms'\nbackoff = '100ms'\n";
    let (mut run, _) = start(&place, &filler, &write(&place, "p.toml", policy));
    for _ in 0..2 {
        until("most of it is out", || (out(&place) >= 40 << 20).then_some(()));
        run.ask("check");
    }
    assert!(run.end().success());
    place.assert_clean();
}

/// Two programs of the same size under a limit that holds one of them and a half. One touches all it has over and over: by size alone it gets all there is.
#[test]
fn who_touches_most_leaves_the_other_its_share() {
    let test = "who_touches_most_leaves_the_other_its_share";
    let Some((place, filler)) = with_filler(test) else { return };
    let policy = write(&place, "p.toml", "[limit]\nfair = true\n");
    let (socket, control) = (place.at("s"), place.at("c"));
    let arguments =
        ["daemon", "--listen", &socket, "--control", &control, "--policy", &policy, "--limit", "48M"];
    let mut daemon = place.userswap(&arguments).stderr(std::process::Stdio::null()).spawn().unwrap();
    until("it listens", || place.path("s").exists().then_some(()));
    let run = |name: &str| {
        let mut run =
            Talk::start(&mut place.userswap(&["run", "-q", "--daemon", &socket, "--", &filler, "32"]));
        run.expect("ready");
        run.ask(name);
        run
    };
    let mut quiet = run("check");
    let pid = until("it is a client", || ask(&place, &["clients"])[0]["pid"].as_u64());
    let mut busy = run("check");
    let resident = || {
        let clients = ask(&place, &["clients"]);
        let mut clients = clients.as_array().unwrap().iter();
        clients.find(|client| client["pid"] == pid).unwrap()["resident_bytes"].as_u64().unwrap()
    };
    until("both are clients", || (ask(&place, &["clients"]).as_array().unwrap().len() == 2).then_some(()));
    quiet.ask("check");
    for _ in 0..30 {
        busy.ask("churn");
        // Its share is 24 MiB, less a margin of a third at most while much comes in.
        assert!(resident() >= 14 << 20, "{}", resident());
    }
    quiet.ask("check");
    assert!(quiet.end().success() && busy.end().success());
    crate::support::signal(daemon.id(), "TERM");
    assert!(daemon.wait().unwrap().success());
    place.assert_clean();
}
