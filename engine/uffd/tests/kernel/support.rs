//! A userfaultfd with memory to try it on, threads that touch that memory, and forked children.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use userswap_uffd::{
    Event, Fault, Features, Mapping, Message, OpenMode, Process, Protection, RangeIoctls, RawMessage,
    RegisterMode, Span, Uffd, futex, page_bytes, page_size,
};

/// A userfaultfd and a mapping of this process.
///
/// Fields drop in order: the userfaultfd goes first, so that unmapping waits for nobody.
pub(crate) struct Rig {
    pub(crate) uffd: Uffd,
    memory: Option<Mapping>,
    span: Span,
    turn: Turn,
}

/// A fork is an event to every userfaultfd of the process, so tests that fork run alone.
pub(crate) enum Turn {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

static TURNS: RwLock<()> = RwLock::new(());

impl Turn {
    pub(crate) fn shared() -> Turn {
        Turn::Shared { _guard: TURNS.read().unwrap_or_else(|e| e.into_inner()) }
    }

    pub(crate) fn alone() -> Turn {
        Turn::Alone { _guard: TURNS.write().unwrap_or_else(|e| e.into_inner()) }
    }
}

impl Rig {
    /// `None`, having said so, where the kernel or the user's privileges don't give `features`.
    pub(crate) fn new(name: &str, features: Features, pages: u64) -> Option<Rig> {
        Rig::with_turn(name, features, pages, Turn::shared())
    }

    /// The same for a test that forks.
    pub(crate) fn alone(name: &str, features: Features, pages: u64) -> Option<Rig> {
        Rig::with_turn(name, features, pages, Turn::alone())
    }

    fn with_turn(name: &str, features: Features, pages: u64, turn: Turn) -> Option<Rig> {
        let uffd = open(name, features, OpenMode::Auto)?;
        let memory = Mapping::new(pages * page_bytes(), Protection::READ_WRITE).unwrap();
        Some(Rig { uffd, span: memory.span(), memory: Some(memory), turn })
    }

    /// All of the memory.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// The test unmaps the memory itself. Where it unmaps parts, others' mappings may take their places, which the rig
    /// must not unmap.
    pub(crate) fn keep_mapped(&mut self) {
        self.memory.take().map(Mapping::leak);
    }

    pub(crate) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// `count` pages from page `first`.
    pub(crate) fn pages(&self, first: u64, count: u64) -> Span {
        let span = Span::from_pages(self.addr(first), count).unwrap();
        assert!(self.span().contains_span(&span));
        span
    }

    /// Address of a page.
    pub(crate) fn addr(&self, page: u64) -> u64 {
        self.span().start() + page * page_bytes()
    }

    /// Registers a span for missing pages.
    pub(crate) fn register(&self, span: Span) -> RangeIoctls {
        self.register_for(span, RegisterMode::MISSING)
    }

    pub(crate) fn register_for(&self, span: Span, mode: RegisterMode) -> RangeIoctls {
        // SAFETY: the memory is this test's, which serves its faults and knows what to find there.
        unsafe { self.uffd.register(span, mode) }.unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // After a failed assertion threads may still wait in the memory: it stays.
        if std::thread::panicking() {
            self.keep_mapped();
        }
    }
}

/// Opens one with all of `features`, or says why the test is skipped.
pub(crate) fn open(name: &str, features: Features, mode: OpenMode<'_>) -> Option<Uffd> {
    match Uffd::open(features, mode) {
        Ok(uffd) if uffd.features().contains(features) => Some(uffd),
        Ok(uffd) => {
            println!("SKIPPED {name}: not granted: {:?}", features - uffd.features());
            None
        }
        Err(e) => {
            println!("SKIPPED {name}: {e}: {:?}", e.errno());
            None
        }
    }
}

/// Waits for the next message. Far beyond any machine's pace it gives up, which fails the test.
pub(crate) fn next(uffd: &Uffd) -> Message {
    let mut fds = [PollFd::new(uffd, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    loop {
        assert_ne!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 0, "no message came");
        let mut raw = [RawMessage::EMPTY];
        if uffd.read(&mut raw).unwrap() == 1 {
            // SAFETY: just read by this process, decoded once.
            return unsafe { raw[0].decode(uffd.features()) }.unwrap();
        }
    }
}

pub(crate) fn next_fault(uffd: &Uffd) -> Fault {
    match next(uffd) {
        Message::Fault(fault) => fault,
        other => panic!("a fault was expected, not {other:?}"),
    }
}

pub(crate) fn next_event(uffd: &Uffd) -> Event {
    match next(uffd) {
        Message::Event(event) => event,
        other => panic!("an event was expected, not {other:?}"),
    }
}

/// Waits until something can be read, and reads nothing.
pub(crate) fn until_readable(fd: impl AsFd) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "nothing came");
}

