//! Signals reach the command as if nothing stood before it.

use crate::support::{Place, Talk, signal, state, until};
use std::os::unix::process::CommandExt;

#[test]
fn what_is_sent_is_passed_on() {
    let place = Place::new();
    for (name, status) in [("TERM", 11), ("INT", 12), ("HUP", 13), ("USR1", 14), ("QUIT", 15)] {
        let script = format!("trap 'exit {status}' {name}; echo set; while :; do sleep 0.05; done");
        let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--", "sh", "-c", &script]));
        run.expect("set");
        signal(run.pid(), name);
        assert_eq!(run.end().code(), Some(status), "{name}");
    }
    place.assert_clean();
}

#[test]
fn what_the_command_ignores_doesnt_end_it() {
    let place = Place::new();
    let script = "trap '' TERM; echo set; read word; echo $word";
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--", "sh", "-c", script]));
    run.expect("set");
    signal(run.pid(), "TERM");
    std::io::Write::write_all(run.child.stdin.as_mut().unwrap(), b"here\n").unwrap();
    run.expect("here");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn it_stops_and_goes_on_with_the_command() {
    let place = Place::new();
    let script = "echo $$; kill -STOP $$; echo on";
    let mut run = Talk::start(&mut place.userswap(&["run", "-q", "--", "sh", "-c", script]));
    until("it stops", || state(run.pid()).filter(|state| state == "T"));
    signal(run.pid(), "CONT");
    let mut pid = String::new();
    run.read(&mut pid);
    run.expect("on");
    assert!(run.end().success());
    place.assert_clean();
}

#[test]
fn a_stop_that_is_sent_stops_both() {
    let place = Place::new();
    let mut run = place.userswap(&["run", "-q", "--", "sh", "-c", "echo $$; read word; echo $word"]);
    // In a group of its own, whose parent is of another: the kernel doesn't stop the groups of nobody's children.
    let mut run = Talk::start(run.process_group(0));
    let mut line = String::new();
    run.read(&mut line);
    let pid: u32 = line.trim().parse().unwrap();
    signal(run.pid(), "TSTP");
    for pid in [pid, run.pid()] {
        until("it stops", || state(pid).filter(|state| state == "T"));
    }
    signal(run.pid(), "CONT");
    until("it goes on", || state(pid).filter(|state| state != "T"));
    std::io::Write::write_all(run.child.stdin.as_mut().unwrap(), b"again\n").unwrap();
    run.expect("again");
    assert!(run.end().success());
    place.assert_clean();
}
