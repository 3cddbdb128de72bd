//! Other processes for the tests: the program `part`, in the part of a client.

use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// A directory that goes away again.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("userswap-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of the socket here.
    pub(crate) fn socket(&self) -> String {
        self.path("sock").to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that plays a part; killed when dropped.
pub(crate) struct Part {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// Starts a process that plays `part`.
pub(crate) fn start(part: &str, arguments: &[&str]) -> Part {
    let mut child = Command::new(env!("CARGO_BIN_EXE_part"))
        .arg(part)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let to = child.stdin.take().unwrap();
    let from = BufReader::new(child.stdout.take().unwrap());
    Part { child, to, from }
}

impl Part {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn say(&mut self, word: &str) {
        // In one piece: a child that needs no more than the first byte may be gone before a second.
        self.to.write_all(format!("{word}\n").as_bytes()).unwrap();
    }

    /// The next line it prints.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next line it prints must be this.
    pub(crate) fn expect(&mut self, word: &str) {
        assert_eq!(self.hear(), word);
    }

    /// The same, unless it says that this machine lacks something, which is said on.
    pub(crate) fn skipped_or(&mut self, word: &str) -> bool {
        let line = self.hear();
        if line.starts_with("SKIPPED") {
            println!("{line}");
            return true;
        }
        assert_eq!(line, word);
        false
    }

    /// Tells it something, and what it answers must be this.
    pub(crate) fn ask(&mut self, question: &str, answer: &str) {
        self.say(question);
        self.expect(answer);
    }

    pub(crate) fn wait(&mut self) {
        let status = self.end();
        assert!(status.success(), "{status}");
    }

    /// How it ended, once it has.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Stops it, or has it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