/// Nothing is pending. Means something only once whoever could raise a message has finished or waits.
pub(crate) fn assert_quiet(uffd: &Uffd) {
    assert_eq!(uffd.read(&mut [RawMessage::EMPTY; 4]).unwrap(), 0, "a message too many");
}

/// How many threads' faults nobody has read, and how many threads wait in all, as the kernel counts.
pub(crate) fn waiting(uffd: &Uffd) -> (u64, u64) {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", uffd.as_fd().as_raw_fd())).unwrap();
    let field = |name: &str| -> u64 {
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    (field("pending:"), field("total:"))
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never came to be: {what}");
        std::thread::yield_now();
    }
}

/// Reads a byte.
pub(crate) fn peek(addr: u64) -> u8 {
    // SAFETY: tests pass addresses of memory they mapped; volatile because others change it.
    unsafe { std::ptr::with_exposed_provenance::<u8>(usize::try_from(addr).unwrap()).read_volatile() }
}

/// Writes a byte.
pub(crate) fn poke(addr: u64, value: u8) {
    // SAFETY: tests pass addresses of writable memory they mapped; volatile because others read it.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(addr).unwrap()).write_volatile(value)
    }
}

/// A thread that reads a byte.
pub(crate) fn reader(addr: u64) -> JoinHandle<u8> {
    std::thread::spawn(move || peek(addr))
}

/// A thread that writes a byte.
pub(crate) fn writer(addr: u64, value: u8) -> JoinHandle<()> {
    std::thread::spawn(move || poke(addr, value))
}

/// A page full of a byte.
pub(crate) fn page_of(value: u8) -> Vec<u8> {
    vec![value; page_size()]
}

/// A forked child that runs `body` and exits with what it says; killed and waited for when dropped.
pub(crate) struct Child {
    pub(crate) process: Process,
    pid: libc::pid_t,
    waited: bool,
}

impl Child {
    /// `body` runs after a fork of a process with several threads: no locks but the allocator's, no panics, no output.
    pub(crate) fn fork(_turn: &Turn, body: impl FnOnce() -> i32) -> Child {
        // SAFETY: the child runs the body, which by its contract touches nothing that another thread may have left half-done, and
        // leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let status = body();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(status) };
        }
        let process = Process::open(pid.unsigned_abs()).unwrap();
        Child { process, pid, waited: false }
    }

    /// Waits for its end; the status as waitpid gives it.
    pub(crate) fn wait(&mut self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: a child of ours that nobody else waits for.
        assert_eq!(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }, self.pid);
        self.waited = true;
        status
    }

    /// Waits and expects a normal exit with this status.
    pub(crate) fn exits_with(&mut self, expected: i32) {
        let status = self.wait();
        assert!(libc::WIFEXITED(status), "ended by signal {}", libc::WTERMSIG(status));
        assert_eq!(libc::WEXITSTATUS(status), expected);
    }

    pub(crate) fn kill(&mut self) {
        // SAFETY: sends a signal to a child of ours that hasn't been waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            self.kill();
        }
    }
}

/// A few words that parent and children share.
pub(crate) struct Board(Span);

impl Board {
    pub(crate) fn new() -> Board {
        // SAFETY: a fresh mapping, replacing nothing.
        let at = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), page_size(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Board(Span::from_pages(at.expose_provenance() as u64, 1).unwrap())
    }

    fn word(&self, index: u64) -> &AtomicU32 {
        let at = usize::try_from(self.0.start() + 4 * index).unwrap();
        // SAFETY: the page lives as long as the board, is aligned, zeroed and used as atomics only.
        unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(at)) }
    }

    /// Writes a word, not 0, and wakes who waits for it.
    pub(crate) fn set(&self, index: u64, value: u32) {
        self.word(index).store(value, Ordering::SeqCst);
        let _ = futex::wake(self.word(index), u32::MAX);
    }

    /// Waits until a word isn't 0.
    pub(crate) fn wait(&self, index: u64) -> u32 {
        loop {
            match self.word(index).load(Ordering::SeqCst) {
                0 => drop(futex::wait(self.word(index), 0, None)),
                value => return value,
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: nobody uses the page any more.
        let _ = unsafe { userswap_uffd::own::unmap(self.0) };
    }
}
