//! Signals for a process that has a command under it.
//!
//! They are taken one by one from a descriptor instead of interrupting anything. Who sent one matters: what the terminal sends goes to the
//! whole foreground group, the command included, and must not reach it twice.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The signals that are taken. All threads started from now on leave them to it.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

/// One signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub number: i32,
    /// A process sent it, and not the kernel on behalf of the terminal.
    pub sent: bool,
}

impl Arrived {
    /// Whether it asks a program to end.
    pub fn asks_to_end(self) -> bool {
        matches!(self.number, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT)
    }

    /// Whether it asks a daemon to go on as what its program is now.
    pub fn asks_to_upgrade(self) -> bool {
        self.number == libc::SIGUSR2
    }

    /// Whether it asks a program to stop until it is told to go on.
    pub fn asks_to_stop(self) -> bool {
        matches!(self.number, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
    }
}

/// What is taken: what asks a command to end or stop or go on, what it may be told by others, and news of it.
const TAKEN: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGCHLD,
];

impl Signals {
    /// Takes signals from now on, in this thread and those it starts. To be called before there are others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: needed because no safe crate has signalfd. sigemptyset fills the set in before anything reads it, the numbers are
        // signals, and pthread_sigmask fills `before` in when it returns 0.
        let before = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in TAKEN {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) {
                0 => before.assume_init(),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        };
        // SAFETY: the set is filled in; the descriptor is new and nobody else's.
        let fd = unsafe {
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self { fd, before })
    }

    /// The next signal that came, if one did.
    pub fn next(&self) -> Option<Arrived> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: needed for the same reason. The kernel writes at most `size` bytes to a buffer of that size.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        // SAFETY: it was zeroed, and is numbers only.
        let info = unsafe { info.assume_init() };
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(Arrived {
            number,
            sent: matches!(info.ssi_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL),
        })
    }

    /// Has a command get its signals as this process did before.
    pub fn give_back_in(&self, command: &mut Command) {
        let before = self.before;
        // SAFETY: needed because a child inherits what is blocked. The closure runs between fork and exec and does one
        // async-signal-safe call on memory of its own.
        unsafe {
            command.pre_exec(move || {
                match libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error)),
                }
            });
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Has a command enter a group by writing to its `door` before it runs.
pub fn enter(command: &mut Command, door: OwnedFd) {
    // SAFETY: needed because only the child itself can do it before its first page. The closure runs between fork and exec and does
    // one write, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || rustix::io::write(&door, b"0").map(drop).map_err(io::Error::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_its_signals_as_they_were() {
        // In a thread of its own: what is blocked there is blocked nowhere else.
        std::thread::spawn(|| {
            let own = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let before = blocked(&own()).to_owned();
            let signals = Signals::take().unwrap();
            assert_ne!(blocked(&own()), before);
            let mut child = Command::new("cat");
            child.arg("/proc/self/status");
            signals.give_back_in(&mut child);
            let status = String::from_utf8(child.output().unwrap().stdout).unwrap();
            assert_eq!(blocked(&status), before);
        })
        .join()
        .unwrap();
    }

    fn blocked(status: &str) -> &str {
        status.lines().find(|line| line.starts_with("SigBlk:")).unwrap()
    }
}
