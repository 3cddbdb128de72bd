//! What else happens to programs in their lives: they are frozen, debugged, and their clocks differ.

use crate::daemon::Daemon;
use crate::patient;
use crate::support::{Place, Talk, can_serve, until, with_filler};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use userswap::daemon::control::{Evicted, Operator, Request, Restored, Status};

fn start(place: &Place) -> Talk {
    let mut command = patient::command(&place.at("s"), "extended");
    let mut client = Talk::start(command.env("USERSWAP_TEST_PATIENCE", "600"));
    client.expect_line_of_tests("ready");
    client
}

fn evict(control: &Path, pid: u32) -> Evicted {
    Operator::connect(control).unwrap().ask(Request::Evict { pid, bytes: None }).unwrap()
}

/// A control group whose processes can be frozen, by either version.
struct Freezer {
    group: PathBuf,
    file: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    fn new() -> Option<Self> {
        let name = format!("us-test-{}", std::process::id());
        let found = [
            ("/sys/fs/cgroup/freezer", "freezer.state", ["THAWED", "FROZEN"]),
            ("/sys/fs/cgroup/unified", "cgroup.freeze", ["0", "1"]),
            ("/sys/fs/cgroup", "cgroup.freeze", ["0", "1"]),
        ];
        found.into_iter().find_map(|(root, file, words)| {
            let group = Path::new(root).join(&name);
            std::fs::create_dir(&group).ok()?;
            let freezer = Self { group, file, words };
            freezer.group.join(file).exists().then_some(freezer)
        })
    }

    fn put(&self, pid: u32) {
        std::fs::write(self.group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn set_frozen(&self, frozen: bool) {
        std::fs::write(self.group.join(self.file), self.words[usize::from(frozen)]).unwrap();
        until("it is so", || {
            let (file, due) = match self.file {
                "cgroup.freeze" => ("cgroup.events", if frozen { "frozen 1" } else { "frozen 0" }),
                file => (file, self.words[usize::from(frozen)]),
            };
            std::fs::read_to_string(self.group.join(file)).ok()?.contains(due).then_some(())
        });
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.group.join(self.file), self.words[0]);
        // Empty once the last process in it is gone.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn a_frozen_program_holds_nobody_up_and_goes_on_when_it_thaws() {
    let test = "a_frozen_program_holds_nobody_up_and_goes_on_when_it_thaws";
    if !can_serve(test) {
        return;
    }
    let Some(freezer) = Freezer::new() else {
        println!("SKIPPED {test}: no control group can be made that freezes");
        return;
    };
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &[]);
    let (mut frozen, mut other) = (start(&place), start(&place));
    freezer.put(frozen.pid());
    for round in 0..3 {
        // With its memory out, on its way out, or in.
        if round > 0 {
            evict(&daemon.control, frozen.pid());
        }
        let (control, pid) = (daemon.control.clone(), frozen.pid());
        let evicting = (round == 1).then(|| std::thread::spawn(move || evict(&control, pid)));
        freezer.set_frozen(true);
        for _ in 0..3 {
            assert!(evict(&daemon.control, other.pid()).moved_bytes > 0);
            other.ask("step");
            other.ask("check");
        }
        freezer.set_frozen(false);
        if let Some(evicting) = evicting {
            evicting.join().unwrap();
        }
        frozen.ask("step");
        frozen.ask("check");
    }
    assert!(frozen.end().success());
    assert!(other.end().success());
    daemon.end();
}

/// A debugger comes and goes while memory moves. What it sees of memory that is out is an error, or what was there, and never anything else.
#[test]
fn a_debugger_sees_what_is_there_or_an_error() {
    let test = "a_debugger_sees_what_is_there_or_an_error";
    if !can_serve(test) {
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &[]);
    let mut client = start(&place);
    let pid = client.pid();
    let says = client.says("where").unwrap();
    let mut words = says.split(' ').map(|word| word.parse::<u64>().unwrap());
    let (at, due) = (words.next().unwrap(), words.next().unwrap());
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let seen = || {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, at).is_ok().then(|| u64::from_ne_bytes(bytes))
    };
    assert_eq!(seen(), Some(due));
    for _ in 0..5 {
        assert!(evict(&daemon.control, pid).moved_bytes > 0);
        assert!(seen().is_none_or(|seen| seen == due));
        let _: Restored = daemon.operator().ask(Request::Restore { pid }).unwrap();
        assert_eq!(seen(), Some(due));
    }
    let debugger = || {
        let mut gdb = Command::new("gdb");
        gdb.args([
            "-batch",
            "-nx",
            "-p",
            &pid.to_string(),
            "-ex",
            "info threads",
            "-ex",
            &format!("x/gx {at}"),
        ]);
        gdb.stdin(Stdio::null()).stderr(Stdio::null()).output()
    };
    if debugger().is_err() {
        println!("SKIPPED {test}, in part: there is no gdb");
    } else {
        for _ in 0..3 {
            let control = daemon.control.clone();
            // It stops the agent, too, in the middle of a move as it may be.
            let evicting = std::thread::spawn(move || evict(&control, pid));
            let output = debugger().unwrap();
            evicting.join().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // What it can't read it says elsewhere.
            let seen = said.lines().find_map(|line| line.strip_prefix(&format!("{at:#x}:\t")));
            assert!(
                seen.is_none_or(|seen| !seen.starts_with("0x") || seen == format!("{due:#018x}")),
                "{said}"
            );
            client.ask("step");
            client.ask("check");
        }
    }
    assert!(client.end().success());
    daemon.end();
}

/// Nothing is told by clocks but how long something took, by each process's own: a program whose clocks are weeks ahead is served as any other.
#[test]
fn a_program_whose_clocks_are_weeks_ahead_is_served() {
    let test = "a_program_whose_clocks_are_weeks_ahead_is_served";
    if !can_serve(test) {
        return;
    }
    let ahead = ["--time", "--fork", "--kill-child", "--monotonic", "3000000", "--boottime", "3000000"];
    let works = Command::new("unshare").args(ahead).arg("true").stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        println!("SKIPPED {test}: unshare(1) can't make a time namespace here");
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &["--limit", "4M"]);
    let inner = patient::command(&place.at("s"), "extended");
    let mut command = Command::new("unshare");
    command.args(ahead).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut client = Talk::start(&mut command);
    client.expect_line_of_tests("ready");
    until("it is held to the limit", || (daemon.status().totals.pages_out > 2048).then_some(()));
    for _ in 0..3 {
        client.ask("step");
        client.ask("check");
    }
    assert!(client.end().success());
    daemon.end();
}

/// Each look at them once took as long as they are many, squared.
#[test]
fn a_program_of_very_many_mappings_has_them_all_out_and_in() {
    let test = "a_program_of_very_many_mappings_has_them_all_out_and_in";
    let Some((place, filler)) = with_filler(test) else { return };
    let mut daemon = Daemon::start(&place, &[]);
    let served = place.at("s");
    let mut client = Talk::start(&mut place.userswap(&["run", "-q", "--daemon", &served, "--", &filler]));
    client.expect("ready");
    client.ask("scatter");
    let of_most = |status: &Status| {
        status.clients.iter().max_by_key(|client| client.resident_bytes).map(|most| most.pid)
    };
    let pid = of_most(&daemon.status()).unwrap();
    let evicted = evict(&daemon.control, pid);
    // A page of each; fewer than that may be had where the machine lets programs have more.
    assert!(evicted.moved_bytes >= 25_000 * 4096, "{evicted:?}");
    client.ask("gather");
    assert!(client.end().success());
    daemon.end();
}
