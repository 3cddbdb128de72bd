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

use crate::core::{Generation, Kept, Lost, PageIndex, PageState, Piece, SlotId, SlotPage, Transition};
use crate::directory::{Directory, Region, bytes_of};
use crate::memory::{MemoryError, Moved, Order};
use crate::slots::{Phase, Standing};
use crate::space::Space;
use std::sync::Arc;
use std::time::Duration;
use userswap_store::{Handle, Page, StoreError};
use userswap_uffd::{Outcome, Span, Stop, page_size};

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

/// How often a move that an event stands before is tried again before the range is left for another time.
const BUSY_TRIES: u32 = 200;

/// One mover's buffers, and the move it is making.
pub struct EvictWork {
    standing: Option<(SlotId, Standing)>,
    piece: Piece,
    resident: Vec<bool>,
    resident_from: PageIndex,
    bytes: Vec<u8>,
    /// Offsets in the slot, with the generations, of the pages being written.
    writing: Vec<(u32, Generation)>,
    handles: Vec<Option<Handle>>,
    /// What came of the move that was asked for, until it is recorded.
    asked: Option<Result<Moved, MemoryError>>,
    lost: Lost,
    /// Pages to move at once.
    reach: u32,
}

impl EvictWork {
    /// Buffers for slots of `slot_pages` pages.
    pub fn new(slot_pages: u32) -> Self {
        Self {
            standing: None,
            piece: Piece { first: PageIndex(0), pages: 0, addr: 0 },
            resident: Vec::new(),
            resident_from: PageIndex(0),
            bytes: vec![0; slot_pages as usize * page_size()],
            writing: Vec::with_capacity(slot_pages as usize),
            handles: Vec::with_capacity(slot_pages as usize),
            asked: None,
            lost: Lost::default(),
            reach: slot_pages,
        }
    }

