//! A daemon that is gone for good: what it had moved out stays out, and whoever touches that would wait for ever.
//!
//! A connection that was closed says nothing yet: the daemon may go on serving faults, or have brought everything back before. What it says is
//! where to look: at the process that listens, which is there as long as anybody serves. Once that has ended, too, the program is left
//! waiting for a while, in which somebody may look at it. Then it is ended, if a thread of it waits for memory, or as soon as one does. A program that
//! has all it needs runs on.

use core::ffi::CStr;

use crate::setup::Lifeline;
use crate::start::number_behind;
use crate::sys::{self, Fd, PollFd};

/// Watches over what is left of a daemon.
pub(crate) struct Vigil {
    line: Lifeline,
    waiting: Option<Fd>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// There is a connection, or nothing that could be found out without one.
    Idle,
    /// There is none, and the process that listens hasn't ended.
    Served,
    /// It has. Until then, in nanoseconds of the clock, the program is let wait.
    Left(u64),
    /// Nobody waited when that was over.
    Doomed,
}

impl Vigil {
    /// Nothing to watch yet. `uffd` is the program's.
    pub(crate) fn new(line: Lifeline, uffd: &Fd) -> Self {
        Self { line, waiting: fdinfo(uffd), stage: Stage::Idle }
    }

    /// The connection is gone.
    pub(crate) fn begin(&mut self) {
        if let (Stage::Idle, Some(_), 1..) = (self.stage, &self.line.daemon, self.line.patience) {
            self.stage = Stage::Served;
        }
    }

    /// What to wait for until [`Vigil::look`] is to be called.
    pub(crate) fn watched<'a>(&'a self, uffd: &'a Fd) -> Option<&'a Fd> {
        match self.stage {
            Stage::Idle | Stage::Left(_) => None,
            Stage::Served => self.line.daemon.as_ref(),
            // Readable as long as there is a fault or an event that nobody has read.
            Stage::Doomed => Some(uffd),
        }
    }

    /// After how many nanoseconds [`Vigil::look`] is to be called, if nothing comes before.
    pub(crate) fn time(&self) -> Option<u64> {
        match self.stage {
            Stage::Left(until) => Some(until.saturating_sub(sys::now())),
            _ => None,
        }
    }

    /// Takes note of what came: `seen` on what was watched. Doesn't return if the program is to be ended.
    pub(crate) fn look(&mut self, seen: bool, uffd: &Fd) {
        match self.stage {
            Stage::Served if seen => self.stage = Stage::Left(sys::now().saturating_add(self.line.patience)),
            Stage::Left(until) if sys::now() >= until => {
                if self.somebody_waits(uffd) {
                    self.end();
                }
                self.stage = Stage::Doomed;
            }
            Stage::Doomed if seen => self.end(),
            _ => {}
        }
    }

    /// Whether a thread waits for memory, or for an event to be read. The daemon may have read of the first before it ended.
    fn somebody_waits(&self, uffd: &Fd) -> bool {
        let mut text = [0_u8; 512];
        let read = self.waiting.as_ref().and_then(|file| sys::read_at(file, &mut text, 0).ok()).unwrap_or(0);
        let threads = number_behind(text.get(..read).unwrap_or_default(), b"\ntotal:\t");
        let mut unread = [PollFd::readable(Some(uffd))];
        threads > 0 || sys::poll(&mut unread, Some(0)).is_ok() && unread.iter().any(|fd| fd.has_come())
    }

    fn end(&self) -> ! {
        let mut text = Line::default();
        text.push(b"userswap: the daemon that has memory of process ");
        text.push_number(sys::getpid().into());
        text.push(b" is gone; after waiting for ");
        text.push_number(self.line.patience / 1_000_000_000);
        text.push(b" s the process is ended\n");
        if let Ok(errors) = sys::of_program(2) {
            // Whoever should read it may not.
            if matches!(sys::poll(&mut [PollFd::writable(&errors)], Some(100_000_000)), Ok(1..)) {
                let _ = sys::write(&errors, text.bytes());
            }
        }
        sys::kill_process()
    }
}

/// Where the kernel says how many threads wait on a userfaultfd.
fn fdinfo(uffd: &Fd) -> Option<Fd> {
    let mut path = Line::default();
    path.push(b"/proc/thread-self/fdinfo/");
    path.push_number(uffd.number().unsigned_abs().into());
    path.push(b"\0");
    // SAFETY: the text is much shorter than there is room, and ends in a 0.
    sys::open(unsafe { CStr::from_ptr(path.bytes.as_ptr().cast()) }, 0).ok()
}

/// A short text.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 160], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u64) {
        let mut digits = [0_u8; 20];
        let (mut rest, mut first) = (number, digits.len());
        for (at, place) in digits.iter_mut().enumerate().rev() {
            *place = b'0' + (rest % 10) as u8;
            (rest, first) = (rest / 10, at);
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(first..).unwrap_or_default());
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
