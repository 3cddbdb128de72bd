//! Which CPU a thread runs on, last ran on and may run on: placing a handler beside the thread it serves is worth more than any code in
//! it.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::Error;

/// The CPU this thread runs on at this moment.
pub fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// Lets a thread (`None`: this one) run on `cpus` only; other processes' threads with CAP_SYS_NICE.
///
/// Numbers the kernel doesn't have are passed over; none left is an error.
pub fn pin(thread: Option<u32>, cpus: &[usize]) -> Result<(), Error> {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    apply(thread, &set)
}

/// Lets a thread run anywhere its cpuset allows.
pub fn unpin(thread: Option<u32>) -> Result<(), Error> {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::MAX_CPU {
        set.set(cpu);
    }
    apply(thread, &set)
}

/// The CPUs a thread (`None`: this one) may run on, ascending.
pub fn allowed(thread: Option<u32>) -> Result<Vec<usize>, Error> {
    let set = rustix::thread::sched_getaffinity(number(thread)?)
        .map_err(|e| Error::system("asking for a thread's CPUs", e))?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Tells again and again where one thread is, without opening anything anew and without allocating.
#[derive(Debug)]
pub struct Whereabouts {
    thread: u32,
    stat: OwnedFd,
}

impl Whereabouts {
    /// Those of a thread of any process, by its number alone.
    pub fn of(thread: u32) -> Result<Self, Error> {
        let mut path = [0u8; 48];
        // It fits, with the NUL behind it: two numbers of ten digits at most.
        let _ = write!(&mut path[..47], "/proc/{thread}/task/{thread}/stat");
        let path = CStr::from_bytes_until_nul(&path).unwrap_or_default();
        let stat = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::gone_or(thread, "opening a thread's stat", e))?;
        Ok(Self { thread, stat })
    }

    /// Whose they are.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// The CPU it runs on, or last ran on.
    pub fn cpu(&self) -> Result<usize, Error> {
        // 52 numbers and a name of 15 bytes.
        let mut stat = [0u8; 1024];
        let len = rustix::io::pread(&self.stat, &mut stat, 0)
            .map_err(|e| Error::gone_or(self.thread, "reading a thread's stat", e))?;
        let stat = std::str::from_utf8(stat.get(behind_the_name(&stat[..len])..len).unwrap_or_default());
        let processor = stat.ok().and_then(processor);
        processor.ok_or_else(|| Error::Malformed {
            what: "a thread's stat",
            found: stat.unwrap_or_default().to_owned(),
        })
    }
}

/// A thread's name, at most 15 bytes.
pub fn thread_name(pid: u32, thread: u32) -> Result<String, Error> {
    let path = format!("/proc/{pid}/task/{thread}/comm");
    let bytes = std::fs::read(path).map_err(|e| Error::gone_or(pid, "reading a thread's name", e))?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

/// This thread's number.
pub fn current_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

fn apply(thread: Option<u32>, set: &CpuSet) -> Result<(), Error> {
    rustix::thread::sched_setaffinity(number(thread)?, set).map_err(|e| Error::system("pinning a thread", e))
}

fn number(thread: Option<u32>) -> Result<Option<Pid>, Error> {
    let Some(thread) = thread else { return Ok(None) };
    let number = i32::try_from(thread).ok().and_then(Pid::from_raw);
    Ok(Some(number.ok_or(Error::Gone { pid: thread })?))
}

/// The name, field 2, is in parentheses and may hold anything, parentheses too: what counts is the last one.
fn behind_the_name(stat: &[u8]) -> usize {
    stat.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1)
}

/// Field 39, of which the first two are left out.
fn processor(behind_the_name: &str) -> Option<usize> {
    behind_the_name.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let of = |stat: &str| processor(&stat[behind_the_name(stat.as_bytes())..]);
        assert_eq!(of(&format!("1 (plain) {fields}")), Some(39));
        assert_eq!(of(&format!("1 (a) b (c) {fields}")), Some(39));
        assert_eq!(of("1 (short) R 2"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_pinned_thread_runs_where_it_was_put() {
        std::thread::spawn(|| {
            let before = allowed(None).unwrap();
            let whereabouts = Whereabouts::of(current_thread()).unwrap();
            for &cpu in &before {
                pin(None, &[cpu]).unwrap();
                assert_eq!(allowed(None).unwrap(), [cpu]);
                assert_eq!(current_cpu(), cpu);
                assert_eq!(whereabouts.cpu().unwrap(), cpu);
            }
            unpin(None).unwrap();
            assert_eq!(allowed(None).unwrap(), before);
            assert!(pin(None, &[]).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_ended_is_nowhere() {
        let whereabouts = std::thread::spawn(|| Whereabouts::of(current_thread()).unwrap()).join().unwrap();
        // A joined thread may be on its last steps in the kernel still.
        while whereabouts.cpu().is_ok() {
            std::thread::yield_now();
        }
        assert!(matches!(whereabouts.cpu(), Err(Error::Gone { pid }) if pid == whereabouts.thread()));
        assert!(matches!(Whereabouts::of(u32::MAX), Err(Error::Gone { .. })));
    }

    #[test]
    fn threads_have_names() {
        let seen = std::thread::Builder::new()
            .name("a (name) here".into())
            .spawn(|| thread_name(std::process::id(), current_thread()).unwrap())
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(seen, "a (name) here");
        assert!(matches!(thread_name(u32::MAX - 1, 1), Err(Error::Gone { .. })));
    }
}
