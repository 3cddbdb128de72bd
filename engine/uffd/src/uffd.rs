//! The userfaultfd after its handshake: register, fill, move, protect, wake, read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use crate::abi::{self, Fill, Transfer};
use crate::open::check_kind;
use crate::{
    DecodeError, Error, Features, Message, OpenMode, Operation, Outcome, RangeIoctls, RawMessage, RawUffd,
    RegisterMode, Span, Stop, page_bytes,
};

/// A userfaultfd that is ready for use: one address space, this process's or another's.
///
/// Every method may be called from any thread. Closing the *last* descriptor of a userfaultfd wakes all its waiters with zero
/// pages: keep a duplicate ([`Uffd::try_clone`]) wherever the memory must outlive a handler.
#[derive(Debug)]
pub struct Uffd {
    inner: userfaultfd::Uffd,
    features: Features,
}

/// How [`Uffd::copy`] leaves the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyMode {
    /// Threads that wait for these pages go on waiting until [`Uffd::wake`].
    pub dont_wake: bool,
    /// The pages arrive write-protected.
    pub wp: bool,
}

/// How [`Uffd::move_pages`] goes about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveMode {
    /// Threads that wait for these pages go on waiting until [`Uffd::wake`].
    pub dont_wake: bool,
    /// Pages missing at the source are skipped and count as done, instead of ending the move.
    pub allow_src_holes: bool,
}

