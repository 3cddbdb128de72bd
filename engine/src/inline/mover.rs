//! Moving pages of an inline region out.
//!
//! Compressing takes most of the time. Where a caller waits for many pages to be out, other threads write the slots that were filled.

use super::space::{Inline, Moving};
use super::state::Standing;
use crate::core::{Generation, Kept, Lost, PageIndex, PageState, SlotId, SlotPage, Transition};
use crate::directory::pages_in;
use crate::evict::{EvictError, MovedOut};
use crate::memory::MemoryError;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::sync::atomic::Ordering;
use userswap_store::{Handle, Page};
use userswap_uffd::{Blocked, Span, Stop, page_size};

/// One mover's lists.
#[derive(Default)]
struct Work {
    present: Vec<bool>,
    writing: Vec<(u32, Generation)>,
    handles: Vec<Option<Handle>>,
    stale: Vec<Handle>,
    /// Whoever writes slots out for this mover.
    writers: Option<Sender<u32>>,
}

/// Slots of pages for which others are asked to write.
const MANY: u32 = 8;
/// Slots that may wait for them.
const AHEAD: usize = 2;

impl Inline {
    /// Moves out what is in memory of a range, pinned pages aside.
    ///
    /// # Errors
    /// When it had to stop early; nothing is lost.
    pub(crate) fn evict(&self, span: Span) -> Result<MovedOut, EvictError> {
        let (first, end) = self.pages(span);
        // What somebody read before is no sign that it is wanted still.
        self.state.lock(&Blocked::now()).ahead = None;
        let slots = self.memory.slots().min((end - first) / self.memory.slot_pages());
        if slots < MANY {
            return self.evict_pages(&mut Work::default(), first, end, u64::MAX);
        }
        let others = std::thread::available_parallelism().map_or(1, usize::from).min(4) - 1;
        let (filled, to_write) = bounded(AHEAD);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..others)
                .filter_map(|_| {
                    let to_write = to_write.clone();
                    std::thread::Builder::new().spawn_scoped(scope, move || self.write_all(&to_write)).ok()
                })
                .collect();
            let mut work = Work { writers: (!writers.is_empty()).then_some(filled), ..Work::default() };
            let mut moved = self.evict_pages(&mut work, first, end, u64::MAX);
            work.writers = None;
            for written in std::iter::once(self.write_all(&to_write))
                .chain(writers.into_iter().filter_map(|writer| writer.join().ok()))
            {
                moved = moved.and_then(|moved| {
                    written.map(|stored| MovedOut { stored: moved.stored + stored, ..moved })
                });
            }
            moved
        })
    }

    /// Writes out the slots that come, until no more will. Gives the pages.
    fn write_all(&self, to_write: &Receiver<u32>) -> Result<u64, EvictError> {
        let (blocked, mut work, mut moved) = (Blocked::now(), Work::default(), MovedOut::default());
        let mut done = Ok(());
        for slot in to_write {
            let written = self.write(&mut work, slot, &mut moved, &blocked);
            done = done.and(written);
        }
        done.map(|()| moved.stored)
    }

    /// Moves out about `most` pages from where the last call ended, round and round.
    pub(super) fn evict_round(&self, most: u64) -> Result<MovedOut, EvictError> {
        let end = pages_in(self.span().len());
        let hand = self.mover.lock().hand.min(end);
        let mut work = Work::default();
        let mut moved = self.evict_pages(&mut work, hand, end, most)?;
        if moved.moved < most {
            moved += self.evict_pages(&mut work, 0, hand, most - moved.moved)?;
        }
        Ok(moved)
    }

    fn evict_pages(&self, work: &mut Work, first: u32, end: u32, most: u64) -> Result<MovedOut, EvictError> {
        if !self.is_here() {
            return Err(MemoryError::Gone.into());
        }
        let mut moved = MovedOut::default();
        let mut freed = Vec::with_capacity(super::state::FREED);
        let mut at = first;
        while at < end && moved.moved < most {
            // A stretch at a time, so that neither signals nor other movers wait for long.
            let stretch = self.memory.slot_pages().min(end - at);
            let mut mover = self.mover.lock();
            let blocked = Blocked::now();
            self.watch(&blocked)?;
            self.free_what_came_back(&blocked, &mut freed);
            self.evict_stretch(work, &mover, (at, at + stretch), &mut moved, &blocked)?;
            at += stretch;
            mover.hand = at;
        }
        Ok(moved)
    }

    /// Has every touch of a missing page come to us from now on, and counts what is there. The caller holds the mover.
    fn watch(&self, blocked: &Blocked) -> Result<(), MemoryError> {
        if self.registered.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut present = Vec::new();
        // Whoever touches a page now waits until it is counted.
        self.state.lock(blocked).barred = true;
        let looked = self.memory.register().and_then(|()| self.memory.resident(self.span(), &mut present));
        {
            let mut state = self.state.lock(blocked);
            for (page, _) in (0..).zip(&present).filter(|(_, present)| **present) {
                state.shard.seen(PageIndex(page));
                state.resident += 1;
            }
            state.barred = false;
        }
        self.changed.ring();
        looked?;
        self.registered.store(true, Ordering::Release);
        Ok(())
    }

    /// As before anything is moved out, so that the first touches are told of, too.
    pub(crate) fn watch_from_the_start(&self) -> Result<(), MemoryError> {
        let _mover = self.mover.lock();
        self.watch(&Blocked::now())
    }

    /// Moves out what is there of a stretch no longer than a slot.
    fn evict_stretch(
        &self,
        work: &mut Work,
        mover: &Moving,
        (mut from, to): (u32, u32),
        moved: &mut MovedOut,
        blocked: &Blocked,
    ) -> Result<(), EvictError> {
        let base = from;
        {
            // The books know: all that was there was counted when the range was registered, and every touch since came by us.
            let state = self.state.lock(blocked);
            work.present.clear();
            let there = |page| state.shard.state(PageIndex(page)) == PageState::Resident;
            work.present.extend((from..to).map(there));
        }
        for &(first, end) in &mover.pinned {
            for page in first.max(from)..end.min(to) {
                work.present[(page - base) as usize] = false;
            }
        }
        let mut busy = 0;
        while from < to && work.present[(from - base) as usize..].contains(&true) {
            let slot = self.take_slot(work, moved, blocked)?;
            let planned = {
                let mut state = self.state.lock(blocked);
                let present = |page: PageIndex| work.present[(page.0 - base) as usize];
                let (first, end) = (PageIndex(from), PageIndex(to));
                let at = SlotPage { slot: SlotId(slot), offset: 0 };
                let planned = state.shard.plan_move(first, end, to - from, at, &present);
                if planned.is_none() {
                    state.free.push(slot);
                }
                planned
            };
            let Some(piece) = planned else { return Ok(()) };
            let outcome = self.memory.move_out(self.range(piece.first.0, piece.pages)?, slot);
            let done = pages_in(outcome.done).min(piece.pages);
            {
                let mut state = self.state.lock(blocked);
                let generation = state.generation;
                state.generation = generation.wrapping_add(done);
                let mut next = generation;
                state.shard.moved(
                    piece.first,
                    done,
                    || {
                        next = next.wrapping_add(1);
                        Generation::from_count(next)
                    },
                    // No page of a region is removed while it is being moved.
                    &mut Lost::default(),
                );
                state.shard.not_moved(piece.first.plus(done), piece.pages - done);
                state.resident = state.resident.saturating_sub(u64::from(done));
                if done == 0 {
                    state.free.push(slot);
                } else {
                    // One more than its pages: whoever leaves, the slot is ours until it was written.
                    state.slots[slot as usize] =
                        Standing { first: piece.first.0, pages: done, count: done + 1 };
                }
            }
            self.changed.ring();
            self.room.ring();
            moved.moved += u64::from(done);
            from = piece.first.0 + done;
            match outcome.stop {
                None => {}
                Some(Stop::Busy) => {
                    busy += 1;
                    if busy > BUSY_TRIES {
                        return Ok(());
                    }
                    std::thread::yield_now();
                }
                Some(stop) => {
                    if stop == Stop::Pinned {
                        moved.pinned += 1;
                        self.counts().hit(Transition::Pinned);
                    }
                    from += 1;
                }
            }
            let left =
                done > 0 && work.writers.as_ref().is_some_and(|writers| writers.try_send(slot).is_ok());
            if done > 0 && !left {
                self.write(work, slot, moved, blocked)?;
            }
        }
        Ok(())
    }

    /// An empty slot.
    fn take_slot(&self, work: &mut Work, moved: &mut MovedOut, blocked: &Blocked) -> Result<u32, EvictError> {
        for _ in 0..2 {
            let to_empty = {
                let mut state = self.state.lock(blocked);
                if let Some(slot) = state.free.pop() {
                    return Ok(slot);
                }
                match state.drained.pop() {
                    Some(slot) => Some(slot),
                    None => state.take_stock().map(|frames| frames.slot),
                }
            };
            if let Some(slot) = to_empty {
                self.memory.empty_slot(slot)?;
                return Ok(slot);
            }
            // Pages that the store didn't take before.
            let standing: Vec<u32> = {
                let state = self.state.lock(blocked);
                (0..).zip(&state.slots).filter(|(_, slot)| slot.count > 0).map(|(at, _)| at).collect()
            };
            for slot in standing {
                let claimed = {
                    let mut state = self.state.lock(blocked);
                    let count = &mut state.slots[slot as usize].count;
                    *count += u32::from(*count > 0);
                    *count > 0
                };
                if claimed {
                    self.write(work, slot, moved, blocked)?;
                }
            }
        }
        Err(EvictError::NoSlot)
    }

    /// Puts what stands in a slot into the store. The caller's claim to the slot ends.
    fn write(
        &self,
        work: &mut Work,
        slot: u32,
        moved: &mut MovedOut,
        blocked: &Blocked,
    ) -> Result<(), EvictError> {
        work.writing.clear();
        work.writing.reserve(self.memory.slot_pages() as usize);
        work.stale.reserve(self.memory.slot_pages() as usize);
        let standing = {
            let state = self.state.lock(blocked);
            let standing = state.slots[slot as usize];
            for offset in 0..standing.pages {
                let page = PageIndex(standing.first + offset);
                let at = SlotPage { slot: SlotId(slot), offset };
                if state.shard.state(page) == PageState::Standby(at) {
                    work.writing.push((offset, state.shard.generation(page)));
                }
            }
            standing
        };
        work.handles.clear();
        work.handles.resize(work.writing.len(), None);
        let bytes = self.memory.standing(slot, 0, standing.pages);
        let pages: Vec<Page<'_>> = work
            .writing
            .iter()
            .map(|&(offset, generation)| Page {
                key: self.key(PageIndex(standing.first + offset), generation),
                bytes: &bytes[offset as usize * page_size()..][..page_size()],
            })
            .collect();
        let put = if pages.is_empty() { Ok(()) } else { self.store.put(&pages, &mut work.handles) };
        drop(pages);
        let mut left = 0;
        {
            let mut state = self.state.lock(blocked);
            for (&(offset, generation), handle) in work.writing.iter().zip(&work.handles) {
                let Some(handle) = *handle else { continue };
                let at = SlotPage { slot: SlotId(slot), offset };
                match state.shard.commit(PageIndex(standing.first + offset), at, generation, handle) {
                    Kept::Committed => left += 1,
                    Kept::Stale => work.stale.push(handle),
                }
            }
            state.leave(SlotPage { slot: SlotId(slot), offset: 0 }, left + 1);
        }
        moved.stored += u64::from(left);
        self.store.free(&work.stale);
        work.stale.clear();
        Ok(put?)
    }
}

/// How often a move is tried again that the kernel was too busy for.
const BUSY_TRIES: u32 = 100;
