//! The seam to the memory of one address space: how its faults are read and its pages put in place.
//!
//! One implementation a way of reaching memory: [`LocalReach`](crate::LocalReach) behind [`Watched`](crate::Watched) for the own process, the daemon's
//! for a client at the other end of a socket, the simulator's for a model of Linux. All calls but
//! [`move_out`](Memory::move_out), [`read_slot`](Memory::read_slot) and [`empty_slots`](Memory::empty_slots) are made by
//! threads that serve faults: they must not block, nor touch memory that is in our care.

use crate::ledger::Ledger;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use userswap_uffd::{Outcome, Span};

/// A thread waits for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The page's address.
    pub addr: u64,
    /// Whether it wants to write.
    pub write: bool,
    /// Which thread, if the kernel says.
    pub thread: Option<u32>,
}

/// Something the address space did to itself; its doer sleeps until the event has been read.
pub enum Event {
    /// It forked. The child's memory answers to this.
    Fork(Arc<dyn Memory>),
    /// `len` bytes at `from` are now at `to`.
    Remap {
        /// The old address.
        from: u64,
        /// The new address.
        to: u64,
        /// The old length, in bytes.
        len: u64,
    },
    /// The range is about to be emptied.
    Remove(Span),
    /// The range is mapped no more.
    Unmap(Span),
}

/// What one read brought. Reused.
#[derive(Default)]
pub struct Batch {
    /// In the order they happened. They go first: a fault read beside an event may be younger than it.
    pub events: Vec<Event>,
    /// Threads to serve.
    pub faults: Vec<Fault>,
    /// There may be more to read.
    pub more: bool,
    /// No more than one message is to be read, so that others can read the next: whoever wakes a thread may have to wait until that
    /// thread stops again.
    pub one: bool,
    /// Nothing could be read, for want of a descriptor: to be tried again soon.
    pub later: bool,
}

impl Batch {
    /// Room for what one read brings, so that reading allocates nothing.
    pub fn with_capacity(messages: usize) -> Self {
        Self { faults: Vec::with_capacity(messages), ..Self::default() }
    }

    /// Empties it, keeping the space, and how much to read.
    pub fn clear(&mut self) {
        self.events.clear();
        self.faults.clear();
        (self.more, self.later) = (false, false);
    }
}

/// How many ranges are worth moving into a slot at once: what an order costs is spread over enough pages then, and faults wait while it is
/// carried out.
pub const MANY_ORDERS: usize = 32;

/// One range to move into a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// What moves.
    pub from: Span,
    /// Where its first page goes.
    pub to: u64,
}

impl Order {
    /// The part of the slot that all of them go to.
    ///
    /// # Errors
    /// When there is none, or it can't be a range.
    pub fn destination(orders: &[Self]) -> Result<Span, MemoryError> {
        let (Some(first), Some(last)) = (orders.first(), orders.last()) else {
            return Err(MemoryError::Gone);
        };
        Span::between(first.to, last.to + last.from.len()).map_err(|error| MemoryError::Refused {
            doing: "moving to",
            span: first.from,
            reason: error.to_string(),
        })
    }
}

/// The answer to move orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// It was carried out here and now, as far as the outcomes say.
    Now,
    /// It was sent; if it succeeds a [`Event::Remap`] onto the slot says so. For clients that don't use MADV_FREE on what is
    /// in care: a page freed and written again while its order is out can't be told from one that is about to be emptied.
    Ordered,
}

/// What can go wrong between us and an address space.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The process, or what we reach it through, is gone.
    #[error("the address space is gone")]
    Gone,
    /// The kernel or the client refused.
    #[error("{doing} {span:?}: {reason}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// To which range.
        span: Span,
        /// Why not.
        reason: String,
    },
    /// It would divide a mapping, and there are nearly as many as there may be.
    #[error(
        "{span:?} isn't moved, which would divide mappings: the process has nearly as many as it may have (vm.max_map_count)"
    )]
    Mappings {
        /// What was to be moved, or watched.
        span: Span,
    },
}