    /// Asks the kernel which of a part's pages are present.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn look(&mut self, space: &Space, piece: Piece) -> Result<bool, MemoryError> {
        let Some(span) = piece_span(piece) else { return Ok(false) };
        space.memory().resident(span, &mut self.resident)?;
        self.resident_from = piece.first;
        Ok(self.resident.iter().any(|present| *present))
    }

    /// Chooses the next run of resident pages between `from` and `to` and a slot for it. Gate held shared, and on until
    /// [`order`](Self::order) returned. `Ok(None)`: nothing (more) to move.
    ///
    /// # Errors
    /// [`EvictError::NoSlot`].
    pub fn plan(
        &mut self,
        space: &Space,
        region: &Arc<Region>,
        from: PageIndex,
        to: PageIndex,
    ) -> Result<Option<Piece>, EvictError> {
        let slot = space.pool.take(space.memory()).ok_or(EvictError::NoSlot)?;
        let standing =
            Standing { slot, region: Arc::clone(region), first: from, pages: 0, count: 0, serial: 0 };
        let id = space.names.lock().name(standing.clone());
        let (resident, base) = (&self.resident, self.resident_from);
        let present = |page: PageIndex| {
            page.0.checked_sub(base.0).and_then(|at| resident.get(at as usize)).copied().unwrap_or(false)
        };
        let planned = region.lock().plan_move(from, to, self.reach, id, &present);
        let Some(piece) = planned else {
            space.names.lock().forget(id);
            return Ok(None);
        };
        let standing = Standing { first: piece.first, pages: piece.pages, count: piece.pages, ..standing };
        let standing = space.names.lock().fill(id, standing);
        self.piece = piece;
        self.standing = Some((id, standing));
        Ok(Some(piece))
    }

    /// Has the planned run moved: [`ask`](Self::ask) and [`answer`](Self::answer).
    ///
    /// # Errors
    /// When the order couldn't be given; the pages are their owner's as before.
    pub fn order(&mut self, space: &Space, moved: &mut MovedOut) -> Result<Answer, EvictError> {
        self.ask(space);
        self.answer(space, moved)
    }

    /// Asks for the planned run to be moved. The gate is held, and on until the [`answer`](Self::answer) was recorded.
    pub fn ask(&mut self, space: &Space) {
        let Some((_, standing)) = &self.standing else { return };
        let Some(from) = piece_span(self.piece) else { return };
        self.asked = Some(match watched(space, &standing.region, self.piece) {
            Ok(None) => space.memory().move_out(Order { from, to: standing.slot.span().start() }),
            Ok(Some(stop)) => Ok(Moved::Now(Outcome { done: 0, stop: Some(stop) })),
            Err(error) => Err(error),
        });
    }

    /// Records what came of the planned run, as far as that is known.
    ///
    /// # Errors
    /// When the order couldn't be given; the pages are their owner's as before.
    pub fn answer(&mut self, space: &Space, moved: &mut MovedOut) -> Result<Answer, EvictError> {
        let Some(answer) = self.asked.take() else { return Ok(Answer::Moved) };
        match answer {
            Ok(Moved::Ordered) => Ok(Answer::Ordered),
            Ok(Moved::Now(outcome)) => {
                // Before its pages can be recalled from it: who reads a hole in a slot that is still registered waits for us.
                let slot = self.standing.as_ref().map(|(_, standing)| standing.slot.span());
                let settled = slot.map_or(Ok(()), |slot| space.memory().settle_slot(slot));
                let done =
                    u32::try_from(outcome.done / page_size() as u64).unwrap_or(0).min(self.piece.pages);
                self.record(space, done);
                if done > 0 {
                    space.saw_still();
                }
                moved.moved += u64::from(done);
                settled?;
                Ok(match outcome.stop {
                    None => {
                        self.reach = (self.reach * 2).min(space.pool.slot_pages());
                        Answer::Moved
                    }
                    Some(Stop::Busy) => Answer::Busy { done },
                    // Nothing more can move.
                    Some(Stop::Gone) => return Err(MemoryError::Gone.into()),
                    // More than one mapping, or none.
                    Some(Stop::Unmapped | Stop::Invalid) if self.piece.pages > 1 => {
                        self.reach = self.piece.pages / 2;
                        Answer::Divide { done }
                    }
                    Some(stop) => {
                        if stop == Stop::Pinned {
                            moved.pinned += 1;
                            space.counts().hit(Transition::Pinned);
                        }
                        Answer::Stopped { done }
                    }
                })
            }
            Err(error) => {
                self.record(space, 0);
                Err(error.into())
            }
        }
    }

    /// Enters that the first `done` pages of the run moved and the others didn't.
    fn record(&mut self, space: &Space, done: u32) {
        let Some((id, standing)) = &self.standing else { return };
        let (id, left) = (*id, self.piece.pages - done);
        {
            let mut shard = standing.region.lock();
            shard.moved(self.piece.first, done, || space.next_generation(), &mut self.lost);
            shard.not_moved(self.piece.first.plus(done), left);
        }
        standing.slot.settle(if done > 0 { Phase::Ready } else { Phase::Failed });
        if left > 0 {
            space.names.lock().leave_many(id, left);
        }
        space.release(&mut self.lost);
    }

    /// Waits for a run that was ordered. Nothing held.
    ///
    /// # Errors
    /// [`EvictError::Unanswered`]: the pages are marked as moving still, since the client may yet move them; it has to go.
    pub fn arrived(&mut self, moved: &mut MovedOut) -> Result<(), EvictError> {
        let Some((_, standing)) = &self.standing else { return Ok(()) };
        match standing.slot.wait_settled(ORDER_PATIENCE) {
            Phase::Ready => {
                moved.moved += u64::from(self.piece.pages);
                Ok(())
            }
            _ => Err(EvictError::Unanswered(standing.slot.span())),
        }
    }

    /// Takes up a slot whose pages are to be written out.
    pub fn take_up(&mut self, id: SlotId, standing: Standing) {
        self.standing = Some((id, standing));
    }

    /// Reads what stands in the slot and puts it in the store. Nothing held. [`commit`](Self::commit) follows.
    ///
    /// # Errors
    /// When the slot can't be read or the store doesn't take it; the pages stand where they stood.
    pub fn write(&mut self, space: &Space) -> Result<(), EvictError> {
        self.writing.clear();
        // Else, where the slot can't be read, what was written before would be taken for this.
        self.handles.clear();
        let Some((id, standing)) = &self.standing else { return Ok(()) };
        let region = {
            let shard = standing.region.lock();
            for offset in 0..standing.pages {
                let page = standing.first.plus(offset);
                if shard.state(page) == PageState::Standby(SlotPage { slot: *id, offset }) {
                    self.writing.push((offset, shard.generation(page)));
                }
            }
            // Somebody else may have written this slot out since it was chosen, and its name stand for another.
            if space.names.lock().get(*id).is_none_or(|now| now.serial != standing.serial) {
                self.writing.clear();
            }
            shard.id()
        };
        let (Some(&(low, _)), Some(&(high, _))) = (self.writing.first(), self.writing.last()) else {
            return Ok(());
        };
        let page = page_size();
        let bytes = &mut self.bytes[..(high - low + 1) as usize * page];
        if let Err(gone) = standing.slot.read(low, bytes) {
            // A copy is what a child has. What can't be read of one's own slot stays where it stands.
            if standing.slot.is_of(&space.pool) {
                self.writing.clear();
                return Err(gone.into());
            }
            self.writing.retain(|&(offset, _)| {
                let at = (offset - low) as usize * page;
                let (slot, bytes) = (&standing.slot, &mut bytes[at..at + page]);
                slot.read_in_child(offset, bytes, space.memory().as_ref(), None).is_ok()
            });
            if self.writing.is_empty() {
                return Err(gone.into());
            }
        }
        let pages: Vec<Page<'_>> = self
            .writing
            .iter()
            .map(|&(offset, generation)| {
                let at = (offset - low) as usize * page;
                let key = space.key(region, standing.first.plus(offset), generation);
                Page { key, bytes: &bytes[at..at + page] }
            })
            .collect();
        self.handles.resize(pages.len(), None);
        space.store().put(&pages, &mut self.handles).inspect_err(|_| self.writing.clear())?;
        Ok(())
    }

    /// Makes the written objects the pages, where these still stand as they did. Gate held shared. The slot is let go.
    pub fn commit(&mut self, space: &Space, moved: &mut MovedOut) {
        let Some((id, standing)) = self.standing.take() else { return };
        let mut left = 0;
        {
            let mut shard = standing.region.lock();
            for (&(offset, generation), handle) in self.writing.iter().zip(&self.handles) {
                let Some(handle) = *handle else { continue };
                let at = SlotPage { slot: id, offset };
                match shard.commit(standing.first.plus(offset), at, generation, handle) {
                    Kept::Committed => left += 1,
                    Kept::Stale => self.lost.handles.push((handle, false)),
                }
            }
        }
        self.writing.clear();
        moved.stored += u64::from(left);
        if left > 0 {
            space.names.lock().leave_many(id, left);
        }
        space.release(&mut self.lost);
    }

    /// How the move of the run, or into the slot taken up, stands.
    pub fn phase(&self) -> Option<Phase> {
        self.standing.as_ref().map(|(_, standing)| standing.slot.phase())
    }

    /// Lets go of the slot without writing it out.
    pub fn leave_standing(&mut self) {
        self.standing = None;
    }

    /// The planned run.
    pub fn planned(&self) -> Piece {
        self.piece
    }

    /// Where the planned run ends.
    pub fn end(&self) -> PageIndex {
        self.piece.first.plus(self.piece.pages)
    }
}

