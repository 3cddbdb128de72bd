//! Nobody can bring memory back any more: who waits for it waits for a while, is told, and ended. Nobody reads zeros.

use crate::daemon::Daemon;
use crate::patient;
use crate::support::{Place, Talk, can_serve, signal, state, until, with_filler};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use userswap::daemon::control::{Evicted, Request};

/// Everything of a program that can be out is, and some can.
fn evict(daemon: &Daemon, pid: u32) {
    let moved: Evicted = daemon.operator().ask(Request::Evict { pid, bytes: None }).unwrap();
    assert!(moved.moved_bytes > 0);
}

/// Both at once: a worker whose keeper dies would bring everything back, a keeper whose worker dies make another.
pub(crate) fn kill_both(daemon: &mut Daemon) {
    let worker = daemon.status().worker_pid;
    assert_ne!(worker, daemon.keeper.id());
    signal(daemon.keeper.id(), "STOP");
    signal(worker, "KILL");
    daemon.keeper.kill().unwrap();
    daemon.keeper.wait().unwrap();
}

/// How a program ends that nobody tells to.
fn end_of(talk: &mut Talk) -> ExitStatus {
    let child = std::cell::RefCell::new(&mut talk.child);
    // Not by waiting, which would close its input, and end it.
    until("it ends", || child.borrow_mut().try_wait().unwrap())
}

fn say(talk: &mut Talk, word: &str) {
    let to = talk.child.stdin.as_mut().unwrap();
    writeln!(to, "{word}").unwrap();
    to.flush().unwrap();
}

/// Whether a thread of a process waits for a page.
fn waits(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.into_iter().any(|task| {
        std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|wchan| wchan.contains("userfault"))
    })
}

#[test]
fn whose_daemon_is_dead_for_good_waits_is_told_and_ended() {
    let test = "whose_daemon_is_dead_for_good_waits_is_told_and_ended";
    let Some((place, filler)) = with_filler(test) else { return };
    let mut daemon = Daemon::start(&place, &[]);
    let errors = place.path("errors");
    let socket = place.at("s");
    let arguments = ["run", "-q", "--patience", "2", "--daemon", &socket, "--", &filler, "8"];
    let start = || {
        let errors = std::fs::File::options().create(true).append(true).open(&errors).unwrap();
        let mut talk = Talk::start(place.userswap(&arguments).stderr(errors));
        talk.expect("ready");
        talk
    };
    let mut needs = start();
    let pid = until("it is served", || daemon.status().clients.first().map(|client| client.pid));
    evict(&daemon, pid);
    let mut needs_nothing = start();
    until("both are served", || (daemon.status().clients.len() == 2).then_some(()));
    kill_both(&mut daemon);
    say(&mut needs, "check");
    until("it waits, or is ended", || (waits(pid) || state(pid).is_none()).then_some(()));
    assert_eq!(end_of(&mut needs).code(), Some(128 + 9), "ended as by SIGKILL");
    let mut said = String::new();
    needs.read(&mut said);
    assert_eq!(said, "", "it went on with something else than its memory");
    let told = std::fs::read_to_string(&errors).unwrap();
    let due = format!("userswap: the daemon that has memory of process {pid} is gone; after waiting for 2 s");
    assert_eq!(told.matches(&due).count(), 1, "{told}");
    // What has all it needs runs on.
    needs_nothing.ask("check");
    assert!(needs_nothing.end().success());
}

#[test]
fn so_is_who_takes_part() {
    let test = "so_is_who_takes_part";
    if !can_serve(test) {
        return;
    }
    for contract in ["extended", "strict"] {
        // Much less than its threads go through all the while: some is always out.
        let place = Place::new();
        let mut daemon = Daemon::start(&place, &["--contract", contract, "--limit", "2M"]);
        let errors = std::fs::File::create(place.path("errors")).unwrap();
        let mut command = patient::command(&place.at("s"), contract);
        command.env("USERSWAP_TEST_PATIENCE", "2").stderr(Stdio::from(errors));
        let mut client = Talk::start(&mut command);
        client.expect_line_of_tests("ready");
        evict(&daemon, client.pid());
        kill_both(&mut daemon);
        let ended = end_of(&mut client);
        let told = std::fs::read_to_string(place.path("errors")).unwrap();
        assert_eq!(ended.signal(), Some(9), "{contract}: {ended}: {told}");
        assert!(told.contains("is gone; after waiting for 2 s the process is ended"), "{told}");
    }
}

