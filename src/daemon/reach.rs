//! Reaching a client's memory: what its userfaultfd can't do, its agent is told to, or another system call does.
#![allow(unsafe_code)]

use super::divisions::Divisions;
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use userswap_engine::memory::{MANY_ORDERS, MemoryError, Moved, Order};
use userswap_engine::watched::{Reach, refused};
use userswap_ipc::extension::{DropHow, MAX_DROPS, MoveRange, MoveStop, Mover};
use userswap_ipc::{Abilities, ClientLink, LinkError};
use userswap_uffd::{Outcome, Pagemap, PagemapEntry, Process, RegisterMode, Span, Stop, Uffd, page_bytes};

/// Reaches the memory of a process at the other end of a connection.
#[derive(Default)]
pub(crate) struct ClientReach {
    /// Empty for a forked child whose agent hasn't called: it can't be told anything.
    told: OnceLock<Told>,
}

/// A process that orders can be given to.
pub(crate) struct Told {
    pub(crate) link: Arc<ClientLink>,
    pub(crate) process: Process,
    pub(crate) pagemap: Pagemap,
    /// Where slots are cut from.
    pub(crate) slots: Span,
    pub(crate) slot_pages: u32,
    /// Pages that would move if they were made the process's own again.
    pub(crate) was_shared: Mutex<Vec<Span>>,
    /// How far its mappings may still be divided.
    pub(super) divisions: Divisions,
}

impl ClientReach {
    /// Reaches a process by what it told.
    pub(crate) fn new(told: Told) -> Self {
        Self { told: OnceLock::from(told) }
    }

    /// The child's agent called. Whether this is the first time.
    pub(crate) fn tell(&self, told: Told) -> bool {
        self.told.set(told).is_ok()
    }

    /// The process, if it can be given orders.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.told.get().map(|told| &told.process)
    }

    /// Takes the pages that only need to be made the process's own again.
    pub(crate) fn take_was_shared(&self) -> Vec<Span> {
        self.told.get().map(|told| std::mem::take(&mut *told.was_shared.lock())).unwrap_or_default()
    }

    fn told(&self) -> Result<&Told, MemoryError> {
        self.told.get().ok_or(MemoryError::Gone)
    }
}

impl Told {
    /// What came of orders whose answer never came: once nothing can be moved into the slot any more, what is in it was moved.
    fn moved_unheard(
        &self,
        uffd: &Uffd,
        slot: Span,
        orders: &[Order],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), MemoryError> {
        uffd.unregister(slot).map_err(|error| refused("unregistering", slot, error))?;
        let entries = self.entries(slot)?;
        let mut entries = entries.iter();
        for order in orders {
            // In order, from the first on.
            let pages = entries.by_ref().take(usize::try_from(order.from.pages()).unwrap_or(0));
            let there: Vec<bool> = pages.map(|entry| entry.present() || entry.swapped()).collect();
            let moved = there.iter().take_while(|there| **there).count();
            outcomes.push(Outcome { done: moved as u64 * page_bytes(), stop: Some(Stop::Gone) });
        }
        Ok(())
    }

    /// Checks that pages stand in a slot: what isn't there would read as zeros. A client that moves by mremap(2) moves holes, too.
    fn stand(&self, addr: u64, len: usize) -> Result<(), MemoryError> {
        if !self.moves() {
            return Ok(());
        }
        let span = Span::new(addr, len as u64).map_err(|_| MemoryError::Gone)?;
        // A process that is gone has no page table.
        let entries = self.entries(span).map_err(|_| MemoryError::Gone)?;
        match entries.iter().position(|entry| !entry.present() && !entry.swapped()) {
            None => Ok(()),
            Some(page) => {
                let reason = format!("page {page} of what stood there is gone");
                tracing::error!(
                    pid = self.process.pid(),
                    ?span,
                    page,
                    "a slot is empty that a page stands in"
                );
                Err(MemoryError::Refused { doing: "reading a slot", span, reason })
            }
        }
    }

    /// What the page table says of a range.
    fn entries(&self, span: Span) -> Result<Vec<PagemapEntry>, MemoryError> {
        let mut entries = Vec::new();
        self.pagemap.entries(span, &mut entries).map_err(|error| refused("looking at", span, error))?;
        Ok(entries)
    }

    /// Whether its agent moves pages by UFFDIO_MOVE.
    fn moves(&self) -> bool {
        self.link.abilities().contains(Abilities::UFFD_MOVE)
    }
}

