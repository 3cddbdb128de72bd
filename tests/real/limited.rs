//! A program by itself, and the same under a limit while its memory is moved out again and again.

use crate::support::{Place, can_serve, json, text};
use crate::watch::Watchdog;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where a real program is tried.
pub(crate) struct Trial {
    pub(crate) place: Place,
    pub(crate) watch: Watchdog,
    /// What memory goes to and comes from; empty for the usual.
    store: String,
}

impl Trial {
    /// `None`, having said why, where nothing can be served or one of the programs isn't there.
    pub(crate) fn new(test: &'static str, programs: &[&str]) -> Option<Self> {
        if !can_serve(test) {
            return None;
        }
        if let Some(missing) = programs.iter().find(|program| find(program).is_none()) {
            println!("SKIPPED {test}: there is no {missing}");
            return None;
        }
        Some(Self { place: Place::new(), watch: Watchdog::new(test), store: String::new() })
    }

    /// The same, from and to this store, `{}` in which is the place's directory.
    pub(crate) fn from(self, store: &str) -> Self {
        Self { store: store.replace("{}", &self.place.at("")), ..self }
    }

    /// A command in this place's directory.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.place.command(words[0]);
        command.args(&words[1..]).current_dir(self.place.path("")).stdin(Stdio::null());
        command
    }

    /// Runs it by itself.
    pub(crate) fn alone(&self, words: &[&str]) -> Output {
        let child = self.watch.start(self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()));
        child.wait_with_output().unwrap()
    }

    /// `userswap run` with a limit, a control socket, a report, and the command.
    pub(crate) fn managed(&self, limit: &str, words: &[&str]) -> Command {
        let (control, report) = (self.place.at("control"), self.place.at("report"));
        let mut all = vec![crate::support::USERSWAP, "run", "-q", "--control", &control, "--report", &report];
        if !limit.is_empty() {
            all.extend(["--limit", limit]);
        }
        if !self.store.is_empty() {
            all.extend(["--store", &self.store]);
        }
        all.push("--");
        all.extend(words);
        self.command(&all)
    }

    /// Runs it under a limit.
    pub(crate) fn limited(&self, limit: &str, words: &[&str]) -> (Output, Report) {
        let mut command = self.managed(limit, words);
        let child = self.watch.start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().unwrap();
        (output, self.report())
    }

    /// Runs it without a limit, all its memory moved out again and again, with a pause between.
    pub(crate) fn harried(&self, pause: Duration, words: &[&str]) -> (Output, Report) {
        let harrier = Harrier::start(self.place.path("control"), pause);
        let done = self.limited("", words);
        harrier.stop();
        done
    }

    /// Runs it by itself and under a limit, to the same end.
    #[track_caller]
    pub(crate) fn same(&self, limit: &str, words: &[&str]) -> Report {
        let alone = self.alone(words);
        assert!(alone.status.success(), "by itself: {alone:?}");
        let (output, report) = self.limited(limit, words);
        assert_same(&alone, &output);
        report.assert_sound();
        report
    }

    pub(crate) fn report(&self) -> Report {
        Report(json(&self.place.path("report")))
    }
}

/// To the byte; if not, the first line that differs is told.
#[track_caller]
pub(crate) fn assert_same(alone: &Output, output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status, alone.status, "{said}");
    if output.stdout != alone.stdout {
        let (one, other) = (String::from_utf8_lossy(&alone.stdout), String::from_utf8_lossy(&output.stdout));
        let line = one.lines().zip(other.lines()).find(|(one, other)| one != other);
        panic!("it says something else: {line:?}, {} and {} bytes", one.len(), other.len());
    }
}

/// A run's report.
pub(crate) struct Report(pub(crate) Value);

impl Report {
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no {key} in {}", self.0))
    }

    /// Memory went out and came back, and none was lost.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        assert_eq!(self.number("poisoned_pages"), 0, "{}", self.0);
        assert!(self.number("pages_out") > 0 && self.number("pages_in") > 0, "{}", self.0);
    }
}

/// Without rest, but for a program to take a few steps between.
pub(crate) const ALL_THE_TIME: Duration = Duration::from_millis(1);

/// So that programs that start up again and again get there.
pub(crate) const NOW_AND_THEN: Duration = Duration::from_millis(50);

/// Moves everything of every client out, again and again.
pub(crate) struct Harrier {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Harrier {
    /// By a control socket that is there or will be.
    pub(crate) fn start(control: PathBuf, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // It isn't there yet, or not any more.
                if harry(&control, pause, &stopped).is_none() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn harry(control: &Path, pause: Duration, stopped: &AtomicBool) -> Option<()> {
    let mut control = Control::open(control)?;
    while !stopped.load(Ordering::Relaxed) {
        for client in control.ask(r#"{"do":"clients"}"#)?.as_array()? {
            if let Some(pid) = client["pid"].as_u64().filter(|pid| *pid != 0) {
                // A client may have ended meanwhile.
                control.ask(&format!(r#"{{"do":"evict","pid":{pid}}}"#))?;
            }
        }
        std::thread::sleep(pause);
    }
    Some(())
}

/// A connection to a control socket.
pub(crate) struct Control {
    socket: BufReader<UnixStream>,
}

impl Control {
    pub(crate) fn open(path: &Path) -> Option<Self> {
        Some(Self { socket: BufReader::new(UnixStream::connect(path).ok()?) })
    }

    /// What is answered, null for a refusal; `None` once nobody answers.
    pub(crate) fn ask(&mut self, request: &str) -> Option<Value> {
        writeln!(self.socket.get_mut(), "{request}").ok()?;
        let mut line = String::new();
        self.socket.read_line(&mut line).ok()?;
        let answer: Value = serde_json::from_str(&line).ok()?;
        Some(answer["ok"].clone())
    }
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// The program behind `python3`, which may be a script that looks for it.
pub(crate) fn python(trial: &Trial) -> String {
    let output = trial.alone(&["python3", "-c", "import sys; print(sys.executable)"]);
    text(&output.stdout).trim_end().to_owned()
}

/// A file of these tests.
pub(crate) fn source(name: &str) -> String {
    format!("{}/tests/real/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Compiles one of the C programs of these tests; says that the test is skipped if it can't be.
pub(crate) fn compiled(trial: &Trial, test: &str, name: &str) -> Option<String> {
    let to = trial.place.at(name);
    let output =
        trial.alone(&["cc", "-O1", "-g", "-pthread", "-Wall", &source(&format!("{name}.c")), "-o", &to]);
    if !output.status.success() {
        println!("SKIPPED {test}: {name}.c can't be compiled: {}", text(&output.stderr));
        return None;
    }
    Some(to)
}
