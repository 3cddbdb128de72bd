//! What a fault costs in system calls: a tracer counts those of the handler that serves it.

use crate::child;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::mpsc::{TryRecvError, channel};
use userswap_tests::watch::Watchdog;

const FAULTS: u64 = 256;

/// One wait, one read, one copy, one wake: nothing is read twice to find nothing, and nothing else is asked of the kernel.
#[test]
fn a_fault_served_from_memory_is_one_wait_one_read_one_install_and_one_wake() {
    let name = "a_fault_served_from_memory_is_one_wait_one_read_one_install_and_one_wake";
    let _watch = Watchdog::new(name);
    let mut part = child::start("path", &[]);
    if part.skipped_or("ready") {
        return;
    }
    let handler = thread_named(part.pid(), "userswap-fault0");
    let Some(calls) = Calls::while_touching(name, part, handler) else { return };
    let of = |number| calls.of(number);
    let waits = of(libc::SYS_epoll_wait) + of(libc::SYS_epoll_pwait) + of(libc::SYS_epoll_pwait2);
    println!("{FAULTS} faults: {calls:?}");
    // The one it was in when the tracer came, and the one it is in when it goes.
    assert!(waits <= FAULTS + 2, "{waits} waits");
    assert!(of(libc::SYS_read) <= FAULTS + 1, "{} reads", of(libc::SYS_read));
    assert!(of(libc::SYS_ioctl) <= 2 * FAULTS, "{} installs and wakes", of(libc::SYS_ioctl));
    let others = calls.all() - waits - of(libc::SYS_read) - of(libc::SYS_ioctl);
    assert!(others <= FAULTS / 16, "{others} other calls: {calls:?}");
}

/// Waits for the thread: it names itself once it runs.
fn thread_named(pid: u32, name: &str) -> i32 {
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let found = tasks
            .map(|task| task.unwrap().path())
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        if let Some(task) = found {
            return task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The system calls a thread made, by number.
#[derive(Debug)]
pub(crate) struct Calls(BTreeMap<u64, u64>);

impl Calls {
    /// Those that a thread of this part makes from the moment the part is told to touch its pages until it has. `None`, having said
    /// so, where it can't be traced.
    pub(crate) fn while_touching(name: &str, mut part: child::Part, thread: i32) -> Option<Self> {
        let tracer = Tracer::seize(thread)
            .inspect_err(|error| println!("SKIPPED {name}: a child can't be traced: {error}"))
            .ok()?;
        let (done, finished) = channel();
        part.say("touch");
        let hearing = std::thread::spawn(move || {
            part.expect("touched");
            done.send(()).unwrap();
            part
        });
        let calls = tracer.count_until(|| finished.try_recv() != Err(TryRecvError::Empty));
        drop(hearing.join().unwrap());
        Some(Self(calls))
    }

    pub(crate) fn of(&self, number: libc::c_long) -> u64 {
        self.0.get(&number.cast_unsigned()).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Traces one thread of a child. All calls of the kernel for it come from the thread that seized it.
struct Tracer(i32);

impl Tracer {
    fn seize(thread: i32) -> io::Result<Self> {
        // SAFETY: needed because the C library has no safe form; no memory is passed.
        let seized = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, 0, libc::c_long::from(libc::PTRACE_O_TRACESYSGOOD))
        };
        if seized != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        if unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(thread))
    }

    /// Lets it run and counts the system calls it makes, by number, until `done`.
    pub(crate) fn count_until(self, done: impl Fn() -> bool) -> BTreeMap<u64, u64> {
        let mut calls = BTreeMap::new();
        while !done() {
            let Some(signal) = self.stopped(libc::WNOHANG) else {
                std::thread::yield_now();
                continue;
            };
            if signal == libc::SIGTRAP | 0x80
                && let Some(number) = self.entered()
            {
                *calls.entry(number).or_default() += 1;
            }
            // Of signals of its own none is expected but that of a fault it serves itself.
            let pass_on = if signal == libc::SIGBUS { signal } else { 0 };
            // SAFETY: as above; no memory is passed.
            let gone_on = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.0, 0, pass_on) };
            assert_eq!(gone_on, 0, "{}", io::Error::last_os_error());
        }
        // It is let go of where it stops next: a traced thread that is killed waits for its tracer.
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, self.0, 0, 0) }, 0);
        assert!(self.stopped(0).is_some());
        // SAFETY: as above.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) }, 0);
        calls
    }

    /// The signal it stopped with, if it has.
    fn stopped(&self, how: libc::c_int) -> Option<i32> {
        let mut status = 0;
        // SAFETY: needed because the C library has no safe form; the kernel writes the one integer given.
        let stopped = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL | how) };
        assert!(stopped == 0 || stopped == self.0 && libc::WIFSTOPPED(status), "{stopped}: {status:#x}");
        (stopped != 0).then(|| libc::WSTOPSIG(status))
    }

    /// The system call it is about to make, if it stopped for that.
    fn entered(&self) -> Option<u64> {
        // SAFETY: needed because the structure is the kernel's to fill in; all of it is integers.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::ptrace_syscall_info>();
        // SAFETY: as above; the kernel writes no more than the size it is told.
        let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, self.0, size, &raw mut info) };
        assert!(got > 0, "{}", io::Error::last_os_error());
        // SAFETY: needed because it is a union of integers, all of which any bits are values of; it is zeroed where the kernel left it.
        (info.op == libc::PTRACE_SYSCALL_INFO_ENTRY).then_some(unsafe { info.u.entry.nr })
    }
}
