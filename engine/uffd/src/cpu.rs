//! Which CPU a thread runs on, last ran on and may run on: placing a handler beside the thread it serves is worth more than any code in
//! it.

use std::io;

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

/// The CPU a thread of some process last ran on.
pub fn last_cpu_of(pid: u32, thread: u32) -> Result<usize, Error> {
    let path = format!("/proc/{pid}/task/{thread}/stat");
    let stat = std::fs::read_to_string(path).map_err(|e| gone_or(pid, "reading a thread's stat", e))?;
    processor_of_stat(&stat).ok_or(Error::Malformed { what: "a thread's stat", found: stat })
}

/// A thread's name, at most 15 bytes.
pub fn thread_name(pid: u32, thread: u32) -> Result<String, Error> {
    let path = format!("/proc/{pid}/task/{thread}/comm");
    let bytes = std::fs::read(path).map_err(|e| gone_or(pid, "reading a thread's name", e))?;
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

/// Field 39. The name, field 2, is in parentheses and may hold spaces and parentheses: count from the last one.
fn processor_of_stat(stat: &str) -> Option<usize> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

fn gone_or(pid: u32, doing: &'static str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid },
        _ => Error::system(doing, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(processor_of_stat(&format!("1 (plain) {fields}")), Some(39));
        assert_eq!(processor_of_stat(&format!("1 (a) b (c) {fields}")), Some(39));
        assert_eq!(processor_of_stat("1 (short) R 2"), None);
        assert_eq!(processor_of_stat(""), None);
    }

    #[test]
    fn a_pinned_thread_runs_where_it_was_put() {
        std::thread::spawn(|| {
            let before = allowed(None).unwrap();
            for &cpu in &before {
                pin(None, &[cpu]).unwrap();
                assert_eq!(allowed(None).unwrap(), [cpu]);
                assert_eq!(current_cpu(), cpu);
                assert_eq!(last_cpu_of(std::process::id(), current_thread()).unwrap(), cpu);
            }
            unpin(None).unwrap();
            assert_eq!(allowed(None).unwrap(), before);
            assert!(pin(None, &[]).is_err());
        })
        .join()
        .unwrap();
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