/// One address space, as the engine reaches it.
pub trait Memory: Send + Sync + 'static {
    /// Reads what is pending, without waiting. The engine calls it with the gate held exclusively, and
    /// [`applied`](Self::applied) once it has acted on the events and taken over the faults.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] when nothing will ever be pending again.
    fn read(&self, batch: &mut Batch) -> Result<(), MemoryError>;

    /// What the last [`read`](Self::read) brought is in the engine's books.
    fn applied(&self) {}

    /// Installs `bytes`, whole pages, at `dst` and wakes who waits there.
    fn copy(&self, dst: u64, bytes: &[u8]) -> Outcome;

    /// Installs zero pages and wakes who waits there.
    fn zero(&self, span: Span) -> Outcome;

    /// As [`copy`](Self::copy), but who waits there may be left asleep: [`wake`](Self::wake) follows. A thread woken at once
    /// could take the CPU from the handler before its books are done.
    fn copy_asleep(&self, dst: u64, bytes: &[u8]) -> Outcome {
        self.copy(dst, bytes)
    }

    /// As [`zero`](Self::zero), in the same way.
    fn zero_asleep(&self, span: Span) -> Outcome {
        self.zero(span)
    }

    /// Makes touching the pages a SIGBUS, and wakes who waits there.
    fn poison(&self, span: Span) -> Outcome;

    /// Wakes who waits in the range, whether or not anything is mapped there.
    fn wake(&self, span: Span);

    /// Wakes whoever waits, wherever that is.
    fn wake_all(&self);

    /// Has missing pages of the range reported to us from now on.
    ///
    /// # Errors
    /// When the range isn't one that can be.
    fn register(&self, span: Span) -> Result<(), MemoryError>;

    /// Leaves missing pages of the range to the kernel again.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unregister(&self, span: Span) -> Result<(), MemoryError>;

    /// Whether each page of the range is present in the page table, in order.
    ///
    /// # Errors
    /// When the page table can't be read.
    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError>;

    /// The area that slots are cut from; none if nothing can be moved out.
    fn slot_area(&self) -> Option<Span>;

    /// How many pages a slot is to have; the engine's setting if it doesn't matter here.
    fn slot_pages(&self) -> Option<u32> {
        None
    }

    /// Whether the address space is known to be gone. Asked now and then where [`exit`](Self::exit) can't tell.
    fn is_gone(&self) -> bool {
        false
    }

    /// How many ranges can be moved into a slot at once.
    fn most_orders(&self) -> usize {
        1
    }

    /// Moves ranges, at most [`most_orders`](Self::most_orders), into a slot, where each begins where the one before ends. What
    /// came of each is added to `outcomes`, in order; of those that are missing there nothing moved. The gate is held, shared, across the call.
    ///
    /// # Errors
    /// When the orders can't be given at all.
    fn move_out(&self, orders: &[Order], outcomes: &mut Vec<Outcome>) -> Result<Moved, MemoryError>;

    /// What was moved into the slot is in the books; it needs no watching there.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn settle_slot(&self, slot: Span) -> Result<(), MemoryError>;

    /// Reads whole pages standing in a slot.
    ///
    /// # Errors
    /// When they can't be read any more.
    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError>;

    /// Reads whole pages of this address space's own copy, which it inherited when it was forked, of a slot of the process it was forked
    /// from. For when that process is gone. `thread` is one that waits for a page, if one is known. What is missing there was a hole when
    /// it was moved, or wasn't moved yet and is in its place still: it reads as zeros and is not waited for.
    ///
    /// # Errors
    /// When the copy can't be read.
    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        let _ = (addr, out, thread);
        Err(MemoryError::Gone)
    }

    /// Drops what is left in the slots and makes them fit to be moved into again.
    ///
    /// # Errors
    /// When they can't be used again.
    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError>;

    /// The implementation behind the trait, for an embedder that knows its own.
    fn as_any(&self) -> &dyn std::any::Any;

    /// Readable when there are messages to [`read`](Self::read), if they come by a descriptor.
    fn messages(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Where what is known of it is kept for a successor, if anywhere.
    fn ledger(&self) -> Option<&Arc<Ledger>> {
        None
    }

    /// For a successor: reads the events that the process before has read and that aren't in its books. As after [`read`](Self::read)
    /// [`applied`](Self::applied) follows. Forks whose child `known` says it knows by the number of its descriptor are left out; returns how
    /// many were, which come before all others.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] when a child can't be taken up.
    fn unapplied(&self, known: &dyn Fn(i32) -> bool, batch: &mut Batch) -> Result<u32, MemoryError> {
        let _ = (known, batch);
        Ok(0)
    }

    /// For a successor: which pages of a slot hold something, after an order into it whose answer nobody will hear; nothing arrives there any
    /// more. `None` if the order's own event will say.
    ///
    /// # Errors
    /// When it can't be found out.
    fn moved_into(&self, slot: Span) -> Result<Option<Vec<bool>>, MemoryError> {
        let _ = slot;
        Ok(None)
    }

    /// Whether nothing is changing in the address space, for certain: every event of every change before was read.
    fn is_still(&self) -> bool {
        false
    }

    /// Readable once the process has exited, if that can be told.
    fn exit(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
