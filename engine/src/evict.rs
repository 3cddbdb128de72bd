//! Moving out: from a program's memory by way of a slot into the store.
//!
//! ```text
//!  mover held ────────────────────────────────────────────────────────────────────────────────────────────────▶
//!     gate shared                                      nothing held         gate shared
//!  ─▶ register ─▶ plan ─▶ move ─▶ record ─▶ settle ──▶ read, put ─────────▶ commit ─▶ empty the slot
//!                  │       │         └ Standby             └ the store has it: only now may the memory go
//!                  │       └ a cooperating client is ordered to; its REMAP event is the record
//!                  └ pages are marked: a fault on one waits for the record
//! ```
//!
//! Each step can be undone: a page that wasn't moved is its owner's as before; one that stands in a slot comes back from
//! there, also while it is being written; an object written for a page that left meanwhile is freed.

mod back;
mod work;

use crate::core::Piece;
use crate::directory::{Directory, Region, bytes_of};
use crate::memory::MemoryError;
use crate::space::Space;
pub(crate) use back::ON_THE_WAY;
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap_store::StoreError;
use userswap_uffd::{Span, Stop, page_bytes};
pub use work::{Answer, EvictWork};

/// Pages brought back together when a whole range is.
pub(crate) const AROUND: u32 = 64;

/// What a move-out did, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MovedOut {
    /// Moved into slots.
    pub moved: u64,
    /// Written to the store.
    pub stored: u64,
    /// Left alone because they are pinned, or shared with a forked relative.
    pub pinned: u64,
}

impl std::ops::AddAssign for MovedOut {
    fn add_assign(&mut self, more: Self) {
        self.moved += more.moved;
        self.stored += more.stored;
        self.pinned += more.pinned;
    }
}

/// Why moving out stopped early. Nothing is lost: pages are where they were, or stand in slots.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The address space refused or is gone.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The store didn't take the pages; they stand in their slot.
    #[error("writing pages out")]
    Store(#[from] StoreError),
    /// Every slot is in use, by pages the store didn't take or that children still need.
    #[error("every swap slot is in use")]
    NoSlot,
    /// A move order was not carried out in time.
    #[error("the client did not move {0:?} within the time allowed")]
    Unanswered(Span),
}

/// How long a client may take to carry out a one-way move order.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// How long a move that an event stands before is tried again before the range is left for another time. On a crowded machine the client's agent may be emptying
/// a slot that is registered again already, and the handler that is to read of it wait for a CPU.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// The shortest and the longest time between two tries.
const BUSY_REST: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));

/// Whether moved pages go straight into the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// They wait in their slots, as a second chance, while there are slots enough.
    Standby,
    /// They are written out at once.
    Stored,
}

/// What is done with a slot that was moved into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// It is left as it is.
    Leave,
    /// It is left to be written out soon, by whoever has time.
    Queue,
    /// The engine's workers are called, too: somebody waits until all of it is out. Else they would be in the way of those who serve faults.
    Call,
}

/// Pages, at most 64 pages apart, that are moved out together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lot {
    /// Where they are.
    pub(crate) span: Span,
    /// Which of the range's pages, the lowest bit for the first.
    pub(crate) pages: u64,
}

impl Lot {
    fn has(&self, addr: u64) -> bool {
        let page = addr.wrapping_sub(self.span.start()) / page_bytes();
        page < u64::from(u64::BITS) && self.pages >> page & 1 == 1
    }
}

impl Space {
    /// Moves out what is resident of the regions in `span`, at most `most` pages. Faults are served all the while.
    ///
    /// # Errors
    /// When it had to stop early; what was done by then stays done, and nothing is lost.
    pub fn move_out(&self, span: Span, most: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        let mut work = EvictWork::new(self.pool.slot_pages());
        let moved = self.move_out_by(&mut work, span, most, keep);
        let stored = self.write_all(&mut work);
        let (mut moved, stored) = (moved?, stored?);
        moved.stored += stored;
        self.reclaim_slots()?;
        Ok(moved)
    }

    /// As [`move_out`](Self::move_out), with buffers for slots of this address space's kind that the caller keeps. The last slots are left to be
    /// [written](Self::write_all) and [emptied](Self::reclaim_slots).
    pub(crate) fn move_out_by(
        &self,
        work: &mut EvictWork,
        span: Span,
        most: u64,
        keep: Keep,
    ) -> Result<MovedOut, EvictError> {
        let then = if keep == Keep::Stored { Then::Call } else { Then::Leave };
        let _mover = self.mover.lock();
        self.call_off_ahead();
        let mut moved = MovedOut::default();
        work.begin();
        work.begin_lot();
        let mut done = Ok(());
        for part in self.live_parts(span) {
            work.want(self, &part, |_| true)?;
            // A slot has room for several small ones.
            if work.has_wants() && work.looked_at() >= self.pool.slot_pages() as usize {
                done = self.move_wanted(work, most, then, &mut moved);
                work.end_wants();
            }
            if done.is_err() || moved.moved >= most {
                break;
            }
        }
        let done = done.and_then(|()| self.move_wanted(work, most, then, &mut moved));
        work.end_wants();
        // What an error left in hand holds its slot.
        work.leave_standing();
        done.map(|()| moved)
    }

