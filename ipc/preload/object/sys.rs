//! System calls, made directly: nothing of the C library runs on the agent's thread, which has no thread-local storage of its own
//! (the register for it points at that of the thread which made it), and errno stays the program's.

use core::arch::asm;
use core::ptr;

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const NOENT: Self = Self(2);
    pub(crate) const SRCH: Self = Self(3);
    pub(crate) const INTR: Self = Self(4);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const NOMEM: Self = Self(12);
    pub(crate) const FAULT: Self = Self(14);
    pub(crate) const BUSY: Self = Self(16);
    pub(crate) const EXIST: Self = Self(17);
    pub(crate) const INVAL: Self = Self(22);
    pub(crate) const NOSYS: Self = Self(38);
    pub(crate) const OPNOTSUPP: Self = Self(95);
}

/// Numbers of system calls.
pub(crate) mod nr {
    pub(crate) const READ: usize = 0;
    pub(crate) const WRITE: usize = 1;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MPROTECT: usize = 10;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const NANOSLEEP: usize = 35;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const SOCKET: usize = 41;
    pub(crate) const CONNECT: usize = 42;
    pub(crate) const GETSOCKOPT: usize = 55;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const EXIT: usize = 60;
    pub(crate) const KILL: usize = 62;
    pub(crate) const CAPSET: usize = 126;
    pub(crate) const MUNLOCK: usize = 150;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const GETDENTS64: usize = 217;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const TGKILL: usize = 234;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const FACCESSAT: usize = 269;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const UNSHARE: usize = 272;
    pub(crate) const SIGNALFD4: usize = 289;
    pub(crate) const SETNS: usize = 308;
    pub(crate) const SECCOMP: usize = 317;
    pub(crate) const GETRANDOM: usize = 318;
    pub(crate) const EXECVEAT: usize = 322;
    pub(crate) const USERFAULTFD: usize = 323;
    pub(crate) const PIDFD_OPEN: usize = 434;
    pub(crate) const CLOSE_RANGE: usize = 436;
    pub(crate) const PIDFD_GETFD: usize = 438;
}

/// Makes a system call.
///
/// # Safety
/// As the call itself: pointers among the arguments must be good for what the kernel does with them, and what it does to the
/// process must be what the caller has the say over.
#[inline(always)]
pub(crate) unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let answer: isize;
    // SAFETY: the caller's promise; the kernel changes rax, rcx, r11 and memory, which is what is declared here.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => answer,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    match answer {
        -4095..=-1 => Err(Errno(answer.unsigned_abs() as i32)),
        _ => Ok(answer as usize),
    }
}

/// Makes a system call that touches no memory but what its arguments say by value.
macro_rules! by_value {
    ($number:expr $(, $arg:expr)*) => {{
        let mut args = [0_usize; 6];
        let given: &[usize] = &[$($arg),*];
        for (slot, arg) in args.iter_mut().zip(given) {
            *slot = *arg;
        }
        // SAFETY: all arguments are numbers to the kernel, and what the call changes is the agent's own.
        unsafe { call($number, args) }
    }};
}

/// A descriptor of the agent's own file table, closed when dropped.
pub(crate) struct Fd(i32);

impl Fd {
    fn own(answer: Result<usize, Errno>) -> Result<Self, Errno> {
        answer.map(|fd| Self(fd as i32))
    }

    /// Takes a descriptor that came with a message.
    pub(crate) fn received(number: i32) -> Self {
        Self(number)
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }

    fn raw(&self) -> usize {
        self.0 as usize
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let _ = by_value!(nr::CLOSE, self.raw());
    }
}

pub(crate) fn getpid() -> u32 {
    by_value!(nr::GETPID).unwrap_or(0) as u32
}

pub(crate) fn gettid() -> u32 {
    by_value!(nr::GETTID).unwrap_or(0) as u32
}

/// Ends this thread, not the process.
pub(crate) fn exit_thread() -> ! {
    loop {
        let _ = by_value!(nr::EXIT, 0);
    }
}

/// Ends the process, as nobody can keep it from.
pub(crate) fn kill_process() -> ! {
    const SIGKILL: usize = 9;
    loop {
        let _ = by_value!(nr::KILL, getpid() as usize, SIGKILL);
        // The first process of a pid namespace can't be killed from within it.
        let _ = by_value!(nr::EXIT_GROUP, 128 + SIGKILL);
    }
}

/// Whether a process has no thread of this number any more.
pub(crate) fn is_gone(pid: u32, tid: u32) -> bool {
    by_value!(nr::TGKILL, pid as usize, tid as usize, 0) == Err(Errno::SRCH)
}

