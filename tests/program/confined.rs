//! What a process that serves has given up, and what it can't do any more.

use crate::daemon::Daemon;
use crate::support::{Place, Talk, can_serve, signal, until, with_filler};
use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use userswap::daemon::confine::{Needs, drop_capabilities, filter_system_calls};

/// KILL, SYS_PTRACE, DAC_READ_SEARCH, IPC_LOCK and SYS_NICE.
const KEPT: u64 = 1 << 5 | 1 << 19 | 1 << 2 | 1 << 14 | 1 << 23;

/// The kernel's words on every thread of a process: capabilities, no new privileges, filtered.
fn threads(pid: u32) -> Vec<(u64, bool, bool)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    statuses
        .map(|status| {
            let value = |key| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
            let capabilities = u64::from_str_radix(value("CapPrm:"), 16).unwrap();
            (capabilities, value("NoNewPrivs:") == "1", value("Seccomp:") == "2")
        })
        .collect()
}

fn is_confined(pid: u32) -> bool {
    let threads = threads(pid);
    !threads.is_empty()
        && threads
            .iter()
            .all(|(capabilities, no_new, filtered)| capabilities & !KEPT == 0 && *no_new && *filtered)
}

#[test]
fn every_thread_of_a_worker_is_confined_and_so_is_the_next_workers() {
    let test = "every_thread_of_a_worker_is_confined_and_so_is_the_next_workers";
    if !can_serve(test) {
        return;
    }
    let serving = |daemon: &Daemon| {
        // It answers a little before it is confined.
        until("it serves", || daemon.log().contains("serving ").then_some(()));
        daemon.status()
    };
    let place = Place::new();
    let daemon = Daemon::start(&place, &[]);
    let first = serving(&daemon);
    until("it is confined", || is_confined(first.worker_pid).then_some(()));
    assert!(first.confinement.system_calls_filtered && first.confinement.no_new_privileges);
    let names: HashSet<&str> = first.confinement.capabilities.iter().map(String::as_str).collect();
    assert!(
        names.is_subset(&HashSet::from(["kill", "sys_ptrace", "dac_read_search", "ipc_lock", "sys_nice"])),
        "{names:?}"
    );
    signal(first.worker_pid, "KILL");
    let next = until("another worker", || {
        Some(daemon.status().worker_pid).filter(|worker| *worker != first.worker_pid)
    });
    until("it is confined, too", || is_confined(next).then_some(()));
    drop(daemon);

    let place = Place::new();
    let free = Daemon::start(&place, &["--no-sandbox"]);
    let all = serving(&free);
    assert!(!all.confinement.system_calls_filtered && !all.confinement.no_new_privileges);
    drop(free);
}

/// A command keeps what its starter had, and is served by who hasn't.
#[test]
fn a_command_is_not_confined_with_who_serves_it() {
    let test = "a_command_is_not_confined_with_who_serves_it";
    let Some((place, filler)) = with_filler(test) else { return };
    let mut talk = Talk::start(&mut place.userswap(&["run", "-q", "--limit", "8M", "--", &filler, "16"]));
    talk.expect("ready");
    until("it is confined", || is_confined(talk.pid()).then_some(()));
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", talk.pid())).unwrap();
    let command: u32 = children.trim().parse().unwrap();
    assert!(threads(command).iter().all(|(_, no_new, filtered)| !no_new && !filtered));
    talk.ask("check");
    assert!(talk.end().success());
    place.assert_clean();
}

/// Started once more by the test below, and confined.
#[test]
fn confined_process() {
    let Ok(root) = std::env::var("USERSWAP_TEST_CONFINED") else { return };
    let at = |name: &str| format!("{root}/{name}");
    drop_capabilities().unwrap();
    filter_system_calls(Needs::default()).unwrap();
    let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
    // No file is made or written to, by root either; to look at files is what a daemon does.
    assert!(File::create(at("new")).is_err_and(denied));
    assert!(File::options().write(true).open(at("there")).is_err_and(denied));
    assert!(File::options().append(true).open(at("there")).is_err_and(denied));
    assert!(std::fs::rename(at("there"), at("elsewhere")).is_err_and(denied));
    assert!(
        std::fs::set_permissions(at("there"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .is_err_and(denied)
    );
    assert_eq!(std::fs::read(at("there")).unwrap(), b"there");
    // No program, no network, no socket of its own.
    assert!(Command::new("true").status().is_err_and(denied));
    assert!(UnixStream::connect(at("socket")).is_err_and(denied));
    assert!(TcpListener::bind("127.0.0.1:0").is_err_and(denied));
    // By the older call that some libraries make no file is written to either, and found out where a thread runs, which decides how fast it is served.
    let open = |name: &str, flags| rustix::fs::open(at(name), flags, rustix::fs::Mode::RWXU);
    assert!(open("there", rustix::fs::OFlags::RDONLY).is_ok());
    assert_eq!(open("there", rustix::fs::OFlags::RDWR).unwrap_err(), rustix::io::Errno::PERM);
    assert_eq!(open("new", rustix::fs::OFlags::CREATE).unwrap_err(), rustix::io::Errno::PERM);
    let here = userswap_uffd::cpu::current_thread();
    assert!(userswap_uffd::cpu::Whereabouts::of(here).unwrap().cpu().is_ok());
    // Threads there are.
    assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
    println!("\nconfined");
}

#[test]
fn a_confined_process_writes_no_file_runs_no_program_and_has_no_network() {
    let place = Place::new();
    std::fs::write(place.path("there"), "there").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confined::confined_process", "--nocapture", "--test-threads", "1"])
        .env("USERSWAP_TEST_CONFINED", place.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\nconfined\n"), "{output:?}");
    assert!(!place.path("new").exists() && place.path("there").exists());
}
