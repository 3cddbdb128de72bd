//! Another process: whether it lives, what is in its memory, its descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::span::to_usize;
use crate::{Advice, Error, Pagemap, Span};

/// A process, held by its pidfd so that it can't be taken for another that got its number.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// The process that has this number now.
    pub fn open(pid: u32) -> Result<Process, Error> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Error::Gone { pid })?;
        match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Process { pid, pidfd }),
            Err(rustix::io::Errno::SRCH) => Err(Error::Gone { pid }),
            Err(e) => Err(Error::system("opening a process", e)),
        }
    }

    /// The process behind a pidfd, such as a socket's peer (SO_PEERPIDFD).
    pub fn from_pidfd(pidfd: OwnedFd) -> Result<Process, Error> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = std::fs::read_to_string(path).map_err(|e| Error::system("asking whose a pidfd is", e))?;
        let pid = pid_of_fdinfo(&info)?;
        Ok(Process { pid, pidfd })
    }

    /// This process.
    pub fn this() -> Result<Process, Error> {
        Process::open(std::process::id())
    }

    /// Its number. After its exit it may be another's: never use it to decide whether it lives.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has exited, waited for or not.
    pub fn has_exited(&self) -> Result<bool, Error> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(Error::system("polling a pidfd", e)),
        }
    }

    /// Reads its memory from `addr` into `buf`; the bytes read, fewer than asked for where readable memory ends.
    ///
    /// **Blocks** where a registered page is missing, until that fault is served: a thread that serves faults must not call it.
    pub fn read_memory(&self, addr: u64, buf: &mut [u8]) -> Result<usize, Error> {
        self.read_memory_vectored(&[(addr, buf.len() as u64)], buf)
    }

    /// Reads the pages of `span` from the process that `thread` belongs to, those that aren't there as zeros without touching them: so it
    /// doesn't block. For a process of which nothing else is known.
    pub fn read_untouched(thread: u32, span: Span, buf: &mut [u8]) -> Result<(), Error> {
        let mut entries = Vec::new();
        Pagemap::open(thread)?.entries(span, &mut entries)?;
        let page = to_usize(crate::page_bytes());
        let addrs = (span.start()..).step_by(page);
        for ((entry, bytes), addr) in entries.iter().zip(buf.chunks_exact_mut(page)).zip(addrs) {
            if !entry.present() && !entry.swapped() {
                bytes.fill(0);
                continue;
            }
            match read_through(thread, &[iovec(addr, page as u64)], bytes) {
                Ok(got) if got == page => {}
                Ok(_) => return Err(Error::Unreadable { pid: thread, addr }),
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(Error::Gone { pid: thread }),
                Err(e) => return Err(Error::system("reading another process's memory", e)),
            }
        }
        Ok(())
    }

    /// Reads several ranges, `(address, length)` each, one after the other into `buf`; the bytes read, fewer than asked for where
    /// readable memory ends. Blocks like [`Process::read_memory`].
    pub fn read_memory_vectored(&self, ranges: &[(u64, u64)], buf: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        // A call takes so many ranges and no more.
        for batch in ranges.chunks(MAX_RANGES) {
            let asked: usize = batch.iter().map(|&(_, len)| to_usize(len)).sum();
            let end = (filled + asked).min(buf.len());
            if filled == end {
                break;
            }
            let got = match self.read_batch(batch, &mut buf[filled..end]) {
                Err(Error::Unreadable { .. }) if filled > 0 => break,
                other => other?,
            };
            filled += got;
            if got < asked {
                break;
            }
        }
        Ok(filled)
    }

    /// A duplicate of its descriptor `number`. Needs ptrace permission.
    pub fn take_descriptor(&self, number: RawFd) -> Result<OwnedFd, Error> {
        match rustix::process::pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => Ok(fd),
            Err(rustix::io::Errno::SRCH) => Err(Error::Gone { pid: self.pid }),
            Err(e) => Err(Error::system("taking a descriptor of another process", e)),
        }
    }

    /// Advises the kernel of ranges of its memory; the bytes advised. The kernel takes `Cold`, `PageOut`, `WillNeed` and `Collapse` for other
    /// processes and answers `EINVAL` to the rest: nobody can drop another's memory this way.
    pub fn madvise(&self, spans: &[Span], advice: Advice) -> Result<u64, Error> {
        use std::os::fd::AsRawFd;
        let iovecs: Vec<libc::iovec> = spans.iter().map(|s| iovec(s.start(), s.len())).collect();
        // SAFETY: process_madvise reads the iovecs, which live until it returns; of this advice none that it accepts for another process
        // changes what memory holds, and for this process the destructive ones are refused just below.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.pidfd.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len(),
                non_destructive(advice)?,
                0,
            )
        };
        match u64::try_from(advised) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(self.error("advising the kernel of another process", io::Error::last_os_error())),
        }
    }

    /// Its threads.
    pub fn threads(&self) -> Result<Vec<u32>, Error> {
        let dir = format!("/proc/{}/task", self.pid);
        let entries = std::fs::read_dir(dir).map_err(|e| self.error("listing threads", e))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    /// Where the kernel writes when one of its threads exits: the head of the thread's robust list, which C libraries keep beside the
    /// thread's other structures. `None` for a thread that has none.
    pub fn robust_list(&self, thread: u32) -> Result<Option<u64>, Error> {
        let number = i32::try_from(thread).map_err(|_| Error::Gone { pid: thread })?;
        let mut head = 0usize;
        let mut len = 0usize;
        // SAFETY: needed because the C library has no wrapper. The kernel writes the two words given, which live across the call.
        let answer = unsafe { libc::syscall(libc::SYS_get_robust_list, number, &raw mut head, &raw mut len) };
        match answer {
            0 => Ok((head != 0).then_some(head as u64)),
            _ => Err(self.error("asking for a thread's robust list", io::Error::last_os_error())),
        }
    }

    fn read_batch(&self, batch: &[(u64, u64)], buf: &mut [u8]) -> Result<usize, Error> {
        let remote: Vec<libc::iovec> = batch.iter().map(|&(addr, len)| iovec(addr, len)).collect();
        match read_through(self.pid, &remote, buf) {
            Ok(got) => Ok(got),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => self.read_through_another_thread(&remote, buf),
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => {
                Err(Error::Unreadable { pid: self.pid, addr: batch.first().map_or(0, |r| r.0) })
            }
            Err(e) => Err(Error::system("reading another process's memory", e)),
        }
    }

    /// When the main thread has exited and others run on, its number finds no memory; theirs do.
    fn read_through_another_thread(&self, remote: &[libc::iovec], buf: &mut [u8]) -> Result<usize, Error> {
        for thread in self.threads().map_err(|_| Error::Gone { pid: self.pid })? {
            if thread == self.pid {
                continue;
            }
            match read_through(thread, remote, buf) {
                Ok(got) if !self.has_exited()? => return Ok(got),
                _ => {}
            }
        }
        Err(Error::Gone { pid: self.pid })
    }

    fn error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::gone_or(self.pid, doing, source)
    }
}