// SAFETY: needed by the trait's promise. Managed ranges belong to another process, whose memory no reference here knows.
unsafe impl Reach for ClientReach {
    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        let entries = self.told()?.entries(span)?;
        present.clear();
        // What the kernel has swapped out is its own business.
        present.extend(entries.iter().map(|entry| entry.present()));
        Ok(())
    }

    fn slot_area(&self) -> Option<Span> {
        self.told.get().map(|told| told.slots)
    }

    fn slot_pages(&self) -> Option<u32> {
        self.told.get().map(|told| told.slot_pages)
    }

    fn most_orders(&self) -> usize {
        // What is ordered by the contract is heard of piece by piece.
        if self.told.get().is_some_and(Told::moves) { MANY_ORDERS } else { 1 }
    }

    fn move_out(
        &self,
        uffd: &Uffd,
        orders: &[Order],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Moved, MemoryError> {
        let told = self.told()?;
        if !told.moves() {
            for order in orders {
                // At both ends of where it was, and of where it is.
                if !told.divisions.take(told.process.pid(), 4) {
                    return Err(MemoryError::Mappings { span: order.from });
                }
                told.link
                    .move_ptes(order.from, order.to)
                    .map_err(|error| unlinked("moving", order.from, &error))?;
            }
            return Ok(Moved::Ordered);
        }
        let slot = Order::destination(orders)?;
        // SAFETY: needed because its missing pages become ours to fill; it is the client's staging area, made for this.
        unsafe { uffd.register(slot, RegisterMode::MISSING) }
            .map_err(|error| refused("registering", slot, error))?;
        let range =
            |order: &Order| MoveRange { src: order.from.start(), len: order.from.len(), dest: order.to };
        let ranges: Vec<MoveRange> = orders.iter().map(range).collect();
        let reply = match told.link.move_ranges(Mover::UffdMove, &ranges) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(pid = told.process.pid(), %error, "a move went unanswered");
                told.moved_unheard(uffd, slot, orders, outcomes)?;
                return Ok(Moved::Now);
            }
        };
        for (order, result) in orders.iter().zip(&reply.results) {
            if result.stop == MoveStop::WasShared
                && let Ok(page) = Span::page_of(order.from.start() + result.moved)
            {
                told.was_shared.lock().push(page);
            }
            outcomes.push(Outcome { done: result.moved, stop: stop_of(result.stop) });
        }
        Ok(Moved::Now)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let told = self.told()?;
        told.stand(addr, out.len())?;
        match told.process.read_memory(addr, out) {
            Ok(read) if read == out.len() => Ok(()),
            Ok(_) => Err(MemoryError::Gone),
            Err(error) => {
                tracing::debug!(%error, "reading a slot");
                Err(MemoryError::Gone)
            }
        }
    }

    fn read_inherited(&self, addr: u64, out: &mut [u8], thread: Option<u32>) -> Result<(), MemoryError> {
        let thread = self.process().map(Process::pid).or(thread).ok_or(MemoryError::Gone)?;
        let span = Span::new(addr, out.len() as u64).map_err(|_| MemoryError::Gone)?;
        Process::read_untouched(thread, span, out)
            .map_err(|error| refused("reading what was inherited at", span, error))
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        let told = self.told()?;
        if told.moves() {
            for some in slots.chunks(MAX_DROPS) {
                told.link
                    .drop_areas(some, DropHow::DontNeed)
                    .map_err(|error| unlinked("emptying", some[0], &error))?;
            }
        } else {
            for slot in slots {
                // One-way, but in order: a later move into the slot comes after it.
                told.link.map_area(*slot).map_err(|error| unlinked("emptying", *slot, &error))?;
            }
        }
        Ok(())
    }

    fn may_divide(&self, span: Span) -> Result<(), MemoryError> {
        match self.told.get() {
            Some(told) if !told.divisions.take(told.process.pid(), 2) => Err(MemoryError::Mappings { span }),
            _ => Ok(()),
        }
    }

    fn child(&self) -> Self {
        Self::default()
    }

    fn moved_into(&self, uffd: &Uffd, slot: Span) -> Result<Option<Vec<bool>>, MemoryError> {
        let told = self.told()?;
        if !told.moves() {
            return Ok(None);
        }
        uffd.unregister(slot).map_err(|error| refused("unregistering", slot, error))?;
        let entries = told.entries(slot)?;
        Ok(Some(entries.iter().map(|entry| entry.present() || entry.swapped()).collect()))
    }

    fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.told.get().map(|told| told.process.as_fd())
    }
}

fn stop_of(stop: MoveStop) -> Option<Stop> {
    match stop {
        MoveStop::None => None,
        MoveStop::Present => Some(Stop::Present),
        MoveStop::Busy => Some(Stop::Busy),
        MoveStop::Unmapped => Some(Stop::Unmapped),
        MoveStop::Pinned | MoveStop::WasShared => Some(Stop::Pinned),
        MoveStop::Hole => Some(Stop::Hole),
        MoveStop::NoMemory => Some(Stop::NoMemory),
        MoveStop::Refused => Some(Stop::Invalid),
    }
}

fn unlinked(doing: &'static str, span: Span, error: &LinkError) -> MemoryError {
    match error {
        LinkError::Closed => MemoryError::Gone,
        other => MemoryError::Refused { doing, span, reason: other.to_string() },
    }
}