/// What came of a planned run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All of it moved.
    Moved,
    /// An event stands before the move; the first `done` pages went. Let the gate go and plan again.
    Busy {
        /// Pages that moved.
        done: u32,
    },
    /// The first `done` pages moved, and the others can't in one go: let the gate go and plan again, a shorter run.
    Divide {
        /// Pages that moved.
        done: u32,
    },
    /// The page after the first `done` can't move.
    Stopped {
        /// Pages that moved.
        done: u32,
    },
    /// A client was told to; its REMAP event will say. Let the gate go and wait with [`EvictWork::arrived`].
    Ordered,
}

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
    /// It is written out at once.
    Write,
    /// It is left to be written out soon, by whoever has time.
    Queue,
}

impl From<Keep> for Then {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Standby => Self::Leave,
            Keep::Stored => Self::Write,
        }
    }
}

impl Space {
    /// Moves out what is resident of the regions in `span`, at most `most` pages. Faults are served all the while.
    ///
    /// # Errors
    /// When it had to stop early; what was done by then stays done, and nothing is lost.
    pub fn move_out(&self, span: Span, most: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        let moved = self.move_out_by(&mut EvictWork::new(self.pool.slot_pages()), span, most, keep.into())?;
        self.reclaim_slots()?;
        Ok(moved)
    }