pub(crate) fn sleep(nanoseconds: u64) {
    let time = Timespec::new(nanoseconds);
    // SAFETY: the kernel reads the time.
    let _ = unsafe { call(nr::NANOSLEEP, [ptr::from_ref(&time).expose_provenance(), 0, 0, 0, 0, 0]) };
}

/// The time that has gone by since some moment, in nanoseconds; without what the machine slept.
pub(crate) fn now() -> u64 {
    const MONOTONIC: usize = 1;
    let mut time = Timespec::new(0);
    // SAFETY: the kernel writes a time.
    let _ = unsafe {
        call(nr::CLOCK_GETTIME, [MONOTONIC, ptr::from_mut(&mut time).expose_provenance(), 0, 0, 0, 0])
    };
    (time.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds as u64)
}

/// A length of time as the kernel takes it.
#[repr(C)]
pub(crate) struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Timespec {
    pub(crate) fn new(nanoseconds: u64) -> Self {
        let second = 1_000_000_000;
        Self { seconds: (nanoseconds / second) as i64, nanoseconds: (nanoseconds % second) as i64 }
    }
}

// ---- memory ----

pub(crate) const PAGE: usize = 4096;
pub(crate) const READ_WRITE: usize = 3;
pub(crate) const NO_ACCESS: usize = 0;
const PRIVATE_ANONYMOUS: usize = 0x22;
const DROPPABLE_ANONYMOUS: usize = 0x28;
const FIXED: usize = 0x10;
const FIXED_NOREPLACE: usize = 0x10_0000;

pub(crate) const MREMAP_MAYMOVE: usize = 1;
pub(crate) const MREMAP_FIXED: usize = 2;
pub(crate) const MREMAP_DONTUNMAP: usize = 4;
pub(crate) const DONTNEED: usize = 4;
pub(crate) const DONTFORK: usize = 10;
pub(crate) const MERGEABLE: usize = 12;
pub(crate) const NOHUGEPAGE: usize = 15;
pub(crate) const DONTDUMP: usize = 16;
pub(crate) const WIPEONFORK: usize = 18;
pub(crate) const POPULATE_WRITE: usize = 23;
pub(crate) const GUARD_INSTALL: usize = 102;

/// New memory, wherever the kernel likes.
pub(crate) fn map(len: usize, access: usize) -> Result<usize, Errno> {
    by_value!(nr::MMAP, 0, len, access, PRIVATE_ANONYMOUS, usize::MAX, 0)
}

/// New memory at `at`, unless something is there.
pub(crate) fn map_at(at: usize, len: usize, access: usize) -> Result<usize, Errno> {
    by_value!(nr::MMAP, at, len, access, PRIVATE_ANONYMOUS | FIXED_NOREPLACE, usize::MAX, 0)
}

/// A reserved range that is one mapping until its owner changes that, and whether it is certain to be: nobody can watch a part of what
/// is droppable, and next to other memory it stays a mapping of its own. Before Linux 6.11 it is private memory like any other.
///
/// # Safety
/// With an address it is in place of whatever is there, which nothing may use any more.
pub(crate) unsafe fn reserve(over: Option<usize>, len: usize) -> Result<(usize, bool), Errno> {
    let (at, fixed) = over.map_or((0, 0), |at| (at, FIXED));
    // SAFETY: the caller's promise.
    match unsafe { call(nr::MMAP, [at, len, NO_ACCESS, DROPPABLE_ANONYMOUS | fixed, usize::MAX, 0]) } {
        // SAFETY: the caller's promise.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => unsafe {
            call(nr::MMAP, [at, len, NO_ACCESS, PRIVATE_ANONYMOUS | fixed, usize::MAX, 0])
                .map(|place| (place, false))
        },
        place => place.map(|place| (place, true)),
    }
}

/// # Safety
/// Nothing may use the memory any more.
pub(crate) unsafe fn unmap(at: usize, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { call(nr::MUNMAP, [at, len, 0, 0, 0, 0]) };
}

/// # Safety
/// Nothing may use the memory any more in a way that is forbidden then.
pub(crate) unsafe fn protect(at: usize, len: usize, access: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(nr::MPROTECT, [at, len, access, 0, 0, 0]) }
}

/// # Safety
/// The advice must be one that the memory's users can live with.
pub(crate) unsafe fn advise(at: usize, len: usize, advice: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(nr::MADVISE, [at, len, advice, 0, 0, 0]) }
}

/// Undoes an mlockall(MCL_FUTURE) for this range.
pub(crate) fn unlock(at: usize, len: usize) {
    let _ = by_value!(nr::MUNLOCK, at, len);
}

