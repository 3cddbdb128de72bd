//! Child processes: this program again, in a [`Role`], told what to do line by line.

use crate::error::Error;
use crate::subject::{self, MovedOut, Reply, Request, Role, StageTimes, Touched, Touches};
use crate::zram;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A child process. Ended, and waited for, when dropped.
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    requests: Option<ChildStdin>,
    replies: Receiver<std::io::Result<String>>,
    patience: Duration,
}

/// How long a child may take for an answer. Far more than any pass takes, for a page that never comes back is one of the
/// results there can be.
const PATIENCE: Duration = Duration::from_secs(180);

impl Child {
    /// Starts one. It has answered [`Reply::Ready`] then, or what the second value says.
    pub(crate) fn start(name: &str, role: &Role) -> Result<(Self, Reply), Error> {
        let program = std::env::current_exe().map_err(Error::io("finding this program"))?;
        let mut command = Command::new(program);
        command.arg("child").arg(serde_json::to_string(role)?).stdin(Stdio::piped()).stdout(Stdio::piped());
        if matches!(role, Role::Zram { .. } | Role::Daemon { .. }) {
            // Who has something to put back must not be ended by the key that ends this program; it ends when we do.
            command.process_group(0);
        }
        let mut process = command.spawn().map_err(Error::io(format!("starting {name}")))?;
        let requests = process.stdin.take();
        let (send, replies) = channel();
        if let Some(lines) = process.stdout.take() {
            // Ends with the child's output.
            std::thread::spawn(move || {
                BufReader::new(lines).lines().try_for_each(|line| send.send(line).ok())
            });
        }
        let mut child = Self { name: name.to_owned(), process, requests, replies, patience: PATIENCE };
        let first = child.reply()?;
        Ok((child, first))
    }

    /// Has every page moved out: its own, or its client's.
    pub(crate) fn move_out(&mut self) -> Result<MovedOut, Error> {
        match self.ask(Request::MoveOut)? {
            Reply::MovedOut(moved) => Ok(moved),
            other => Err(self.failed(format!("answered {other:?} to a move-out"))),
        }
    }

    /// Has pages touched.
    pub(crate) fn touch(&mut self, touches: Touches) -> Result<Touched, Error> {
        match self.ask(Request::Touch(touches))? {
            Reply::Touched(touched) => Ok(touched),
            other => Err(self.failed(format!("answered {other:?} to touches"))),
        }
    }

    /// How long the stages of faults took, if that is measured there.
    pub(crate) fn stages(&mut self) -> Result<Option<StageTimes>, Error> {
        match self.ask(Request::Stages)? {
            Reply::Stages(stages) => Ok(stages),
            other => Err(self.failed(format!("answered {other:?} to a question about stages"))),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        let line = serde_json::to_string(&request)? + "\n";
        if let Some(requests) = &mut self.requests {
            requests.write_all(line.as_bytes()).map_err(Error::io(format!("talking to {}", self.name)))?;
        }
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply, Error> {
        match self.replies.recv_timeout(self.patience) {
            Ok(Ok(line)) => match serde_json::from_str(&line)? {
                Reply::Failed(reason) => Err(self.failed(reason)),
                reply => Ok(reply),
            },
            Ok(Err(error)) => Err(Error::io(format!("listening to {}", self.name))(error)),
            Err(RecvTimeoutError::Timeout) => {
                let waited = self.patience.as_secs();
                Err(self.failed(format!("no answer in {waited} s; a page may never have come back")))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.process.wait().map_err(Error::io("waiting for a child"))?;
                Err(self.failed(format!("ended: {status}")))
            }
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Child { who: self.name.clone(), reason }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It ends when its input does.
        self.requests = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.process.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        eprintln!("{} doesn't end; it is killed", self.name);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other end: what runs in the child.
pub(crate) fn serve(role: &str) -> Result<(), Error> {
    let role: Role = serde_json::from_str(role)?;
    if let Role::Zram { bytes } = role {
        return zram::serve(bytes);
    }
    let mut subject = match subject::make(&role) {
        Ok(subject) => subject,
        Err(error) => return say(&Reply::Failed(error.chain())),
    };
    say(&Reply::Ready)?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(Error::io("listening to the benchmark"))?;
        let request = serde_json::from_str(&line)?;
        let reply = subject.answer(request);
        say(&reply.unwrap_or_else(|error| Reply::Failed(error.chain())))?;
    }
    Ok(())
}

/// Answers.
pub(crate) fn say(reply: &Reply) -> Result<(), Error> {
    let line = serde_json::to_string(reply)? + "\n";
    let mut output = std::io::stdout().lock();
    output
        .write_all(line.as_bytes())
        .and_then(|()| output.flush())
        .map_err(Error::io("answering the benchmark"))
}
