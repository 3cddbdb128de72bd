//! Reaching the own process's memory: moves by UFFDIO_MOVE into a staging area.

use crate::memory::{MANY_ORDERS, MemoryError, Moved, Order};
use crate::watched::{Reach, refused};
use std::os::fd::BorrowedFd;
use userswap_uffd::own::{madvise, mincore};
use userswap_uffd::page_size;
use userswap_uffd::{Advice, Error, Mapping, MoveMode, Outcome, Protection, RegisterMode, Span, Stop, Uffd};

/// Reaches memory of the process it lives in.
///
/// The staging area is a mapping of its own, read-write because a move wants that, and not inherited by forked children.
pub struct LocalReach {
    staging: Option<Mapping>,
}

impl LocalReach {
    /// With a staging area of `bytes`, a multiple of the page size.
    ///
    /// # Errors
    /// When the kernel has no room for it.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let staging = Mapping::new(bytes, Protection::READ_WRITE)?;
        // SAFETY: needed because the call can destroy memory; these two destroy nothing of this process's.
        unsafe { madvise(staging.span(), Advice::DontFork)? };
        // A transparent huge page under a slot would come whole with the first page read from a hole.
        // SAFETY: as above.
        unsafe { madvise(staging.span(), Advice::NoHugePage)? };
        Ok(Self { staging: Some(staging) })
    }
}

// SAFETY: a `LocalReach` is handed only address spaces whose managed ranges are a `PagedRegion`'s own mapping, or ranges for
// which the caller of an unsafe function vouched.
unsafe impl Reach for LocalReach {
    fn resident(&self, span: Span, present: &mut Vec<bool>) -> Result<(), MemoryError> {
        mincore(span, present).map_err(|error| refused("looking at", span, error))
    }

    fn slot_area(&self) -> Option<Span> {
        self.staging.as_ref().map(Mapping::span)
    }

    fn most_orders(&self) -> usize {
        MANY_ORDERS
    }

    fn move_out(
        &self,
        uffd: &Uffd,
        orders: &[Order],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Moved, MemoryError> {
        let slot = Order::destination(orders)?;
        // SAFETY: needed because missing pages of the slot would be ours to fill; it is our own staging area.
        unsafe { uffd.register(slot, RegisterMode::MISSING) }
            .map_err(|error| refused("registering", slot, error))?;
        let mode = MoveMode { dont_wake: true, allow_src_holes: true };
        // SAFETY: needed because the pages vanish. The range is managed and registered; the slot is ours and empty.
        outcomes.extend(orders.iter().map(|order| unsafe { move_to_slot(uffd, order.from, order.to, mode) }));
        Ok(Moved::Now)
    }

    fn read_slot(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let inside = self
            .staging
            .as_ref()
            .map(Mapping::span)
            .filter(|staging| staging.contains(addr) && staging.end() - addr >= out.len() as u64);
        if inside.is_none() {
            return Err(MemoryError::Gone);
        }
        let from =
            std::ptr::with_exposed_provenance::<u8>(usize::try_from(addr).map_err(|_| MemoryError::Gone)?);
        // SAFETY: needed because pages in a slot are memory no reference of Rust's knows. The range lies in our staging
        // mapping, mapped readable for as long as we live; the slot is held, so nobody moves into it or empties it meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn empty_slots(&self, slots: &[Span]) -> Result<(), MemoryError> {
        for slot in slots {
            // SAFETY: needed because it destroys what is there: pages in slots nobody stands in any more.
            unsafe { madvise(*slot, Advice::DontNeed) }.map_err(|error| refused("emptying", *slot, error))?;
        }
        Ok(())
    }

    fn child(&self) -> Self {
        Self { staging: None }
    }

    fn exit(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Moves pages of this process's own memory to a slot until it is done or the kernel says why not. A page that a fork left shared in name only is made exclusive
/// and tried once more.
///
/// # Safety
/// The pages vanish from where the program has them: the range must be registered, so that whoever touches it has them brought back; and nothing may be in the
/// slot, or be put there by others.
pub(crate) unsafe fn move_to_slot(uffd: &Uffd, from: Span, to: u64, mode: MoveMode) -> Outcome {
    let (mut done, len) = (0, from.len());
    let mut unshared_at = None;
    loop {
        // SAFETY: needed because the pages vanish; the caller's promise, for what is left of them.
        let outcome = unsafe { uffd.move_to_empty(to + done, from.start() + done, len - done, mode) };
        done += outcome.done;
        match outcome.stop {
            Some(Stop::Pinned) if unshared_at != Some(done) && unshare(from.start() + done) => {
                unshared_at = Some(done);
            }
            stop => return Outcome { done, stop },
        }
    }
}

/// Write-faults the page in place, which makes it this process's alone if no other has it.
fn unshare(addr: u64) -> bool {
    Span::new(addr, page_size() as u64)
        // SAFETY: needed because madvise can destroy memory; this advice changes no byte.
        .is_ok_and(|page| unsafe { madvise(page, Advice::PopulateWrite) }.is_ok())
}
