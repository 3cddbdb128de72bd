//! The program under test, directories that go away, and waiting.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The program.
pub(crate) const USERSWAP: &str = env!("CARGO_BIN_EXE_userswap");

/// Somewhere to work, with a directory for temporary files of its own, where nothing may be left behind.
pub(crate) struct Place {
    root: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("us-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(root.join("temporary")).unwrap();
        Self { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// As text, for arguments.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A command whose temporary files go here.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("TMPDIR", self.root.join("temporary")).env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// The program with arguments.
    pub(crate) fn userswap(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(USERSWAP);
        command.args(arguments);
        command
    }

    /// Runs it to its end.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.userswap(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Nothing is left of what was made for a run.
    pub(crate) fn assert_clean(&self) {
        let left: Vec<PathBuf> = std::fs::read_dir(self.root.join("temporary"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A process that is talked with by lines; killed when dropped.
pub(crate) struct Talk {
    pub(crate) child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Talk {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn expect(&mut self, line: &str) {
        let mut said = String::new();
        self.read(&mut said);
        assert_eq!(said.trim_end(), line);
    }

    /// As [`expect`](Self::expect), after whatever a test program says at its start.
    pub(crate) fn expect_line_of_tests(&mut self, line: &str) {
        loop {
            let mut said = String::new();
            self.read(&mut said);
            assert!(!said.is_empty(), "it ended without {line}");
            if said.trim_end() == line {
                return;
            }
        }
    }

    /// The next line. A broken program may not say anything any more, which is to fail and not to hang.
    pub(crate) fn read(&mut self, line: &mut String) {
        loop {
            self.read_any(line);
            // What the harness says of a program that is a test and takes a minute.
            if !line.contains(" has been running for over ") {
                return;
            }
            line.clear();
        }
    }

    fn read_any(&mut self, line: &mut String) {
        if self.lines.buffer().is_empty() {
            let mut says = [PollFd::new(self.lines.get_ref(), PollFlags::IN)];
            let limit = Timespec { tv_sec: 300, tv_nsec: 0 };
            assert_ne!(
                rustix::event::poll(&mut says, Some(&limit)),
                Ok(0),
                "it has said nothing for {} s",
                limit.tv_sec
            );
        }
        self.lines.read_line(line).unwrap();
    }

    /// Says a word, and waits for its answer.
    pub(crate) fn ask(&mut self, word: &str) {
        assert_eq!(self.says(word), Some(format!("{word}ed")));
    }

    /// What it says to a word; `None` if it ends instead.
    pub(crate) fn says(&mut self, word: &str) -> Option<String> {
        let to = self.child.stdin.as_mut().unwrap();
        writeln!(to, "{word}").unwrap();
        to.flush().unwrap();
        let mut said = String::new();
        self.read(&mut said);
        said.truncate(said.trim_end().len());
        (!said.is_empty()).then_some(said)
    }

    /// Ends its input and waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies the program. By a process of its own: a file that this one has open for writing is so in what other tests' threads are just forking, and
/// can't be executed until they have.
pub(crate) fn copy_program(to: &Path) {
    assert!(Command::new("cp").arg(USERSWAP).arg(to).status().unwrap().success());
}

/// What `ctl --json` answers.
pub(crate) fn ask(place: &Place, words: &[&str]) -> serde_json::Value {
    let output = place.output(&[&["ctl", "--json", "--control", &place.at("c")][..], words].concat());
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Sends a signal by its name.
pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

/// Waits until something is so; it is taken for never after a minute, which only a broken program takes.
pub(crate) fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The state of a process, such as `S` or `T`.
pub(crate) fn state(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().next().map(str::to_owned)
}

/// Whether programs can be served here; says that the test is skipped if not.
pub(crate) fn can_serve(test: &str) -> bool {
    let doctor = Command::new(USERSWAP).arg("doctor").output().unwrap();
    if !text(&doctor.stdout).contains("run and daemon: works here") {
        println!("SKIPPED {test}: this kernel or user can't serve programs, see userswap doctor");
        return false;
    }
    true
}

/// Somewhere to work and the filler in it, compiled; says that the test is skipped if it can't be, or can't be served here.
pub(crate) fn with_filler(test: &str) -> Option<(Place, String)> {
    let place = Place::new();
    if crate::filler::build(&place.path("filler"), &[]).is_none() {
        println!("SKIPPED {test}: there is no C compiler");
        return None;
    }
    let filler = place.at("filler");
    can_serve(test).then_some((place, filler))
}

pub(crate) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