/// The end of a daemon that has brought everything back is nobody's.
#[test]
fn who_has_all_its_memory_outlives_its_daemon() {
    let test = "who_has_all_its_memory_outlives_its_daemon";
    let Some((place, filler)) = with_filler(test) else { return };
    let mut daemon = Daemon::start(&place, &["--limit", "4M"]);
    let socket = place.at("s");
    let arguments = ["run", "-q", "--patience", "1", "--daemon", &socket, "--", &filler, "8"];
    let mut client = Talk::start(&mut place.userswap(&arguments));
    client.expect("ready");
    until("some of it is out", || (daemon.status().totals.pages_out > 0).then_some(()));
    daemon.end();
    // Longer than its patience.
    std::thread::sleep(Duration::from_millis(1500));
    for word in ["check", "churn", "fork", "check"] {
        client.ask(word);
    }
    assert!(client.end().success());
}

/// No worker gets as far as serving, for none can open a file: after five the keeper gives up, and ends who waits when they have waited long enough.
#[test]
fn when_no_worker_can_serve_who_waits_is_ended() {
    let test = "when_no_worker_can_serve_who_waits_is_ended";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &["--patience", "2", "--limit", "2M"]);
    let worker = daemon.status().worker_pid;
    let mut command = patient::command(&place.at("s"), "extended");
    let mut client = Talk::start(command.env("USERSWAP_TEST_PATIENCE", "60"));
    client.expect_line_of_tests("ready");
    evict(&daemon, client.pid());
    let keeper = rustix::process::Pid::from_child(&daemon.keeper);
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::prlimit(Some(keeper), rustix::process::Resource::Nofile, none).unwrap();
    signal(worker, "KILL");
    until("the keeper gives up", || daemon.log().contains("no worker gets as far as serving").then_some(()));
    assert!(client.child.try_wait().unwrap().is_none(), "it is left waiting first");
    assert_eq!(end_of(&mut client).signal(), Some(9));
    assert_eq!(daemon.keeper.wait().unwrap().code(), Some(1));
    let log = daemon.log();
    // Each found what the one before had left, and left it in turn.
    assert_eq!(log.matches("this worker can't serve").count(), 5, "{log}");
    assert!(!log.contains("is lost"), "{log}");
    assert!(log.contains("a program is ended: its memory can't be brought back"), "{log}");
}

/// Its userfaultfd was the daemon's alone. It waits as others do, then the memory that is out is a bus error; what is in memory it has.
#[test]
fn a_forked_child_that_nobody_speaks_for_never_reads_zeros() {
    let test = "a_forked_child_that_nobody_speaks_for_never_reads_zeros";
    if !can_serve(test) {
        return;
    }
    for waits_already in [false, true] {
        let place = Place::new();
        let mut daemon = Daemon::start(&place, &["--patience", "1"]);
        let worker = daemon.status().worker_pid;
        let go = place.path("go");
        let mut command = patient::command(&place.at("s"), "extended");
        let mut client =
            Talk::start(command.env("USERSWAP_TEST_PATIENCE", "600").env("USERSWAP_TEST_GO", &go));
        client.expect_line_of_tests("ready");
        evict(&daemon, client.pid());
        client.ask("fork");
        let parent = client.pid();
        let children = || {
            std::fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten().find_map(|task| {
                std::fs::read_to_string(task.path().join("children"))
                    .ok()?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
        };
        let child: u32 = until("there is a child", children);
        if waits_already {
            signal(worker, "STOP");
            std::fs::write(&go, "").unwrap();
            until("it waits", || waits(child).then_some(()));
        }
        // One of them alone would be followed by another, or bring everything back.
        signal(daemon.keeper.id(), "STOP");
        signal(worker, "KILL");
        daemon.keeper.kill().unwrap();
        daemon.keeper.wait().unwrap();
        std::fs::write(&go, "").unwrap();
        assert_eq!(client.says("child"), Some("signal: 7 (SIGBUS)".to_owned()));
    }
}