/// 64 random bits.
pub(crate) fn random() -> Result<u64, Errno> {
    let mut bits = 0_u64;
    let at = ptr::from_mut(&mut bits).expose_provenance();
    // SAFETY: the kernel writes at most 8 bytes, which is the size of `bits`.
    match unsafe { call(nr::GETRANDOM, [at, 8, 0, 0, 0, 0]) } {
        Ok(8) => Ok(bits),
        Ok(_) => Err(Errno::AGAIN),
        Err(e) => Err(e),
    }
}

// ---- signals ----

/// All signals.
pub(crate) const ALL: u64 = u64::MAX;
const SIG_SETMASK: usize = 2;

/// Sets which signals this thread has blocked; gives what was set before. The C library's own are among them, which its functions
/// would leave out: a thread that is cancelled while it waits for the agent would never let go.
pub(crate) fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    let (new, old) =
        (ptr::from_ref(&mask).expose_provenance(), ptr::from_mut(&mut before).expose_provenance());
    // SAFETY: the kernel reads 8 bytes and writes 8 bytes.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [SIG_SETMASK, new, old, 8, 0, 0]) };
    before
}

/// Ignored unless the program does something about it, so that one gone astray does no harm.
const SIGURG: usize = 23;

/// Rings at a thread that has the signal blocked and looks for it in a [`bell`].
pub(crate) fn ring(pid: u32, tid: u32) {
    let _ = by_value!(nr::TGKILL, pid as usize, tid as usize, SIGURG);
}

/// Readable when somebody rang. No handler is involved and no disposition: the signal stays blocked.
pub(crate) fn bell() -> Result<Fd, Errno> {
    let mask = 1_u64 << (SIGURG - 1);
    let flags = 0o2_000_000 | 0o4_000;
    // SAFETY: the kernel reads 8 bytes.
    let fd = unsafe {
        call(nr::SIGNALFD4, [usize::MAX, ptr::from_ref(&mask).expose_provenance(), 8, flags, 0, 0])
    };
    Fd::own(fd)
}

// ---- futexes ----

const FUTEX_WAIT: usize = 0;
const FUTEX_WAKE: usize = 1;

/// Waits until somebody wakes, the word isn't `seen`, or the time is over. Not private: the kernel's own wake, when a thread
/// ends, isn't either.
pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, seen: u32, nanoseconds: u64) {
    let time = Timespec::new(nanoseconds);
    let (word, time) = (word.as_ptr().expose_provenance(), ptr::from_ref(&time).expose_provenance());
    // SAFETY: the kernel reads the word and the time.
    let _ = unsafe { call(nr::FUTEX, [word, FUTEX_WAIT, seen as usize, time, 0, 0]) };
}

pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    let _ = by_value!(nr::FUTEX, word.as_ptr().expose_provenance(), FUTEX_WAKE, i32::MAX as usize);
}

// ---- files ----

/// Gives this thread a file table of its own, with nothing in it.
pub(crate) fn leave_file_table() -> Result<usize, Errno> {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    by_value!(nr::CLOSE_RANGE, 0, u32::MAX as usize, CLOSE_RANGE_UNSHARE)
}

/// Opens a file to read, close-on-exec.
pub(crate) fn open(path: &core::ffi::CStr, flags: usize) -> Result<Fd, Errno> {
    const AT_FDCWD: usize = -100_isize as usize;
    let path = path.as_ptr().expose_provenance();
    // SAFETY: the kernel reads the string up to its end.
    Fd::own(unsafe { call(nr::OPENAT, [AT_FDCWD, path, flags | 0o2_000_000, 0, 0, 0]) })
}

pub(crate) fn read(fd: &Fd, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { call(nr::READ, [fd.raw(), buffer.as_mut_ptr().expose_provenance(), buffer.len(), 0, 0, 0]) }
}

/// Reads at an offset.
pub(crate) fn read_at(fd: &Fd, buffer: &mut [u8], offset: usize) -> Result<usize, Errno> {
    let (at, len) = (buffer.as_mut_ptr().expose_provenance(), buffer.len());
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe { call(nr::PREAD64, [fd.raw(), at, len, offset, 0, 0]) }
}

pub(crate) fn write(fd: &Fd, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads the bytes.
    unsafe { call(nr::WRITE, [fd.raw(), bytes.as_ptr().expose_provenance(), bytes.len(), 0, 0, 0]) }
}

/// A descriptor that the program has under this number. This thread's own table hasn't.
pub(crate) fn of_program(number: usize) -> Result<Fd, Errno> {
    let program = Fd::own(by_value!(nr::PIDFD_OPEN, getpid() as usize, 0))?;
    Fd::own(by_value!(nr::PIDFD_GETFD, program.raw(), number, 0))
}

