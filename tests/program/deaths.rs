//! The daemon's worker is killed at any instant: programs wait, a successor serves on, and no byte is wrong.
//!
//! `USERSWAP_LONG=1` kills it 500 times for each kind of program.

use crate::daemon::Daemon;
use crate::patient;
use crate::support::{Place, Talk, can_serve, copy_program, signal, until, with_filler};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use userswap::daemon::control::{Evicted, Operator, Request, Status};

fn kills() -> u32 {
    if is_long() { 500 } else { 30 }
}

fn is_long() -> bool {
    std::env::var_os("USERSWAP_LONG").is_some_and(|value| value == "1")
}

/// A daemon that dies often.
struct Mortal {
    daemon: Daemon,
    seed: u64,
    back: Vec<Duration>,
}

impl Mortal {
    fn of(daemon: Daemon) -> Self {
        Self { daemon, seed: 1, back: Vec::new() }
    }

    fn status(&self) -> Status {
        self.daemon.status()
    }

    /// Kills the worker at some instant and waits for the next.
    fn kill_worker(&mut self) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(self.seed >> 47));
        let before = self.status().worker_pid;
        assert_ne!(before, self.daemon.keeper.id(), "the worker is a process of its own");
        let killed = Instant::now();
        signal(before, "KILL");
        until("another worker", || Some(self.status().worker_pid).filter(|worker| *worker != before));
        self.back.push(killed.elapsed());
    }

    /// Ends it in good order, and says how soon its workers were back.
    fn end(mut self, name: &str) {
        self.daemon.end();
        self.back.sort_unstable();
        let at = |share: usize| self.back[(self.back.len() - 1) * share / 100];
        println!(
            "{name}: {} kills, back after {:?} (median), {:?} (99 %), {:?} at most",
            self.back.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}

/// Has everything of a program moved out over and over, whoever is there to do it, while `action` goes on.
fn churned(control: &std::path::Path, pid: u32, action: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let moved = Operator::connect(control)
                    .and_then(|mut operator| operator.ask::<Evicted>(Request::Evict { pid, bytes: None }));
                if moved.is_err() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        action();
    });
}

/// Says that it is over when it goes, by a panic too: others wait for that.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A program that takes part, forks all the while, and looks at every byte.
fn takes_part(test: &str, contract: &str, store: impl Fn(&Place) -> String) {
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let arguments = ["--contract", contract, "--store", &store(&place)];
    let mut daemon = Mortal::of(Daemon::start(&place, &arguments));
    let mut client = Talk::start(&mut patient::command(&place.at("s"), contract));
    client.expect_line_of_tests("ready");
    let (control, pid) = (daemon.daemon.control.clone(), client.pid());
    churned(&control, pid, || {
        for _ in 0..kills() {
            daemon.kill_worker();
            // Every thread of it has gone on, and so has a child.
            client.ask("step");
        }
    });
    client.ask("check");
    assert!(client.end().success());
    daemon.end(test);
}

#[test]
fn who_takes_part_never_notices() {
    takes_part("who_takes_part_never_notices", "extended", in_memory);
}

#[test]
fn nor_does_who_speaks_the_four_calls_alone() {
    takes_part("nor_does_who_speaks_the_four_calls_alone", "strict", in_memory);
}

#[test]
fn nor_does_it_matter_that_memory_is_in_a_file() {
    takes_part("nor_does_it_matter_that_memory_is_in_a_file", "extended", in_a_file);
}

#[test]
fn nor_that_it_is_in_three_tiers() {
    takes_part("nor_that_it_is_in_three_tiers", "extended", in_tiers);
}

#[test]
fn nor_that_some_of_it_was_written_back() {
    takes_part("nor_that_some_of_it_was_written_back", "extended", written_back);
}

fn in_memory(_: &Place) -> String {
    "ram:lz4".to_owned()
}

/// So small that it is cleaned all the time.
fn in_a_file(place: &Place) -> String {
    format!("file:{}?size=64M&reserve=0", place.at("temporary"))
}

/// Each of which is full all the time, so that pages go down.
fn in_tiers(place: &Place) -> String {
    let file = in_a_file(place);
    format!("tier?age=1s:ram:lz4?capacity=1M>zram?mem_limit=1M>{file}")
}

fn written_back(place: &Place) -> String {
    format!("zram?mem_limit=1M&writeback=all&writeback_idle=1s:{}", in_a_file(place))
}

#[test]
fn nor_do_programs_that_know_nothing() {
    know_nothing("nor_do_programs_that_know_nothing", LOAD, in_memory);
}

#[test]
fn nor_do_they_with_memory_in_a_file() {
    know_nothing("nor_do_they_with_memory_in_a_file", LOAD, in_a_file);
}

#[test]
fn nor_do_they_with_memory_in_three_tiers() {
    know_nothing("nor_do_they_with_memory_in_three_tiers", LOAD, in_tiers);
}

/// In the long form a gigabyte is stored, and the workers of each kind of store are killed 170 times.
#[test]
fn four_programs_and_much_memory_from_memory() {
    know_nothing("four_programs_and_much_memory_from_memory", full_load(), in_memory);
}

#[test]
fn four_programs_and_much_memory_from_a_file() {
    let store = |place: &Place| format!("file:{}?size=4G&reserve=0", place.at("temporary"));
    know_nothing("four_programs_and_much_memory_from_a_file", full_load(), store);
}

