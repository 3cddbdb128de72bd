//! One mover's buffers, and the steps it goes: what is to move, the order, the record, the write, the commit.

use super::{EvictError, MovedOut, ORDER_PATIENCE, piece_span, still_there, watched};
use crate::core::{
    Generation, Kept, Lost, PageIndex, PageState, Piece, RegionId, SlotId, SlotPage, Transition,
};
use crate::directory::{Directory, Part, Region};
use crate::memory::{MemoryError, Moved, Order};
use crate::slots::{Phase, Run, Standing};
use crate::space::Space;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use userswap_store::{Handle, Page, StoreError};
use userswap_uffd::{Outcome, Stop, page_bytes, page_size};

/// One mover's buffers, and the slot it fills or writes out.
pub struct EvictWork {
    wants: VecDeque<Want>,
    /// Pages that moved, of each lot that was wanted.
    tally: Vec<u64>,
    resident: Vec<bool>,
    looked: Vec<bool>,
    standing: Option<(SlotId, Standing)>,
    /// Where each of the standing runs is, and what it is part of.
    planned: Vec<(Piece, Want)>,
    orders: Vec<Order>,
    outcomes: Vec<Outcome>,
    /// What came of the orders that were given, until it is recorded.
    asked: Option<Result<Moved, MemoryError>>,
    bytes: Vec<u8>,
    writing: Vec<Writing>,
    handles: Vec<Option<Handle>>,
    lost: Lost,
    /// Pages to move at once.
    reach: u32,
}

/// A part of a region that is to move.
#[derive(Clone)]
struct Want {
    region: Arc<Region>,
    /// Where it was found.
    piece: Piece,
    /// What is left of it.
    from: PageIndex,
    to: PageIndex,
    /// Where in `resident` its first page is.
    at: usize,
    /// Whose pages these are, for the tally.
    lot: usize,
}

/// A page that is being written to the store.
#[derive(Clone, Copy)]
struct Writing {
    run: usize,
    offset: u32,
    generation: Generation,
}

/// Pages read and compressed together: so that they are in the processor's cache still when they are compressed.
const TOGETHER: u32 = 16;

/// What came of orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is recorded. What didn't move, though it may, is wanted still.
    Recorded,
    /// The same, and an event stood before some of it: let the gate go before the next order.
    Busy,
    /// A client was told to; its REMAP event will say. Let the gate go and wait with [`EvictWork::arrived`].
    Ordered,
}

impl EvictWork {
    /// Buffers for slots of `slot_pages` pages.
    pub fn new(slot_pages: u32) -> Self {
        Self {
            wants: VecDeque::new(),
            tally: Vec::new(),
            resident: Vec::new(),
            looked: Vec::new(),
            standing: None,
            planned: Vec::new(),
            orders: Vec::new(),
            outcomes: Vec::new(),
            asked: None,
            bytes: vec![0; TOGETHER as usize * page_size()],
            writing: Vec::with_capacity(slot_pages as usize),
            handles: Vec::with_capacity(slot_pages as usize),
            lost: Lost::default(),
            reach: slot_pages,
        }
    }

    // ---- what is to move ----

    /// Nothing is wanted yet, and nothing has moved.
    pub fn begin(&mut self) {
        self.end_wants();
        self.tally.clear();
    }

    /// What is wanted from here on is counted by itself.
    pub fn begin_lot(&mut self) {
        self.tally.push(0);
    }

