//! The examples, run as anybody would run them, and killed at random moments.
//!
//! `USERSWAP_LONG=1` makes them long: ten minutes of moving out at full speed for each contract, and 500 kills.

use crate::child::Scratch;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use userswap_uffd::probe::Capability;

const SEARCH: &str = env!("CARGO_BIN_EXE_example-search");

fn is_long() -> bool {
    std::env::var_os("USERSWAP_LONG").is_some_and(|value| value == "1")
}

/// Whether this machine lacks something, which is said.
fn is_skipped(name: &str, needed: &[Capability]) -> bool {
    let probe = userswap_uffd::probe();
    let missing = needed.iter().find(|capability| !probe.has(**capability));
    if let Some(missing) = missing {
        println!("SKIPPED {name}: {} is missing", missing.name());
    }
    missing.is_some()
}

/// What a daemon needs.
const DAEMON: &[Capability] =
    &[Capability::Events, Capability::ForkEvents, Capability::Pidfd, Capability::ReadMemory];

/// Runs a program to its end, which must be a good one. Gives what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stderr(Stdio::inherit()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{printed}", output.status);
    printed
}

/// The whole show at full speed: every answer was right, pages did move, and none was left in the store (else it fails).
fn search_with_daemon(name: &str, contract: &str) {
    if is_skipped(name, DAEMON) {
        return;
    }
    let (size, churn) = if is_long() { ("256", "600") } else { ("12", "2") };
    let printed = run(
        SEARCH,
        &[
            "--with-daemon",
            "--contract",
            contract,
            "--size",
            size,
            "--seconds",
            "1",
            "--churn",
            churn,
            "--rest",
            "0",
        ],
    );
    if is_long() {
        println!("{name}:\n{printed}");
    }
    let last = printed.lines().last().unwrap();
    let (answered, rest) = last.split_once(" answers, all right; ").expect(last);
    let (moved, _) = rest.split_once(' ').unwrap();
    assert!(answered.parse::<u64>().unwrap() > 0, "{last}");
    assert!(moved.parse::<u64>().unwrap() > 0, "{last}");
}

#[test]
fn an_extended_search_answers_while_it_is_moved_out() {
    search_with_daemon("an_extended_search_answers_while_it_is_moved_out", "extended");
}

#[test]
fn a_strict_search_answers_while_it_is_moved_out() {
    search_with_daemon("a_strict_search_answers_while_it_is_moved_out", "strict");
}

#[test]
fn a_local_search_answers_from_a_quarter_of_its_memory() {
    if is_skipped("a_local_search_answers_from_a_quarter_of_its_memory", &[Capability::UserModeOnly]) {
        return;
    }
    let (size, seconds) = if is_long() { ("256", "600") } else { ("12", "2") };
    let printed = run(env!("CARGO_BIN_EXE_example-search-local"), &["--size", size, "--seconds", seconds]);
    assert_eq!(printed.lines().last(), Some("all right"));
}

/// Joins in less memory than the tables have, and compares with joins that need no partitions.
fn join(name: &str, memory: &str, needed: &[Capability]) {
    if is_skipped(name, needed) {
        return;
    }
    let printed = run(
        env!("CARGO_BIN_EXE_example-join"),
        &["--size", "48", "--joins", "2", "--check", "--memory", memory],
    );
    let (joins, moved) = printed.split_once("seconds: ").expect(&printed);
    assert_eq!(joins.matches(" pairs, ").count(), 2, "{printed}");
    let moved = moved.lines().nth(1).and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
    // All but a quarter of each table, to say the least.
    assert!(memory == "plain" || moved > Some(2000), "{printed}");
}

#[test]
fn a_join_in_an_inline_region_is_right() {
    join("a_join_in_an_inline_region_is_right", "inline", &[Capability::UserModeOnly]);
}

#[test]
fn a_join_in_a_region_with_handlers_is_right() {
    join("a_join_in_a_region_with_handlers_is_right", "local", &[Capability::UserModeOnly]);
}

#[test]
fn a_join_in_ordinary_memory_is_right() {
    join("a_join_in_ordinary_memory_is_right", "plain", &[]);
}

#[test]
fn a_paged_region_keeps_a_gigabyte() {
    if is_skipped("a_paged_region_keeps_a_gigabyte", &[Capability::UserModeOnly]) {
        return;
    }
    let printed = run(env!("CARGO_BIN_EXE_example-paged-region"), &[]);
    assert!(printed.starts_with("all as it was: true"), "{printed}");
}

