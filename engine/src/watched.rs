//! Memory behind a real userfaultfd: what is the same however the pages themselves are reached.

use crate::ledger::Ledger;
use crate::memory::{Batch, Event, Fault, Memory, MemoryError, Moved, Order};
use crate::ring::Ring;
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use userswap_uffd::{
    CopyMode, Error, Message, Outcome, ReadError, RegisterMode, Span, Stop, Uffd, page_bytes,
};

/// How the pages of an address space are reached beyond what its userfaultfd can do.
///
/// # Safety
/// Whoever implements this vouches that ranges the engine registers belong to memory whose contents may go away and come
/// back behind its users' backs: another process's, or memory that is accessed only by means made for it.
pub unsafe trait Reach: Send + Sync + Sized + 'static {
    /// As [`Memory::resident`].
    ///
    /// # Errors
    /// When the page table can't be read.
    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError>;

    /// As [`Memory::slot_area`].
    fn slot_area(&self) -> Option<Span>;

    /// As [`Memory::slot_pages`].
    fn slot_pages(&self) -> Option<u32> {
        None
    }

    /// As [`Memory::most_orders`].
    fn most_orders(&self) -> usize {
        1
    }

    /// As [`Memory::move_out`].
    ///
    /// # Errors
    /// When the orders can't be given.
    fn move_out(
        &self,
        uffd: &Uffd,
        orders: &[Order],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Moved, MemoryError>;

    /// As [`Memory::read_slot`].
    ///
    /// # Errors
    /// When the bytes can't be read any more.
    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError>;

    /// As [`Memory::read_inherited`].
    ///
    /// # Errors
    /// When the copy can't be read.
    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        let _ = (addr, out, thread);
        Err(MemoryError::Gone)
    }

    /// As [`Memory::empty_slots`].
    ///
    /// # Errors
    /// When the slots can't be used again.
    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError>;

    /// The reach into a forked child, whose pages can be brought back but not moved out by these means.
    fn child(&self) -> Self;

    /// As [`Memory::moved_into`].
    ///
    /// # Errors
    /// When it can't be found out.
    fn moved_into(&self, uffd: &Uffd, slot: Span) -> Result<Option<Vec<bool>>, MemoryError> {
        let _ = (uffd, slot);
        Ok(None)
    }

    /// Whether a range may be divided from what is mapped beside it: a process may have only so many mappings.
    ///
    /// # Errors
    /// [`MemoryError::Mappings`].
    fn may_divide(&self, span: Span) -> Result<(), MemoryError> {
        let _ = span;
        Ok(())
    }

    /// Readable once the process has exited, if that can be told.
    fn exit(&self) -> Option<BorrowedFd<'_>>;
}

/// An address space watched through its userfaultfd.
pub struct Watched<R> {
    uffd: Uffd,
    ring: Mutex<Ring>,
    reach: R,
    ledger: Option<Arc<Ledger>>,
}

impl<R: Reach> Watched<R> {
    /// Watches `uffd`, whose handshake is made.
    ///
    /// # Errors
    /// When there is no memory for the ring.
    pub fn new(uffd: Uffd, reach: R) -> io::Result<Self> {
        Ok(Self { uffd, ring: Mutex::new(Ring::new()?), reach, ledger: None })
    }

    /// As [`new`](Self::new), what is known of it being kept in a ledger, where it may be already: then it is what a dead process has left.
    pub fn kept(uffd: Uffd, reach: R, ledger: Arc<Ledger>) -> Self {
        ledger.note_uffd(uffd.as_fd(), uffd.features());
        Self { uffd, ring: Mutex::new(Ring::of(&ledger)), reach, ledger: Some(ledger) }
    }

    /// The userfaultfd.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// How its pages are reached.
    pub fn reach(&self) -> &R {
        &self.reach
    }

    /// Asks for a page where nothing is ever mapped: the answer is about the address space alone.
    fn nowhere(&self) -> Option<Stop> {
        self.uffd.zeropage(Span::new(page_bytes(), page_bytes()).ok()?, true).stop
    }

    fn event(&self, event: userswap_uffd::Event) -> Result<Event, MemoryError> {
        Ok(match event {
            userswap_uffd::Event::Remap { from, to, len } => Event::Remap { from, to, len },
            userswap_uffd::Event::Remove(span) => Event::Remove(span),
            userswap_uffd::Event::Unmap(span) => Event::Unmap(span),
            userswap_uffd::Event::Fork { child } => {
                let uffd = Uffd::from_handshaken(child, self.uffd.features()).map_err(gone)?;
                let reach = self.reach.child();
                let child = match &self.ledger {
                    Some(ledger) => {
                        ledger.roster().new_ledger().map(|ledger| Self::kept(uffd, reach, ledger))
                    }
                    None => Self::new(uffd, reach),
                };
                Event::Fork(Arc::new(child.map_err(|_| MemoryError::Gone)?))
            }
        })
    }
}