/// Why no messages could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// End of file: the descriptor no longer speaks for a userfaultfd.
    #[error("the userfaultfd is closed")]
    Closed,
    /// A number of bytes that isn't a number of messages.
    #[error("userfaultfd read gave {0} bytes, which is no whole number of messages")]
    Torn(usize),
    /// The descriptor table was full when a fork's userfaultfd was to be delivered (`EMFILE`): the message stays queued.
    #[error("no free descriptor for a forked child's userfaultfd")]
    NoDescriptor(#[source] io::Error),
    /// A message that can't be understood.
    #[error("decoding a userfaultfd message")]
    Decode(#[from] DecodeError),
    /// Anything else. `EINVAL`: the handshake hasn't been made.
    #[error("reading the userfaultfd")]
    Kernel(#[source] io::Error),
}

impl Uffd {
    /// Creates one for this process, close-on-exec and non-blocking, and makes the handshake for those of `wanted` that are to be
    /// had; see [`Uffd::features`].
    pub fn open(wanted: Features, mode: OpenMode<'_>) -> Result<Uffd, Error> {
        RawUffd::create(mode)?.handshake(wanted)
    }

    /// Takes one whose handshake was made elsewhere: a caller's own, or a fork child's (which has its parent's `features`).
    pub fn from_handshaken(fd: OwnedFd, features: Features) -> Result<Uffd, Error> {
        check_kind(fd.as_fd())?;
        Ok(Uffd::from_parts(fd, features))
    }

    /// What the handshake granted.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Another descriptor of the same userfaultfd.
    pub fn try_clone(&self) -> Result<Uffd, Error> {
        let fd = self.try_clone_fd()?;
        Ok(Uffd::from_parts(fd, self.features))
    }

    /// Another descriptor of the same userfaultfd, to keep or to hand over.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, Error> {
        self.as_fd().try_clone_to_owned().map_err(|e| Error::system("duplicating the userfaultfd", e))
    }

    /// From here on faults of `mode` in `span` wait for an answer through this userfaultfd.
    ///
    /// Says which operations the range accepts.
    ///
    /// # Safety
    ///
    /// This is the act that puts memory into other hands: from now until [`Uffd::unregister`], what code reads in `span`
    /// where pages are missing is whatever [`Uffd::copy`], [`Uffd::zeropage`] and the like put there, [`Uffd::poison`] makes
    /// touching it fatal, and threads stand still until served. The caller must have the say over that memory in the process
    /// this userfaultfd speaks for, must put back what was there, and must not need it to serve faults.
    pub unsafe fn register(&self, span: Span, mode: RegisterMode) -> Result<RangeIoctls, Error> {
        let crate_mode = userfaultfd::RegisterMode::from_bits_truncate(mode.bits());
        self.inner
            .register_with_mode(pointer(span), span.bytes(), crate_mode)
            .map(|ioctls| RangeIoctls::from_bits_retain(ioctls.bits()))
            .map_err(|e| Error::Register { span, mode, source: io_error(&e) })
    }

    /// Faults in `span` are the kernel's own again; threads waiting there are woken and find what is there.
    pub fn unregister(&self, span: Span) -> Result<(), Error> {
        self.inner
            .unregister(pointer(span), span.bytes())
            .map_err(|e| Error::range("unregistering", span, io_error(&e)))
    }

    /// Puts the bytes of `src` (whole pages) at `dst`, page by page, each atomically.
    pub fn copy(&self, dst: u64, src: &[u8], mode: CopyMode) -> Outcome {
        let len = src.len() as u64;
        let bits = flag(mode.dont_wake, abi::MODE_DONTWAKE) | flag(mode.wp, abi::MODE_WP);
        let mut argument = Transfer { dst, src: src.as_ptr().addr() as u64, len, mode: bits, result: 0 };
        // SAFETY: UFFDIO_COPY takes a uffdio_copy, which Transfer mirrors. It reads src, which is borrowed for
        // as long, and writes only to memory that was registered, whose registrant answers for it.
        let answer = unsafe { abi::ioctl(self, abi::UFFD_COPY, &mut argument) };
        outcome(Operation::Copy, len, answer, argument.result)
    }

    /// Fills missing pages of `span` with zeros.
    ///
    /// They are mapped read-only to the shared zero page: a write to one faults once more, inside the kernel.
    pub fn zeropage(&self, span: Span, dont_wake: bool) -> Outcome {
        self.fill(Operation::Zeropage, span, flag(dont_wake, abi::MODE_DONTWAKE))
    }

    /// Moves pages from `src` to `dst`, both `len` bytes, in this process. The source is left with holes.
    ///
    /// `dst` must be registered with this userfaultfd, and both sides private, anonymous and writable. Atomic a page; refuses pinned
    /// pages and such as a living fork child shares.
    ///
    /// # Safety
    ///
    /// The source isn't registered, so nobody has answered for it: the caller must have the say over it, and nothing may rely
    /// on its contents, which are gone afterwards.
    pub unsafe fn move_pages(&self, dst: u64, src: u64, len: u64, mode: MoveMode) -> Outcome {
        let bits =
            flag(mode.dont_wake, abi::MODE_DONTWAKE) | flag(mode.allow_src_holes, abi::MODE_ALLOW_SRC_HOLES);
        let mut argument = Transfer { dst, src, len, mode: bits, result: 0 };
        // SAFETY: UFFDIO_MOVE takes a uffdio_move, which Transfer mirrors; the caller answers for the source
        // and the registrant for the destination.
        let answer = unsafe { abi::ioctl(self, abi::UFFD_MOVE, &mut argument) };
        outcome(Operation::Move, len, answer, argument.result)
    }

    /// Moves pages from `src` to `dst`, where nothing is and nobody else puts anything, going on where the kernel stops half-way.
    ///
    /// So a page that is at `dst` nevertheless was moved by this very call, and is counted: Linux 6.18 tries again by itself what a change
    /// of the page's accessed bit came in the way of, but keeps the error (`move_pages` in mm/userfaultfd.c). It neither counts what it then
    /// moves nor goes on behind it, and ends with `EEXIST` for it. Taken at its word that is a page that reads as zeros.
    ///
    /// # Safety
    ///
    /// As [`move_pages`](Self::move_pages).
    pub unsafe fn move_to_empty(&self, dst: u64, src: u64, len: u64, mode: MoveMode) -> Outcome {
        let mut done = 0;
        while done < len {
            // SAFETY: the caller's promise, for a part.
            let outcome = unsafe { self.move_pages(dst + done, src + done, len - done, mode) };
            done += outcome.done;
            match outcome.stop {
                None => {}
                Some(Stop::Busy) if outcome.done > 0 => {}
                Some(Stop::Present) => done += page_bytes(),
                stop => return Outcome { done, stop },
            }
        }
        Outcome { done: len, stop: None }
    }

    /// Makes missing pages of `span` fatal to touch: SIGBUS, or `EFAULT` in a system call. A later [`Uffd::copy`] heals them.
    pub fn poison(&self, span: Span) -> Outcome {
        self.fill(Operation::Poison, span, 0)
    }

    /// Maps the page that is in the page cache already (minor faults on shared memory).
    pub fn continue_(&self, span: Span, mode: CopyMode) -> Outcome {
        self.fill(
            Operation::Continue,
            span,
            flag(mode.dont_wake, abi::MODE_DONTWAKE) | flag(mode.wp, abi::MODE_WP),
        )
    }

    /// Write-protects what is there in `span`, or lifts that and wakes who waits for it.
    pub fn write_protect(&self, span: Span, protect: bool) -> Outcome {
        let answer = if protect {
            self.inner.write_protect(pointer(span), span.bytes())
        } else {
            self.inner.remove_write_protection(pointer(span), span.bytes(), true)
        };
        let errno = answer.err().map(|e| io_error(&e).raw_os_error().unwrap_or(libc::EIO));
        Outcome::from_kernel(Operation::WriteProtect, span.len(), errno, 0)
    }

    /// Threads waiting in `span` try again: they find the page or fault anew.
    ///
    /// Wakes nobody in a process that is gone, and is no error then.
    pub fn wake(&self, span: Span) -> Result<(), Error> {
        self.inner.wake(pointer(span), span.bytes()).map_err(|e| Error::range("waking", span, io_error(&e)))
    }

    /// All threads that wait anywhere try again.
    ///
    /// Wakes nobody in a process that is gone, and is no error then.
    pub fn wake_all(&self) -> Result<(), Error> {
        // Where vm.mmap_min_addr is higher than it mostly is, the kernel takes no range that begins below it.
        self.wake(Span::from_lowest(64 << 10)).or_else(|_| self.wake(Span::from_lowest(1 << 20)))
    }

    /// Reads what is pending, at most one message an element of `buf`; how many there were, 0 for none.
    ///
    /// The kernel hands out faults before older events. Each message must be decoded once; [`Uffd::read_messages`] sees to that.
    pub fn read(&self, buf: &mut [RawMessage]) -> Result<usize, ReadError> {
        if buf.is_empty() {
            return Ok(0);
        }
        let got = match rustix::io::read(self, RawMessage::bytes_mut(buf)) {
            Ok(got) => got,
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(e @ (rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)) => {
                return Err(ReadError::NoDescriptor(e.into()));
            }
            Err(e) => return Err(ReadError::Kernel(e.into())),
        };
        match (got, got % size_of::<RawMessage>()) {
            (0, _) => Err(ReadError::Closed),
            (_, 0) => Ok(got / size_of::<RawMessage>()),
            _ => Err(ReadError::Torn(got)),
        }
    }

    /// [`Uffd::read`] and decode, appended to `messages`; how many there were, 0 for none. At most 16 at a time.
    pub fn read_messages(&self, messages: &mut Vec<Message>) -> Result<usize, ReadError> {
        let mut raw = [RawMessage::EMPTY; 16];
        let read = self.read(&mut raw)?;
        let mut result = Ok(read);
        // All of them, even after one that can't be: the others may carry descriptors.
        for message in &raw[..read] {
            // SAFETY: the message has just been read by this process and is decoded here and nowhere else.
            match unsafe { message.decode(self.features) } {
                Ok(message) => messages.push(message),
                Err(e) => result = Err(e.into()),
            }
        }
        result
    }

    pub(crate) fn from_parts(fd: OwnedFd, features: Features) -> Uffd {
        // SAFETY: the descriptor is owned and its ownership passes on: the crate's type closes it when dropped.
        let inner = unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) };
        Uffd { inner, features }
    }

    fn fill(&self, operation: Operation, span: Span, mode: u64) -> Outcome {
        let request = match operation {
            Operation::Zeropage => abi::UFFD_ZEROPAGE,
            Operation::Poison => abi::UFFD_POISON,
            _ => abi::UFFD_CONTINUE,
        };
        let mut argument = Fill { start: span.start(), len: span.len(), mode, result: 0 };
        // SAFETY: the three requests take the structures that Fill mirrors and touch only memory that was registered,
        // whose registrant answers for it.
        let answer = unsafe { abi::ioctl(self, request, &mut argument) };
        outcome(operation, span.len(), answer, argument.result)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.inner.as_raw_fd()
    }
}

fn outcome(operation: Operation, len: u64, answer: io::Result<libc::c_int>, result: i64) -> Outcome {
    let errno = answer.err().map(|e| e.raw_os_error().unwrap_or(libc::EIO));
    Outcome::from_kernel(operation, len, errno, result)
}

fn flag(on: bool, bits: u64) -> u64 {
    if on { bits } else { 0 }
}

/// An address as the `userfaultfd` crate wants it. It may be one of another process, so it has no provenance and is never followed.
fn pointer(span: Span) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(crate::span::to_usize(span.start()))
}

/// The error number inside the crate's error.
fn io_error(error: &userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno)
        | userfaultfd::Error::CopyFailed(errno)
        | userfaultfd::Error::ZeropageFailed(errno) => io::Error::from_raw_os_error(*errno as i32),
        other => io::Error::other(other.to_string()),
    }
}
