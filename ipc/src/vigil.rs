//! A daemon that is gone for good: what it had moved out stays out, and whoever touches that would wait for ever.
//!
//! A connection that was closed says nothing yet: the daemon may go on serving faults, or have brought everything back before. What it says is
//! where to look: at the process that listens, which is there as long as anybody serves. Once that has ended, too, the program is left
//! waiting for a while, in which somebody may look at it. Then it is ended, if a thread of it waits for memory, or as soon as one does. A program that
//! has all it needs runs on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::sys;
use crate::transport::Connection;

/// What is left of a daemon, watched by a thread of its own: the agent's may itself wait, for an event that nobody reads. Nothing here allocates once it is made: the
/// allocator's memory may be out.
#[derive(Debug)]
pub(crate) struct Vigil {
    connection: Arc<Connection>,
    daemon: OwnedFd,
    waiting: File,
    uffd: OwnedFd,
    patience: Duration,
    over: Arc<OwnedFd>,
}

/// Ends a [`Vigil`].
#[derive(Clone, Debug)]
pub(crate) struct Over(Arc<OwnedFd>);

impl Over {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(crate) fn set(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Vigil {
    /// Over the connection of a client with this userfaultfd.
    ///
    /// # Errors
    /// What of it can't be had.
    pub(crate) fn new(
        connection: &Arc<Connection>,
        uffd: &OwnedFd,
        patience: Duration,
        over: &Over,
    ) -> io::Result<Self> {
        let daemon = sys::peer_pidfd(connection.as_fd())?;
        let waiting = File::open(format!("/proc/self/fdinfo/{}", uffd.as_raw_fd()))?;
        let (connection, over) = (Arc::clone(connection), Arc::clone(&over.0));
        Ok(Self { connection, daemon, waiting, uffd: uffd.try_clone()?, patience, over })
    }

    /// Watches until it is over.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn start(self) -> io::Result<()> {
        let spawn = || std::thread::Builder::new().name("userswap-vigil".into()).stack_size(64 * 1024);
        // As the agent's: no handler of the program's runs on it.
        sys::with_signals_blocked(|| spawn().spawn(move || self.keep()))?.map(drop)
    }

    fn keep(&self) {
        // A worker whose keeper has died brings everything back, and keeps the connection meanwhile.
        if self.wait(Some((self.daemon.as_fd(), PollFlags::IN)), None) == Came::Over
            || self.wait(Some((self.connection.as_fd(), PollFlags::RDHUP)), None) == Came::Over
            || self.wait(None, Some(self.patience)) == Came::Over
        {
            return;
        }
        // Readable as long as there is a fault or an event that nobody has read.
        if self.somebody_waits() || self.wait(Some((self.uffd.as_fd(), PollFlags::IN)), None) == Came::Watched
        {
            self.end();
        }
    }

    fn wait(&self, watched: Option<(BorrowedFd<'_>, PollFlags)>, time: Option<Duration>) -> Came {
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        loop {
            let (other, events) = watched.unwrap_or((self.over.as_fd(), PollFlags::IN));
            let mut fds = [PollFd::new(&*self.over, PollFlags::IN), PollFd::from_borrowed_fd(other, events)];
            let came = rustix::event::poll(&mut fds, time.as_ref());
            let [over, seen] = [(&fds[0], PollFlags::IN), (&fds[1], events)]
                .map(|(fd, events)| fd.revents().intersects(events));
            match came {
                Ok(0) => return Came::Nothing,
                Ok(_) if over => return Came::Over,
                Ok(_) if seen => return Came::Watched,
                // Something is wrong with what is watched, so nothing will be known.
                Ok(_) => return Came::Over,
                Err(_) => {}
            }
        }
    }

    /// Whether a thread waits for memory. The daemon may have read of it before it ended.
    fn somebody_waits(&self) -> bool {
        let mut text = [0_u8; 512];
        let read = rustix::io::pread(&self.waiting, &mut text, 0).unwrap_or(0);
        let text = std::str::from_utf8(text.get(..read).unwrap_or_default()).unwrap_or_default();
        let total = text.lines().find_map(|line| line.strip_prefix("total:"));
        total.is_some_and(|total| total.trim() != "0")
    }

    fn end(&self) -> ! {
        let mut text = [0_u8; 160];
        let mut rest = text.as_mut_slice();
        let _ = writeln!(
            rest,
            "userswap: the daemon that has memory of process {} is gone; after waiting for {} s the process is ended",
            std::process::id(),
            self.patience.as_secs()
        );
        let left = rest.len();
        let len = text.len() - left;
        // Whoever should read it may not. Not by the standard library: its lock may be held by a thread that waits.
        let errors = rustix::stdio::stderr();
        let second = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let mut room = [PollFd::from_borrowed_fd(errors, PollFlags::OUT)];
        if rustix::event::poll(&mut room, Some(&second)) == Ok(1) {
            let _ = rustix::io::write(errors, text.get(..len).unwrap_or_default());
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
        std::process::abort()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    Over,
    Watched,
    Nothing,
}