impl<R: Reach> Memory for Watched<R> {
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError> {
        let mut ring = self.ring.lock();
        let room = ring.room();
        let is_scarce = self.ledger.as_ref().is_some_and(|ledger| ledger.roster().is_scarce());
        if is_scarce && let Some(ledger) = &self.ledger {
            // If there is no descriptor for one, there is none for a child either, and the kernel keeps the fork.
            ledger.roster().have_spare();
        }
        let most = if batch.one || is_scarce { 1 } else { room.len() };
        let room = &mut room[..most];
        let count = match self.uffd.read(room) {
            Ok(count) => count,
            Err(ReadError::NoDescriptor(_)) => {
                if self.ledger.as_ref().is_none_or(|ledger| ledger.roster().may_tell_of_want()) {
                    tracing::warn!(
                        "a program that forks waits: the daemon has no descriptors left (RLIMIT_NOFILE)"
                    );
                }
                (batch.more, batch.later) = (false, true);
                return Ok(());
            }
            Err(ReadError::Closed) => return Err(MemoryError::Gone),
            Err(error) => {
                tracing::error!(%error, "messages can't be read");
                return Err(MemoryError::Gone);
            }
        };
        for raw in &room[..count] {
            // SAFETY: needed because a fork message hands over a descriptor. The kernel just wrote these entries into our ring
            // for this process, and each is decoded here and nowhere else: the ring is cleared before its next use.
            match unsafe { raw.decode(self.uffd.features()) } {
                Ok(Message::Fault(fault)) => {
                    batch.faults.push(Fault { addr: fault.addr, write: fault.write, thread: fault.thread })
                }
                Ok(Message::Event(event)) => batch.events.push(self.event(event)?),
                Err(error) => tracing::error!(%error, "a message of the kernel makes no sense"),
            }
        }
        batch.more = count == most;
        ring.filled(count);
        Ok(())
    }

    fn applied(&self) {
        self.ring.lock().clear();
    }

    fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.as_ref()
    }

    fn unapplied(&self, known: &dyn Fn(i32) -> bool, batch: &mut Batch) -> Result<u32, MemoryError> {
        let mut left_out = 0;
        let applied = self.ledger.as_ref().map_or(0, |ledger| ledger.events_applied());
        for raw in self.ring.lock().unapplied(applied) {
            if raw.is_fork().and_then(|number| i32::try_from(number).ok()).is_some_and(known) {
                left_out += 1;
                continue;
            }
            // SAFETY: needed because a fork message hands over a descriptor. A process with this file table had the kernel write it and died
            // before it took it; it is decoded here, once, and the ring is cleared before its next use.
            match unsafe { raw.decode(self.uffd.features()) } {
                Ok(Message::Event(event)) => batch.events.push(self.event(event)?),
                Ok(Message::Fault(_)) => {}
                Err(error) => tracing::error!(%error, "a message of the kernel makes no sense"),
            }
        }
        Ok(left_out)
    }

    fn moved_into(&self, slot: Span) -> Result<Option<Vec<bool>>, MemoryError> {
        self.reach.moved_into(&self.uffd, slot)
    }

    fn is_still(&self) -> bool {
        matches!(self.nowhere(), Some(Stop::Unmapped | Stop::Invalid))
    }

    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.uffd.copy(dst, bytes, CopyMode::default())
    }

    fn zero(&self, span: Span) -> Outcome {
        self.uffd.zeropage(span, false)
    }

    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.uffd.copy(dst, bytes, CopyMode { dont_wake: true, ..CopyMode::default() })
    }

    fn zero_asleep(&self, span: Span) -> Outcome {
        self.uffd.zeropage(span, true)
    }

    fn poison(&self, span: Span) -> Outcome {
        self.uffd.poison(span)
    }

    fn wake(&self, span: Span) {
        if let Err(error) = self.uffd.wake(span) {
            tracing::debug!(%error, "waking");
        }
    }

    fn wake_all(&self) {
        if let Err(error) = self.uffd.wake_all() {
            tracing::warn!(%error, "threads may go on waiting for a page");
        }
    }

    fn register(&self, span: Span) -> Result<(), MemoryError> {
        self.reach.may_divide(span)?;
        // SAFETY: needed because missing pages of a registered range are filled by us and not by the kernel. That the range's
        // contents may be filled from outside is what the implementor of `Reach` vouches for; what we fill it with is what was there.
        unsafe { self.uffd.register(span, RegisterMode::MISSING) }
            .map(|_| ())
            .map_err(|error| refused("registering", span, error))
    }

    fn unregister(&self, span: Span) -> Result<(), MemoryError> {
        self.uffd.unregister(span).map_err(|error| refused("unregistering", span, error))
    }

    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        self.reach.resident(span, present)
    }

    fn slot_area(&self) -> Option<Span> {
        self.reach.slot_area()
    }

    fn slot_pages(&self) -> Option<u32> {
        self.reach.slot_pages()
    }

    fn is_gone(&self) -> bool {
        self.nowhere() == Some(Stop::Gone)
    }

    fn most_orders(&self) -> usize {
        self.reach.most_orders()
    }

    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError> {
        self.reach.move_out(&self.uffd, orders, outcomes)
    }

    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError> {
        self.unregister(slot)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.reach.read_slot(addr, out)
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        self.reach.read_inherited(addr, out, thread)
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        self.reach.empty_slots(slots)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn messages(&self) -> Option<BorrowedFd<'_>> {
        Some(self.uffd.as_fd())
    }

    fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.reach.exit()
    }
}

/// The crate's error for a failed call on a range.
pub fn refused(doing: &'static str, span: Span, error: Error) -> MemoryError {
    if error.errno() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
        MemoryError::Gone
    } else {
        MemoryError::Refused { doing, span, reason: error.to_string() }
    }
}

fn gone(_: Error) -> MemoryError {
    MemoryError::Gone
}