    /// As [`move_out`](Self::move_out), with buffers for slots of this address space's kind that the caller keeps. The
    /// slots that were written out are left to be [emptied](Self::reclaim_slots).
    pub(crate) fn move_out_by(
        &self,
        work: &mut EvictWork,
        span: Span,
        most: u64,
        then: Then,
    ) -> Result<MovedOut, EvictError> {
        let _mover = self.mover.lock();
        let mut moved = MovedOut::default();
        for part in self.live_parts(span) {
            if moved.moved >= most {
                break;
            }
            let done = self.move_part(work, &part.region, part.piece, most, then, &mut moved);
            // What an error left in hand holds its slot.
            work.leave_standing();
            done?;
        }
        Ok(moved)
    }

    fn move_part(
        &self,
        work: &mut EvictWork,
        region: &Arc<Region>,
        piece: Piece,
        most: u64,
        then: Then,
        moved: &mut MovedOut,
    ) -> Result<(), EvictError> {
        if !work.look(self, piece)? {
            return Ok(());
        }
        let (mut from, to) = (piece.first, piece.first.plus(piece.pages));
        let mut busy = 0;
        while from < to && moved.moved < most {
            self.make_room(work, moved)?;
            let directory = self.shared();
            if directory.is_closed() {
                return Err(MemoryError::Gone.into());
            }
            if !still_there(&directory, region, piece) {
                return Ok(());
            }
            let Some(planned) = work.plan(self, region, from, to)? else { return Ok(()) };
            let answer = work.order(self, moved);
            drop(directory);
            self.after_move();
            match answer? {
                Answer::Moved => from = work.end(),
                Answer::Divide { done } => from = planned.first.plus(done),
                Answer::Stopped { done } => from = planned.first.plus(done + 1),
                Answer::Busy { done } => {
                    from = planned.first.plus(done);
                    // The event's thread and the handler that reads it need to run.
                    busy += 1;
                    if busy > BUSY_TRIES {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_micros(50));
                }
                Answer::Ordered => {
                    work.arrived(moved)?;
                    from = work.end();
                }
            }
            match then {
                Then::Write => self.write_standing(work, moved)?,
                Then::Queue => {
                    if let Some((id, standing)) =
                        work.standing.take().filter(|(_, at)| at.slot.phase() == Phase::Ready)
                    {
                        self.writes().push(id, standing);
                    }
                }
                Then::Leave => work.leave_standing(),
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
            Some(Stop::Unmapped) if !tried => register(space, region, run)?,
            Some(stop) => return Ok(Some(stop)),
        }
    }
    Ok(Some(Stop::Unmapped))
}

/// Registers what the run is mapped in one piece with: a mapping registered in parts can't be grown or moved any more.
fn register(space: &Space, region: &Region, run: Piece) -> Result<(), MemoryError> {
    let piece = {
        let mut shard = region.lock();
        shard.set_registered(true);
        shard.mapped().iter().find(|piece| run.first.0.wrapping_sub(piece.first.0) < piece.pages).copied()
    };
    match piece.and_then(piece_span).map(|span| space.memory().register(span)) {
        Some(Err(MemoryError::Gone)) => Err(MemoryError::Gone),
        // Nothing we can watch is mapped there; the second look says so.
        _ => Ok(()),
    }
}

/// Whether a part is where it was found. The gate is held.
pub fn still_there(directory: &Directory, region: &Arc<Region>, piece: Piece) -> bool {
    directory.find(piece.addr).is_some_and(|(found, page)| Arc::ptr_eq(found, region) && page == piece.first)
}

fn piece_span(piece: Piece) -> Option<Span> {
    Span::new(piece.addr, bytes_of(piece.pages)).ok()
}
