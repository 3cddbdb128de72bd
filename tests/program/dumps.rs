//! Core dumps of programs whose memory is out.

use crate::daemon::Daemon;
use crate::support::{Place, Talk, can_serve, text, until};
use std::process::{Command, Stdio};
use userswap::daemon::control::{Evicted, Request, Restored};

const MARKS: usize = 20_000;

/// A heap of strings, each of which is there several times over and different from all others.
const PROGRAM: &str = "import sys
x = [('mark%07d' % i) * 30 for i in range(20000)]
print('ready', flush=True)
sys.stdin.read()";

/// How many different marks there are in a dump.
fn marks(dump: &[u8]) -> usize {
    let mut seen = vec![false; MARKS];
    for at in places(dump) {
        let number = dump.get(at + 4..at + 11).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(seen) = number.and_then(|number| seen.get_mut(number.parse::<usize>().ok()?)) {
            *seen = true;
        }
    }
    seen.into_iter().filter(|seen| *seen).count()
}

fn places(dump: &[u8]) -> impl Iterator<Item = usize> {
    dump.windows(4).enumerate().filter(|(_, four)| *four == b"mark").map(|(at, _)| at)
}

#[test]
fn what_was_restored_is_in_a_core_dump() {
    let test = "what_was_restored_is_in_a_core_dump";
    if !can_serve(test) {
        return;
    }
    for tool in ["gcore", "python3"] {
        if Command::new(tool).arg("--version").output().is_err() {
            println!("SKIPPED {test}: there is no {tool}");
            return;
        }
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &[]);
    let arguments = ["run", "-q", "--daemon", &place.at("s"), "--", "python3", "-c", PROGRAM];
    let mut talk = Talk::start(&mut place.userswap(&arguments));
    talk.expect("ready");
    let pid = until("it is served", || daemon.status().clients.first().map(|client| client.pid));
    let dump = |name: &str| -> Option<usize> {
        let output = Command::new("gcore")
            .args(["-o", &place.at(name), &pid.to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let Ok(dump) = std::fs::read(place.path(&format!("{name}.{pid}"))) else {
            println!("SKIPPED {test}: gcore can't attach: {}", text(&output.stderr));
            return None;
        };
        Some(marks(&dump))
    };
    let moved: Evicted = daemon.operator().ask(Request::Evict { pid, bytes: None }).unwrap();
    assert!(moved.moved_bytes > 4 << 20, "{moved:?}");
    if let Some(out) = dump("out") {
        // What is out isn't there, nor is it brought back for a dump.
        assert!(out < MARKS, "{out}");
        let restored: Restored = daemon.operator().ask(Request::Restore { pid }).unwrap();
        assert!(restored.restored_bytes > 0);
        assert_eq!(dump("back"), Some(MARKS));
    }
    assert!(talk.end().success());
    daemon.end();
}