    /// Wants the pages of a part that are in memory, and of those the ones at addresses that are `chosen`.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn want(
        &mut self,
        space: &Space,
        part: &Part,
        chosen: impl Fn(u64) -> bool,
    ) -> Result<(), MemoryError> {
        let Some(span) = part.span() else { return Ok(()) };
        space.memory().resident(span, &mut self.looked)?;
        let at = self.resident.len();
        let addresses = (0..).map(|page: u64| span.start() + page * page_bytes());
        self.resident.extend(self.looked.iter().zip(addresses).map(|(is, addr)| *is && chosen(addr)));
        if self.resident[at..].contains(&true) {
            let (region, piece, lot) = (Arc::clone(&part.region), part.piece, self.tally.len().max(1) - 1);
            let (from, to) = (piece.first, piece.first.plus(piece.pages));
            self.wants.push_back(Want { region, piece, from, to, at, lot });
        }
        Ok(())
    }

    /// Whether anything is wanted still.
    pub fn has_wants(&self) -> bool {
        !self.wants.is_empty()
    }

    /// Pages that were looked at for what is wanted.
    pub(crate) fn looked_at(&self) -> usize {
        self.resident.len()
    }

    /// Nothing is wanted any more.
    pub fn end_wants(&mut self) {
        self.wants.clear();
        self.resident.clear();
    }

    /// How many pages of each lot moved.
    pub(crate) fn moved_of(&self) -> &[u64] {
        &self.tally
    }

    // ---- moving ----

    /// Chooses runs of what is wanted, at most `most` pages, and a slot for them. Gate held shared, and on until
    /// [`answer`](Self::answer) returned. `false`: nothing (more) to move.
    ///
    /// # Errors
    /// [`EvictError::NoSlot`].
    pub fn plan(&mut self, space: &Space, directory: &Directory, most: u64) -> Result<bool, EvictError> {
        let slot = space.pool.take(space.memory()).ok_or(EvictError::NoSlot)?;
        let room = space.pool.slot_pages().min(u32::try_from(most).unwrap_or(u32::MAX));
        let mut standing = Standing::empty(slot);
        let id = space.names.lock().name(standing.clone());
        self.planned.clear();
        while standing.runs.len() < space.memory().most_orders() && standing.end() < room {
            let Some(want) = self.wants.front_mut() else { break };
            let planned = if still_there(directory, &want.region, want.piece) {
                let (resident, first) = (&self.resident[want.at..], want.piece.first);
                let present = |page: PageIndex| {
                    page.0.checked_sub(first.0).and_then(|at| resident.get(at as usize)) == Some(&true)
                };
                let at = SlotPage { slot: id, offset: standing.end() };
                let most = self.reach.min(room - at.offset);
                want.region.lock().plan_move(want.from, want.to, most, at, &present)
            } else {
                None
            };
            let Some(piece) = planned else {
                self.wants.pop_front();
                continue;
            };
            let (region, offset) = (Arc::clone(&want.region), standing.end());
            standing.runs.push(Run { region, first: piece.first, offset, pages: piece.pages });
            let end = piece.first.plus(piece.pages);
            self.planned.push((piece, Want { from: piece.first, to: end, ..want.clone() }));
            want.from = end;
        }
        let mut names = space.names.lock();
        if standing.runs.is_empty() {
            names.forget(id);
            return Ok(false);
        }
        names.fill(id, &mut standing);
        self.standing = Some((id, standing));
        Ok(true)
    }

    /// Asks for the planned runs to be moved. The gate is held, and on until the [`answer`](Self::answer) was recorded.
    pub fn ask(&mut self, space: &Space) {
        let Some((id, standing)) = &self.standing else { return };
        self.outcomes.clear();
        self.orders.clear();
        let mut asked = Ok(Moved::Now);
        let mut unwatched = None;
        for (run, (piece, _)) in standing.runs.iter().zip(&self.planned) {
            let watched = watched(space, &run.region, *piece);
            match (watched, piece_span(*piece)) {
                (Ok(None), Some(from)) => {
                    let to = standing.slot.addr(run.offset);
                    self.orders.push(Order { from, to });
                }
                (Ok(stop), _) => {
                    // What is asked for fills the slot from the front, without gaps.
                    unwatched = Some(stop.unwrap_or(Stop::Invalid));
                    break;
                }
                (Err(error), _) => {
                    asked = Err(error);
                    break;
                }
            }
        }
        if asked.is_ok() && !self.orders.is_empty() {
            space.names.lock().order(*id);
            asked = space.memory().move_out(&self.orders, &mut self.outcomes);
        }
        if let Some(stop) = unwatched
            && self.outcomes.len() == self.orders.len()
        {
            self.outcomes.push(Outcome { done: 0, stop: Some(stop) });
        }
        self.asked = Some(asked);
    }

    /// Records what came of the planned runs, as far as that is known.
    ///
    /// # Errors
    /// When the orders couldn't be given; the pages are their owner's as before.
    pub fn answer(&mut self, space: &Space, moved: &mut MovedOut) -> Result<Answer, EvictError> {
        let Some(answer) = self.asked.take() else { return Ok(Answer::Recorded) };
        match answer {
            Ok(Moved::Ordered) => Ok(Answer::Ordered),
            Ok(Moved::Now) => {
                // Before its pages can be recalled from it: who reads a hole in a slot that is still registered waits for us.
                let slot = self.standing.as_ref().map(|(_, standing)| standing.slot.span());
                let settled = slot.map_or(Ok(()), |slot| space.memory().settle_slot(slot));
                let recorded = self.record(space);
                if recorded > 0 {
                    space.saw_still();
                    moved.moved += recorded;
                }
                settled?;
                self.want_the_rest(space, moved)
            }
            Err(error) => {
                self.outcomes.clear();
                self.record(space);
                Err(error.into())
            }
        }
    }

    /// Enters which pages of the runs moved, by the outcomes, and that the others didn't. Gives how many.
    fn record(&mut self, space: &Space) -> u64 {
        let Some((id, standing)) = &self.standing else { return 0 };
        let (mut all, mut left) = (0, 0);
        for (at, (run, (_, want))) in standing.runs.iter().zip(&self.planned).enumerate() {
            let done = self.outcomes.get(at).map_or(0, |outcome| pages_done(*outcome, run.pages));
            {
                let mut shard = run.region.lock();
                shard.moved(run.first, done, || space.next_generation(), &mut self.lost);
                shard.not_moved(run.first.plus(done), run.pages - done);
            }
            all += u64::from(done);
            left += run.pages - done;
            count(&mut self.tally, want.lot, done);
        }
        standing.slot.settle(if all > 0 { Phase::Ready } else { Phase::Failed });
        if left > 0 {
            space.names.lock().leave_many(*id, left);
        }
        space.release(&mut self.lost);
        all
    }

    /// Wants again what didn't move, but for the pages that can't.
    fn want_the_rest(&mut self, space: &Space, moved: &mut MovedOut) -> Result<Answer, EvictError> {
        let mut answer = Answer::Recorded;
        let mut outcomes = self.outcomes.iter();
        for (_, mut want) in self.planned.drain(..) {
            let pages = want.to.since(want.from);
            // After a run that could not be watched nothing was asked for.
            let outcome = outcomes.next().copied().unwrap_or(Outcome { done: 0, stop: Some(Stop::Busy) });
            want.from = want.from.plus(pages_done(outcome, pages));
            match outcome.stop {
                None => {
                    self.reach = (self.reach * 2).min(space.pool.slot_pages());
                    continue;
                }
                Some(Stop::Busy) => answer = Answer::Busy,
                // The process has no room for more of it to move.
                Some(Stop::NoMemory) => continue,
                // Nothing more can move.
                Some(Stop::Gone) => return Err(MemoryError::Gone.into()),
                // More than one mapping, or none.
                Some(Stop::Unmapped | Stop::Invalid) if pages > 1 => self.reach = pages / 2,
                Some(stop) => {
                    want.from = want.from.plus(1);
                    if stop == Stop::Pinned {
                        moved.pinned += 1;
                        space.counts().hit(Transition::Pinned);
                    }
                }
            }
            if want.from < want.to {
                self.wants.push_front(want);
            }
        }
        Ok(answer)
    }

    /// Waits for runs that were ordered. Nothing held.
    ///
    /// # Errors
    /// [`EvictError::Unanswered`]: the pages are marked as moving still, since the client may yet move them; it has to go.
    pub fn arrived(&mut self, moved: &mut MovedOut) -> Result<(), EvictError> {
        let Some((_, standing)) = &self.standing else { return Ok(()) };
        match standing.slot.wait_settled(ORDER_PATIENCE) {
            Phase::Ready => {
                for (run, (_, want)) in standing.runs.iter().zip(&self.planned) {
                    moved.moved += u64::from(run.pages);
                    count(&mut self.tally, want.lot, run.pages);
                }
                Ok(())
            }
            _ => Err(EvictError::Unanswered(standing.slot.span())),
        }
    }

    // ---- writing out ----

    /// Takes up a slot whose pages are to be written out.
    pub fn take_up(&mut self, id: SlotId, standing: Standing) {
        self.standing = Some((id, standing));
    }

    /// Takes the slot that was filled, if anything is in it.
    pub(crate) fn take_filled(&mut self) -> Option<(SlotId, Standing)> {
        self.standing.take().filter(|(_, standing)| standing.slot.phase() == Phase::Ready)
    }

    /// Reads what stands in the slot and puts it in the store. Nothing held. [`commit`](Self::commit) follows.
    ///
    /// # Errors
    /// When the slot can't be read or the store doesn't take it; the pages stand where they stood.
    pub fn write(&mut self, space: &Space) -> Result<(), EvictError> {
        // Else, where the slot can't be read, what was written before would be taken for this.
        self.writing.clear();
        self.handles.clear();
        let Some((id, standing)) = &self.standing else { return Ok(()) };
        let mut regions = Vec::with_capacity(standing.runs.len());
        for (at, run) in standing.runs.iter().enumerate() {
            let shard = run.region.lock();
            for offset in run.offset..run.end() {
                let page = run.first.plus(offset - run.offset);
                if shard.state(page) == PageState::Standby(SlotPage { slot: *id, offset }) {
                    self.writing.push(Writing { run: at, offset, generation: shard.generation(page) });
                }
            }
            regions.push(shard.id());
        }
        // Somebody else may have written this slot out since it was chosen, and its name stand for another.
        if space.names.lock().get(*id).is_none_or(|now| now.serial != standing.serial) {
            self.writing.clear();
        }
        let mut done = 0;
        while done < self.writing.len() {
            let some = self.read_some(space, done).and_then(|(low, count)| {
                self.put_some(space, &regions, low, done..done + count)?;
                Ok(count)
            });
            match some {
                Ok(count) => done += count,
                Err(error) => {
                    // What was put is as good as if it had been all.
                    self.writing.truncate(done);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads the pages being written from one on, as many as can be read together: those from which offset on, and how many. What can't be
    /// read is left out.
    fn read_some(&mut self, space: &Space, from: usize) -> Result<(u32, usize), EvictError> {
        let Some((_, standing)) = &self.standing else { return Ok((0, 0)) };
        let page = page_size();
        let end = from + stretch(&self.writing[from..]);
        let (low, high) = (self.writing[from].offset, self.writing[end - 1].offset);
        let bytes = &mut self.bytes[..(high - low + 1) as usize * page];
        let Err(gone) = standing.slot.read(low, bytes) else { return Ok((low, end - from)) };
        // A copy is what a child has. What can't be read of one's own slot stays where it stands.
        if standing.slot.is_of(&space.pool) {
            return Err(gone.into());
        }
        let mut kept = from;
        for at in from..end {
            let writing = self.writing[at];
            let into = &mut bytes[(writing.offset - low) as usize * page..][..page];
            if standing.slot.read_in_child(writing.offset, into, space.memory().as_ref(), None).is_ok() {
                self.writing[kept] = writing;
                kept += 1;
            }
        }
        self.writing.drain(kept..end);
        if self.writing.is_empty() { Err(gone.into()) } else { Ok((low, kept - from)) }
    }

    /// Puts pages into the store that were read, those from offset `low` on.
    fn put_some(
        &mut self,
        space: &Space,
        regions: &[RegionId],
        low: u32,
        which: Range<usize>,
    ) -> Result<(), StoreError> {
        let Some((_, standing)) = &self.standing else { return Ok(()) };
        let page = page_size();
        let pages: Vec<Page<'_>> = self.writing[which.clone()]
            .iter()
            .map(|writing| {
                let run = &standing.runs[writing.run];
                let at = run.first.plus(writing.offset - run.offset);
                let key = space.key(regions[writing.run], at, writing.generation);
                Page { key, bytes: &self.bytes[(writing.offset - low) as usize * page..][..page] }
            })
            .collect();
        self.handles.resize(which.end, None);
        space.store().put(&pages, &mut self.handles[which])
    }

    /// Makes the written objects the pages, where these still stand as they did. Gate held shared. The slot is let go.
    pub fn commit(&mut self, space: &Space, moved: &mut MovedOut) {
        let Some((id, standing)) = self.standing.take() else { return };
        let mut left = 0;
        let mut written = self.writing.iter().zip(&self.handles).peekable();
        for (at, run) in standing.runs.iter().enumerate() {
            let mut shard = run.region.lock();
            while let Some((writing, handle)) = written.next_if(|(writing, _)| writing.run == at) {
                let Some(handle) = *handle else { continue };
                let page = run.first.plus(writing.offset - run.offset);
                let stood = SlotPage { slot: id, offset: writing.offset };
                match shard.commit(page, stood, writing.generation, handle) {
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

    /// How the move of the runs, or into the slot taken up, stands.
    pub fn phase(&self) -> Option<Phase> {
        self.standing.as_ref().map(|(_, standing)| standing.slot.phase())
    }

    /// Lets go of the slot without writing it out.
    pub fn leave_standing(&mut self) {
        self.standing = None;
    }
}

/// How many of the `pages` that were ordered moved.
fn pages_done(outcome: Outcome, pages: u32) -> u32 {
    u32::try_from(outcome.done / page_bytes()).unwrap_or(0).min(pages)
}

fn count(tally: &mut [u64], lot: usize, pages: u32) {
    if let Some(moved) = tally.get_mut(lot) {
        *moved += u64::from(pages);
    }
}

/// How many of these pages, from the first on, can be read together: what lies between them stood in the slot, too. Behind the last page of a run
/// that is to be written there may be others that never moved.
fn stretch(writing: &[Writing]) -> usize {
    let Some(first) = writing.first() else { return 0 };
    let goes_on = |pair: &[Writing]| {
        let (one, next) = (pair[0], pair[1]);
        next.offset - first.offset < TOGETHER && (one.run == next.run || one.offset + 1 == next.offset)
    };
    writing.windows(2).take_while(|pair| goes_on(pair)).count() + 1
}