/// Reads words at an offset in bytes.
pub(crate) fn read_words_at(fd: &Fd, words: &mut [u64], offset: usize) -> Result<usize, Errno> {
    let (at, len) = (words.as_mut_ptr().expose_provenance(), size_of_val(words));
    // SAFETY: the kernel writes at most the slice's length; any bytes are words.
    unsafe { call(nr::PREAD64, [fd.raw(), at, len, offset, 0, 0]) }
}

/// Entries of a directory, as the kernel lays them out.
pub(crate) fn directory_entries(fd: &Fd, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the buffer's length.
    unsafe {
        call(nr::GETDENTS64, [fd.raw(), buffer.as_mut_ptr().expose_provenance(), buffer.len(), 0, 0, 0])
    }
}

/// Whether there is a file to read at this path, given by the address of a C string.
///
/// # Safety
/// A string ending in 0 must be there.
pub(crate) unsafe fn is_readable(path: *const u8) -> bool {
    const AT_FDCWD: usize = -100_isize as usize;
    // SAFETY: the caller's promise.
    unsafe { call(nr::FACCESSAT, [AT_FDCWD, path.expose_provenance(), 4, 0, 0, 0]) }.is_ok()
}

/// What to wait for on a descriptor, and what came.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PollFd {
    fd: i32,
    events: i16,
    pub(crate) came: i16,
}

impl PollFd {
    /// Waits for something to read; without a descriptor for nothing.
    pub(crate) fn readable(fd: Option<&Fd>) -> Self {
        Self { fd: fd.map_or(-1, Fd::number), events: 1, came: 0 }
    }

    /// Whether there is something to read, and not only that something is wrong.
    pub(crate) fn has_come(self) -> bool {
        self.came & 1 != 0
    }

    /// Waits for room to write.
    pub(crate) fn writable(fd: &Fd) -> Self {
        Self { fd: fd.number(), events: 4, came: 0 }
    }
}

/// Waits for one of them; at most so long, if a time is given. Says how many.
pub(crate) fn poll(fds: &mut [PollFd], nanoseconds: Option<u64>) -> Result<usize, Errno> {
    let time = nanoseconds.map(Timespec::new);
    let time = time.as_ref().map_or(0, |time| ptr::from_ref(time).expose_provenance());
    // SAFETY: the kernel writes into the slice, and reads the time.
    unsafe { call(nr::PPOLL, [fds.as_mut_ptr().expose_provenance(), fds.len(), time, 0, 0, 0]) }
}

/// A new userfaultfd of this process, from an open `/dev/userfaultfd` or, without one, by the system call.
pub(crate) fn new_uffd(device: Option<&Fd>) -> Result<Fd, Errno> {
    const USERFAULTFD_IOC_NEW: usize = 0xaa00;
    const CLOEXEC_NONBLOCK: usize = 0o2_000_000 | 0o4_000;
    Fd::own(match device {
        Some(device) => by_value!(nr::IOCTL, device.raw(), USERFAULTFD_IOC_NEW, CLOEXEC_NONBLOCK),
        None => by_value!(nr::USERFAULTFD, CLOEXEC_NONBLOCK),
    })
}

/// UFFDIO_MOVE. Gives the bytes moved and why it went no further.
///
/// # Safety
/// Whoever uses the source must be registered to wait for it, and nobody may use the destination.
pub(crate) unsafe fn uffd_move(uffd: &Fd, dest: u64, src: u64, len: u64) -> (u64, Option<Errno>) {
    const UFFDIO_MOVE: usize = 0xc028_aa05;
    let mut order = [dest, src, len, 0, 0];
    let at = order.as_mut_ptr().expose_provenance();
    // SAFETY: the order has the layout of a uffdio_move; for the rest the caller's promise.
    match unsafe { call(nr::IOCTL, [uffd.raw(), UFFDIO_MOVE, at, 0, 0, 0]) } {
        Ok(_) => (len, None),
        // Only EAGAIN carries progress; without any, the field holds the error, or on older kernels what it held before.
        Err(e) => match order {
            [.., moved] if e == Errno::AGAIN && moved <= len => (moved, Some(e)),
            _ => (0, Some(e)),
        },
    }
}

/// Names this thread.
pub(crate) fn name_thread(name: &core::ffi::CStr) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the kernel reads the string up to its end.
    let _ = unsafe { call(nr::PRCTL, [PR_SET_NAME, name.as_ptr().expose_provenance(), 0, 0, 0, 0]) };
}

/// Gives up all capabilities of this thread.
pub(crate) fn drop_capabilities() {
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    let (header, none) = (header.as_ptr().expose_provenance(), none.as_ptr().expose_provenance());
    // SAFETY: the kernel reads a header and two sets of three words.
    let _ = unsafe { call(nr::CAPSET, [header, none, 0, 0, 0, 0]) };
}