#[test]
fn extended_clients_killed_at_any_moment_leave_nothing() {
    killed_at_any_moment("extended_clients_killed_at_any_moment_leave_nothing", "extended");
}

#[test]
fn strict_clients_killed_at_any_moment_leave_nothing() {
    killed_at_any_moment("strict_clients_killed_at_any_moment_leave_nothing", "strict");
}

/// Kills clients while they connect, load, and answer, with everything moved out over and over. In the end the daemon has the
/// descriptors and threads it had, and no page.
fn killed_at_any_moment(name: &str, contract: &str) {
    if is_skipped(name, DAEMON) {
        return;
    }
    let kills = if is_long() { 500 } else { 20 };
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let mut daemon = Daemon::start(&socket, contract);
    daemon.command("status");
    let before = daemon.resources();
    let memory_before = daemon.anonymous_bytes();
    let mut moments = Moments(0x5eed);
    for kill in 0..kills {
        let mut client = Command::new(SEARCH)
            .args(["--contract", contract, "--size", "1", "--seconds", "0", "--rest", "0", "--socket"])
            .arg(&socket)
            // Small, and near: it is to be killed soon.
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../engine"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(client.stdout.take().unwrap());
        let wait = Duration::from_micros(moments.below(150_000));
        let is_dead = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Every fourth gets as far as answering.
                if kill % 4 == 0 {
                    let mut line = String::new();
                    said.read_line(&mut line).unwrap();
                    assert!(line.starts_with("loaded "), "{line:?}");
                }
                std::thread::sleep(wait);
                client.kill().unwrap();
                client.wait().unwrap();
                is_dead.store(true, Ordering::Relaxed);
            });
            while !is_dead.load(Ordering::Relaxed) {
                daemon.command("evict");
            }
        });
    }
    // It takes a moment to notice that somebody is gone.
    let mut left = daemon.command("status");
    for _ in 0..600 {
        if left.clients == 0 && daemon.resources() == before {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        left = daemon.command("status");
    }
    assert_eq!((left.clients, left.out, left.stored), (0, 0, 0), "after {kills} kills: {left:?}");
    assert_eq!(daemon.resources(), before, "after {kills} kills; descriptors and threads");
    assert!(left.held < 1 << 20, "an empty store holds {left:?}");
    let grown = daemon.anonymous_bytes().saturating_sub(memory_before);
    // The allocator keeps some for a thread or two. A client's pages are 1 MB and more.
    assert!(grown < 16 << 20, "the daemon has grown by {grown} bytes in {kills} kills");
    daemon.end();
}

/// The example daemon; killed when dropped.
struct Daemon {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// What it says of itself.
#[derive(Debug)]
struct Status {
    clients: u64,
    out: u64,
    stored: u64,
    held: u64,
}

impl Daemon {
    fn start(socket: &Path, contract: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-daemon"));
        command.arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        if contract == "strict" {
            command.arg("--strict");
        }
        let mut child = command.spawn().unwrap();
        let to = child.stdin.take();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        Self { child, to, from }
    }

    /// Gives a command and reads the status that answers it.
    fn command(&mut self, command: &str) -> Status {
        writeln!(self.to.as_ref().unwrap(), "{command}").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the daemon has ended");
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["clients", clients, "managed", _, "out", out, "stored", stored, "held", held] = words[..]
            else {
                // It tells of clients that were gone before they could be moved out.
                assert!(line.starts_with("process "), "{line:?}");
                continue;
            };
            let [clients, out, stored, held] = [clients, out, stored, held].map(|word| word.parse().unwrap());
            return Status { clients, out, stored, held };
        }
    }

    /// What its descriptors are, and how many threads it has.
    fn resources(&self) -> (Vec<String>, usize) {
        let entries = |of: &str| fs::read_dir(format!("/proc/{}/{of}", self.child.id())).unwrap();
        // One that was closed since it was listed is none.
        let open = entries("fd").filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let mut open: Vec<String> = open.map(|of| of.display().to_string()).collect();
        open.sort_unstable();
        (open, entries("task").count())
    }

    /// Its private memory.
    fn anonymous_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Ends it in order.
    fn end(mut self) {
        self.to = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Random moments from a seed (xorshift).
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