    /// Moves out what is resident of each lot. How much of each went, [`work`](EvictWork::moved_of) tells. The last slots are left as by
    /// [`move_out_by`](Self::move_out_by).
    pub(crate) fn move_out_lots(
        &self,
        work: &mut EvictWork,
        lots: impl Iterator<Item = Lot>,
        keep: Keep,
    ) -> Result<MovedOut, EvictError> {
        let then = if keep == Keep::Stored { Then::Queue } else { Then::Leave };
        let _mover = self.mover.lock();
        let mut moved = MovedOut::default();
        work.begin();
        for lot in lots {
            work.begin_lot();
            for part in self.live_parts(lot.span) {
                work.want(self, &part, |addr| lot.has(addr))?;
            }
        }
        let done = self.move_wanted(work, u64::MAX, then, &mut moved);
        work.end_wants();
        work.leave_standing();
        done.map(|()| moved)
    }

    /// Moves what `work` wants, at most `most` pages in all.
    fn move_wanted(
        &self,
        work: &mut EvictWork,
        most: u64,
        then: Then,
        moved: &mut MovedOut,
    ) -> Result<(), EvictError> {
        let (mut busy, mut rest) = (None, BUSY_REST.0);
        while work.has_wants() && moved.moved < most {
            self.make_room(work, moved)?;
            let directory = self.shared();
            if directory.is_closed() {
                return Err(MemoryError::Gone.into());
            }
            if !work.plan(self, &directory, most - moved.moved)? {
                return Ok(());
            }
            work.ask(self);
            let answer = work.answer(self, moved);
            drop(directory);
            self.after_move();
            match answer? {
                Answer::Recorded => (busy, rest) = (None, BUSY_REST.0),
                Answer::Busy => {
                    // The event's thread and the handler that reads it need to run.
                    if busy.get_or_insert_with(Instant::now).elapsed() > BUSY_PATIENCE {
                        return Ok(());
                    }
                    std::thread::sleep(rest);
                    rest = (rest * 2).min(BUSY_REST.1);
                }
                Answer::Ordered => work.arrived(moved)?,
            }
            if then == Then::Leave {
                work.leave_standing();
            } else if let Some((id, standing)) = work.take_filled() {
                self.queue_write(id, standing, then == Then::Call);
                self.write_ahead(work)?;
            }
        }
        Ok(())
    }

    /// Faults that waited for a move's record are decided again, and what a handler left unread is read.
    fn after_move(&self) {
        if self.has_parked() || self.has_unread() {
            self.kick();
        }
    }
}

/// Makes sure that a run is watched, so that what moves out of it is missed; says why not. Gate held.
///
/// The books can't tell: a program may unmap and map anew what isn't registered, and nobody hears of it. But a zero page is
/// refused because a page is there only if all of the run is one registered mapping and nothing is changing; from then on any
/// change is told, and the move refused until the event is in the books. (Where there is a hole the zero page is right.)
fn watched(space: &Space, region: &Region, run: Piece) -> Result<Option<Stop>, MemoryError> {
    let Some(span) = piece_span(run) else { return Ok(Some(Stop::Invalid)) };
    for tried in [false, true] {
        let probe = space.memory().zero(span);
        match probe.stop {
            _ if probe.done > 0 => return Ok(None),
            None | Some(Stop::Present) => return Ok(None),
            Some(Stop::Gone) => return Err(MemoryError::Gone),
            Some(Stop::Unmapped) if !tried => {
                if let Some(stop) = register(space, region, run)? {
                    return Ok(Some(stop));
                }
            }
            Some(stop) => return Ok(Some(stop)),
        }
    }
    Ok(Some(Stop::Unmapped))
}

/// Registers what the run is mapped in one piece with: a mapping registered in parts can't be grown or moved any more.
fn register(space: &Space, region: &Region, run: Piece) -> Result<Option<Stop>, MemoryError> {
    let piece = {
        let mut shard = region.lock();
        shard.set_registered(true);
        shard.mapped().iter().find(|piece| run.first.0.wrapping_sub(piece.first.0) < piece.pages).copied()
    };
    match piece.and_then(piece_span).map(|span| space.memory().register(span)) {
        Some(Err(MemoryError::Gone)) => Err(MemoryError::Gone),
        Some(Err(MemoryError::Mappings { .. })) => Ok(Some(Stop::NoMemory)),
        // Nothing we can watch is mapped there; the second look says so.
        _ => Ok(None),
    }
}

/// Whether a part is where it was found. The gate is held.
pub fn still_there(directory: &Directory, region: &Arc<Region>, piece: Piece) -> bool {
    directory.find(piece.addr).is_some_and(|(found, page)| Arc::ptr_eq(found, region) && page == piece.first)
}

fn piece_span(piece: Piece) -> Option<Span> {
    Span::new(piece.addr, bytes_of(piece.pages)).ok()
}