#[test]
fn four_programs_and_much_memory_from_three_tiers() {
    let store = |place: &Place| {
        let directory = place.at("temporary");
        let (first, second) = if is_long() { (64, 64) } else { (2, 2) };
        let file = format!("file:{directory}?size=4G&reserve=0");
        format!("tier?age=1s:ram:lz4?capacity={first}M>zram?mem_limit={second}M>{file}")
    };
    know_nothing("four_programs_and_much_memory_from_three_tiers", full_load(), store);
}

/// Programs, how much each fills, what all of them may have in memory, how often the worker is killed.
struct Load {
    programs: usize,
    mebibytes: u64,
    limit: u64,
    kills: u32,
}

const LOAD: Load = Load { programs: 2, mebibytes: 16, limit: 16, kills: 0 };

fn full_load() -> Load {
    let (mebibytes, limit, kills) = if is_long() { (288, 96, 170) } else { (16, 16, 10) };
    Load { programs: 4, mebibytes, limit, kills }
}

/// Programs under a limit, which write to their memory, fork, and outgrow what they had.
fn know_nothing(test: &str, load: Load, store: impl Fn(&Place) -> String) {
    let Some((place, filler)) = with_filler(test) else { return };
    let limit = format!("{}M", load.limit);
    let mut daemon = Mortal::of(Daemon::start(&place, &["--limit", &limit, "--store", &store(&place)]));
    let (served, size) = (place.at("s"), load.mebibytes.to_string());
    let mut clients: Vec<Talk> = (0..load.programs)
        .map(|_| {
            let arguments = ["run", "-q", "--daemon", &served, "--", &filler, &size];
            Talk::start(place.userswap(&arguments).stderr(Stdio::inherit()))
        })
        .collect();
    clients.iter_mut().for_each(|client| client.expect("ready"));
    let out = (load.programs as u64 * load.mebibytes).saturating_sub(load.limit) << 20;
    until("all over the limit is out", || {
        let now: u64 = daemon.status().clients.iter().map(|client| client.moved_out_bytes).sum();
        (now >= out).then_some(())
    });
    println!("{test}: {} MiB out", out >> 20);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&over);
        for client in &mut clients {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    for word in ["check", "churn", "fork", "check"] {
                        client.ask(word);
                    }
                }
                client.ask("paint");
                client.ask("outgrow");
                client.ask("check");
            });
        }
        for _ in 0..if load.kills == 0 { kills() } else { load.kills } {
            daemon.kill_worker();
        }
    });
    for client in &mut clients {
        assert!(client.end().success());
    }
    daemon.end(test);
}

#[test]
fn a_daemon_goes_on_as_what_its_program_is_now() {
    let test = "a_daemon_goes_on_as_what_its_program_is_now";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    // A program of its own, that can be replaced.
    let program = place.path("userswap");
    copy_program(&program);
    let mut daemon = Mortal::of(Daemon::of(place.command(&program), &place, &[]));
    let mut client = Talk::start(&mut patient::command(&place.at("s"), "extended"));
    client.expect_line_of_tests("ready");
    let (control, pid) = (daemon.daemon.control.clone(), client.pid());
    churned(&control, pid, || {
        for _ in 0..if is_long() { 50 } else { 5 } {
            let before = daemon.status().worker_pid;
            copy_program(&place.path("newer"));
            std::fs::rename(place.path("newer"), &program).unwrap();
            let told = Instant::now();
            signal(daemon.daemon.keeper.id(), "USR2");
            until("another worker", || Some(daemon.status().worker_pid).filter(|worker| *worker != before));
            daemon.back.push(told.elapsed());
            client.ask("step");
            // Deaths go on to be survived.
            daemon.kill_worker();
            client.ask("step");
        }
    });
    // What can't take over doesn't get to.
    let worker = daemon.status().worker_pid;
    std::fs::remove_file(&program).unwrap();
    let put = "printf '#!/bin/sh\\necho 0\\n' > $0 && chmod 755 $0";
    assert!(std::process::Command::new("sh").args(["-c", put]).arg(&program).status().unwrap().success());
    signal(daemon.daemon.keeper.id(), "USR2");
    until("it is refused", || daemon.daemon.log().contains("can't take up").then_some(()));
    assert_eq!(daemon.status().worker_pid, worker);
    client.ask("check");
    assert!(client.end().success());
    daemon.end(test);
}

#[test]
fn a_keeper_that_dies_has_everything_brought_back() {
    let test = "a_keeper_that_dies_has_everything_brought_back";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let mut daemon = Mortal::of(Daemon::start(&place, &[]));
    let mut client = Talk::start(&mut patient::command(&place.at("s"), "extended"));
    client.expect_line_of_tests("ready");
    let moved: Evicted = Operator::connect(&daemon.daemon.control)
        .unwrap()
        .ask(Request::Evict { pid: client.pid(), bytes: None })
        .unwrap();
    assert!(moved.moved_bytes > 0);
    daemon.daemon.keeper.kill().unwrap();
    daemon.daemon.keeper.wait().unwrap();
    // Its worker ends in good order.
    until("the sockets are gone", || (!place.path("s").exists()).then_some(()));
    client.ask("step");
    client.ask("check");
    assert!(client.end().success());
}