/// Readable once it has exited.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// What one process_vm_readv takes (`UIO_MAXIOV`).
const MAX_RANGES: usize = 1024;

fn read_through(thread: u32, remote: &[libc::iovec], buf: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let number = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
    // SAFETY: the kernel writes into buf, exclusively borrowed, no more than its length; the remote addresses are another process's
    // and are followed by the kernel only.
    let got = unsafe {
        libc::process_vm_readv(number, &raw const local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn iovec(addr: u64, len: u64) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::without_provenance_mut(to_usize(addr)), iov_len: to_usize(len) }
}

/// The advice that can be given without taking anything away from anyone.
fn non_destructive(advice: Advice) -> Result<libc::c_int, Error> {
    match advice {
        Advice::Cold | Advice::PageOut | Advice::WillNeed | Advice::Collapse => Ok(advice.number()),
        _ => Err(Error::system(
            "advising the kernel of another process",
            io::Error::from_raw_os_error(libc::EINVAL),
        )),
    }
}

fn pid_of_fdinfo(info: &str) -> Result<u32, Error> {
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
    let malformed = || Error::Malformed { what: "a pidfd's fdinfo", found: info.to_owned() };
    match line.ok_or_else(malformed)?.parse::<i64>() {
        Ok(-1) => Err(Error::Gone { pid: 0 }),
        Ok(pid) if pid > 0 => u32::try_from(pid).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_names_the_process_or_says_why_not() {
        assert_eq!(pid_of_fdinfo("pos:\t0\nflags:\t02\nPid:\t42\nNSpid:\t42\n").unwrap(), 42);
        assert!(matches!(pid_of_fdinfo("Pid:\t-1\n"), Err(Error::Gone { .. })));
        assert!(matches!(pid_of_fdinfo("pos:\t0\n"), Err(Error::Malformed { .. })));
        assert!(matches!(pid_of_fdinfo("Pid:\t0\n"), Err(Error::Malformed { .. })));
    }

    #[test]
    fn destructive_advice_is_not_for_others() {
        assert!(non_destructive(Advice::DontNeed).is_err());
        assert!(non_destructive(Advice::PageOut).is_ok());
    }
}
