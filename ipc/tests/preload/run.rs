//! Running a program under the shared object.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use userswap_preload::socket_value;
use userswap_uffd::{Features, OpenMode, RawUffd, Span};

use crate::daemon::Daemon;
use crate::space::FEATURES;

/// The shared object and the compiled programs, in a directory that goes when this does.
pub(crate) struct Bench {
    directory: PathBuf,
}

impl Bench {
    /// Or why nothing can be tried here.
    pub(crate) fn new() -> Result<Self, String> {
        let object = userswap_preload::SHARED_OBJECT.ok_or("there is no shared object for this machine")?;
        let available = Features::available().map_err(|e| e.to_string())?;
        if !available.contains(FEATURES) {
            return Err(format!("the kernel lacks {:?}", FEATURES - available));
        }
        let granted = RawUffd::create(OpenMode::Auto).and_then(|raw| raw.handshake(FEATURES));
        let granted = granted.map_err(|e| e.to_string())?.features();
        if !granted.contains(FEATURES) {
            return Err("no privilege to be told of forks: CAP_SYS_PTRACE".into());
        }
        let directory = std::env::temp_dir().join(format!("userswap-preload-{}", std::process::id()));
        fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        let bench = Self { directory };
        fs::write(bench.object(), object).map_err(|e| e.to_string())?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/preload/program.c");
        let compiler =
            Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(bench.program()).arg(source).status();
        match compiler {
            Ok(status) if status.success() => Ok(bench),
            Ok(status) => Err(format!("cc: {status}")),
            Err(e) => Err(format!("cc: {e}")),
        }
    }

    pub(crate) fn object(&self) -> PathBuf {
        self.directory.join("libuserswap_preload.so")
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a mode of the test's program to its end, moving out what it says.
    pub(crate) fn run(&self, daemon: &Daemon, args: &[&str]) -> Ran {
        let program = self.program();
        let mut command = Command::new(program);
        command.args(args);
        self.run_command(daemon, command)
    }

    /// The same for any command.
    pub(crate) fn run_command(&self, daemon: &Daemon, mut command: Command) -> Ran {
        command.env("LD_PRELOAD", self.object()).env("USERSWAP_SOCKET", socket_value(&daemon.address));
        follow(daemon, command)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What became of a program.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    /// What it said but for what was for the test.
    pub(crate) output: Vec<String>,
    /// What was moved out each time it asked.
    pub(crate) fills: Vec<Fill>,
}

/// A range a process had moved out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) pid: u32,
    pub(crate) pages: u64,
    pub(crate) moved: u64,
    pub(crate) by_child: bool,
}

impl Ran {
    /// It ended well and said nothing.
    pub(crate) fn succeeded(&self) {
        assert!(self.status.success() && self.output.is_empty(), "{self:?}");
    }

    /// So often it asked, and all of it was moved each time.
    pub(crate) fn moved_all(&self, times: usize) {
        assert_eq!(self.fills.len(), times, "{self:?}");
        assert!(self.fills.iter().all(|fill| fill.moved == fill.pages), "{self:?}");
    }
}

/// A program that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(60);

fn follow(daemon: &Daemon, mut command: Command) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let pid = Pid::from_child(&child);
    let (ended, is_ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The child isn't waited for before this has ended: the number is its own still.
            if is_ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a program hangs and is killed");
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        });
        let (mut said, mut fills) = (Vec::new(), Vec::new());
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            match answer(daemon, &line) {
                Some(fill) => {
                    fills.extend(fill);
                    let _ = input.write_all(b"\n");
                }
                None => said.push(line),
            }
        }
        let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), exited).unwrap();
        ended.send(()).unwrap();
        Ran { status: child.wait().unwrap(), output: said, fills }
    })
}

/// Does what a line asks for; `None` if it is for people.
fn answer(daemon: &Daemon, line: &str) -> Option<Option<Fill>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[what, at, len, pid] = words.as_slice() else { return None };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (span, pid) = (Span::new(hex(at)?, hex(len)?).ok()?, pid.parse().ok()?);
    match what {
        "fill" => {
            let moved = daemon.move_out(pid, span);
            Some(Some(Fill { pid, pages: span.pages(), moved, by_child: daemon.is_child(pid) }))
        }
        "excluded" => {
            assert_eq!(daemon.out_in(pid, span), 0, "all of it is back");
            assert!(daemon.is_excluded(pid, span.start()) && daemon.is_excluded(pid, span.end() - 1));
            assert_eq!(daemon.move_out(pid, span), 0, "and stays");
            Some(None)
        }
        _ => None,
    }
}

impl Bench {
    /// Runs a command that sees to the environment itself.
    pub(crate) fn run_plain(&self, daemon: &Daemon, command: Command) -> Ran {
        follow(daemon, command)
    }
}

/// A program whose daemon goes while memory is out: it waits when it touches that, and never reads zeros.
pub(crate) fn orphaned(bench: &Bench) {
    let daemon = Daemon::start();
    let mut command = Command::new(bench.program());
    command
        .arg("data")
        .env("LD_PRELOAD", bench.object())
        .env("USERSWAP_SOCKET", socket_value(&daemon.address));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(output).lines();
    let fill = answer(&daemon, &lines.next().unwrap().unwrap()).unwrap().unwrap();
    assert_eq!(fill.moved, fill.pages);
    daemon.vanish(fill.pid);
    input.write_all(b"\n").unwrap();
    // It must be seen to wait: in the kernel, for a page that nobody brings.
    let stack = format!("/proc/{}/wchan", fill.pid);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&stack).unwrap().contains("userfault") {
        assert!(child.try_wait().unwrap().is_none(), "it read something");
        assert!(std::time::Instant::now() < deadline, "it never touched its memory");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it waits still");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines.map_while(Result::ok).next().is_none(), "it said something");
}
