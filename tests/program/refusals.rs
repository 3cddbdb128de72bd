//! What can't be done is said in one sentence, with a status of its own, and leaves nothing behind.

use crate::support::{Place, copy_program, signal, state, text, until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Output, Stdio};

/// One sentence with these words in it, and this status.
fn refused(output: &Output, status: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said:?}");
    }
    assert!(said.starts_with("userswap: ") || said.starts_with("error: "), "{said:?}");
    assert!(!said.contains("panicked") && output.stdout.is_empty(), "{said:?}");
}

#[test]
fn an_unknown_store() {
    let place = Place::new();
    refused(&place.output(&["run", "--store", "ram:foo", "--", "true"]), 125, &["no codec foo"]);
    refused(&place.output(&["run", "--store", "disk:x", "--", "true"]), 125, &["no store disk"]);
    refused(
        &place.output(&["daemon", "--listen", &place.at("s"), "--store", "ram:lz4?x=1"]),
        2,
        &["no option x"],
    );
    assert!(!place.path("s").exists());
    place.assert_clean();
}

#[test]
fn a_bad_size() {
    let place = Place::new();
    refused(&place.output(&["run", "--limit", "3X", "--", "true"]), 125, &["'3X' is no size"]);
    refused(
        &place.output(&["daemon", "--listen", &place.at("s"), "--limit", "lots"]),
        2,
        &["'lots' is no size"],
    );
    refused(&place.output(&["ctl", "--control", &place.at("c"), "limit", "-1"]), 2, &["-1"]);
    place.assert_clean();
}

#[test]
fn a_missing_program() {
    let place = Place::new();
    refused(&place.output(&["run", "--", "no-such-program"]), 127, &["no-such-program: command not found"]);
    refused(&place.output(&["run", "--", "./no/such"]), 127, &["./no/such: command not found"]);
    refused(&place.output(&["run", "--"]), 125, &["CMD"]);
    place.assert_clean();
}

#[test]
fn a_program_that_cant_be_run() {
    let place = Place::new();
    std::fs::write(place.path("data"), "data").unwrap();
    refused(&place.output(&["run", "--", &place.at("data")]), 126, &["permission denied"]);
    refused(&place.output(&["run", "--", &place.at("")]), 126, &["permission denied"]);
    place.assert_clean();
}

#[test]
fn a_socket_in_use() {
    let place = Place::new();
    let mut daemon = place
        .userswap(&["daemon", "--listen", &place.at("s"), "--control", &place.at("c")])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the daemon listens", || place.path("c").exists().then_some(()));
    refused(&place.output(&["daemon", "--listen", &place.at("s")]), 4, &[&place.at("s"), "in use"]);
    refused(
        &place.output(&["daemon", "--listen", &place.at("t"), "--control", &place.at("c")]),
        4,
        &[&place.at("c"), "in use"],
    );
    refused(&place.output(&["run", "--control", &place.at("c"), "--", "true"]), 125, &["in use"]);
    assert!(!place.path("t").exists());
    assert!(place.path("s").exists() && place.path("c").exists());
    // Keeper and worker die, and neither has time for anything.
    let status: serde_json::Value = serde_json::from_slice(
        &place.output(&["ctl", "--control", &place.at("c"), "--json", "status"]).stdout,
    )
    .unwrap();
    let worker = u32::try_from(status["worker_pid"].as_u64().unwrap()).unwrap();
    signal(daemon.id(), "STOP");
    signal(worker, "KILL");
    // Until then it listens.
    until("the worker is dead", || state(worker).is_none_or(|state| state == "Z").then_some(()));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // Who held what they had open for them finds that nobody needs it.
    until("nobody listens", || std::os::unix::net::UnixStream::connect(place.path("c")).err());
    // Its sockets are still there, and nobody listens: they are replaced.
    let again = place
        .userswap(&["daemon", "--listen", &place.at("s"), "--control", &place.at("c")])
        .stderr(Stdio::null())
        .spawn();
    let mut again = again.unwrap();
    until("another daemon takes over", || {
        let status = place.output(&["ctl", "--control", &place.at("c"), "drain"]).status;
        status.success().then_some(())
    });
    assert!(again.wait().unwrap().success());
    assert!(!place.path("s").exists() && !place.path("c").exists());
    place.assert_clean();
}

#[test]
fn a_file_in_the_way_of_a_socket_stays() {
    let place = Place::new();
    std::fs::write(place.path("file"), "mine").unwrap();
    refused(&place.output(&["daemon", "--listen", &place.at("file")]), 4, &["file"]);
    refused(
        &place.output(&["daemon", "--listen", &place.at("s"), "--control", &place.at("file")]),
        4,
        &["no socket"],
    );
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"mine");
    assert!(!place.path("s").exists());
}

#[test]
fn no_permission() {
    let place = Place::new();
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED no_permission: only root can become somebody else");
        return;
    }
    let program = place.path("userswap");
    copy_program(&program);
    std::fs::create_dir(place.path("closed")).unwrap();
    std::fs::set_permissions(place.path("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let by_nobody = |arguments: &[&str]| {
        place.command(&program).args(arguments).uid(65534).gid(65534).stdin(Stdio::null()).output().unwrap()
    };
    refused(&by_nobody(&["daemon", "--listen", &place.at("closed/s")]), 3, &["closed/s", "ermission denied"]);
    refused(
        &by_nobody(&["run", "--report", &place.at("closed/r"), "--", "true"]),
        125,
        &["closed/r", "ermission denied"],
    );
    assert_eq!(std::fs::read_dir(place.path("closed")).unwrap().count(), 0);
    place.assert_clean();
}

#[test]
fn a_configuration_that_makes_no_sense() {
    let place = Place::new();
    let config = |text: &str| {
        std::fs::write(place.path("config"), text).unwrap();
        place.output(&["daemon", "--config", &place.at("config")])
    };
    refused(&config("listen = '/x'\nlimt = '1G'\n"), 2, &["config line 2", "limt"]);
    refused(&config("listen = '/x'\nlimit = '1Q'\n"), 2, &["line 2", "'1Q' is no size"]);
    refused(&config("listen = \n"), 2, &["line 1"]);
    refused(&config("limit = '1G'\n"), 2, &["--listen"]);
    refused(&place.output(&["daemon", "--config", &place.at("none")]), 1, &["none", "No such file"]);
}

#[test]
fn nobody_to_talk_to() {
    let place = Place::new();
    refused(&place.output(&["ctl", "--control", &place.at("c"), "status"]), 5, &["no daemon answers"]);
    refused(&place.output(&["ctl", "status"]), 2, &["--control"]);
    refused(&place.output(&["run", "--daemon", &place.at("s"), "--", "true"]), 125, &["--daemon"]);
    refused(
        &place.output(&["run", "--daemon", &place.at("s"), "--limit", "1M", "--", "true"]),
        125,
        &["--limit"],
    );
    place.assert_clean();
}

#[test]
fn a_report_that_cant_be_written_is_known_before_the_command_runs() {
    let place = Place::new();
    let output = place.output(&["run", "--report", &place.at("no/where"), "--", "touch", &place.at("ran")]);
    refused(&output, 125, &["no/where", "No such file"]);
    assert!(!place.path("ran").exists());
    place.assert_clean();
}
