//! What an address space is told: messages read, events applied.

use super::{Books, Space, pool_of};
use crate::core::{Counts, Lost, PageTable, SlotId, SlotPage, Transition};
use crate::directory::{Directory, Part, Region, without};
use crate::memory::{Batch, Event, Memory, MemoryError};
use crate::record::Change;
use crate::slots::{Phase, SlotNames, Standing};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use userswap_uffd::Span;

impl Space {
    /// Reads what the kernel has to say and applies its events, the gate held exclusively. The faults are left in
    /// `batch` to be served, and forked children are returned to be taken into care.
    ///
    /// Doesn't wait longer than `patience` for the gate: a move order may hold it for as long as its process is
    /// stopped, and other address spaces need this thread. `None` then, and [`has_unread`](Self::has_unread) says so to the mover; or where a fork can't be read for want
    /// of a descriptor: then it and everything behind it waits until it is tried again.
    ///
    /// # Errors
    /// [`MemoryError::Gone`] when nothing will ever be read again.
    pub fn take_messages(
        &self,
        batch: &mut Batch,
        patience: Duration,
    ) -> Result<Option<Vec<Arc<Self>>>, MemoryError> {
        batch.clear();
        let Some(mut directory) = self.gate.try_write_for(patience) else {
            self.unread.store(true, Ordering::Release);
            return Ok(None);
        };
        self.unread.store(false, Ordering::Release);
        let mut lost = Lost::default();
        if self.still.swap(false, Ordering::AcqRel) && directory.is_anything_overdue() {
            for part in directory.nothing_overdue() {
                part.region.lock().unmap(part.piece.first, part.piece.pages, &mut lost);
            }
            // A successor would take a later event for one that was overdue here.
            self.write_down(&directory, 0);
        }
        self.memory.read(batch)?;
        if batch.later {
            drop(directory);
            self.release(&mut lost);
            return Ok(None);
        }
        self.brake.hold(&mut batch.faults);
        let mut children = Vec::new();
        if !batch.events.is_empty() {
            for (event, applied) in batch.events.drain(..).zip(1..) {
                self.apply(event, &mut directory, &mut lost, &mut children);
                self.write_down(&directory, applied);
            }
            self.memory.applied();
            drop(directory);
            self.release(&mut lost);
            self.unpark(batch);
        } else {
            self.memory.applied();
            drop(directory);
            self.release(&mut lost);
        }
        Ok(Some(children))
    }

    /// The kernel put a page in place, or found one there: nothing was changing then, so every event of every change before
    /// has been read. Called with the gate held.
    pub(crate) fn saw_still(&self) {
        self.still.store(true, Ordering::Release);
    }

    /// Whether messages were left unread because the gate was held; whoever held it reads them next.
    pub fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }

    /// Applies one event to the books.
    pub(super) fn apply(
        &self,
        event: Event,
        directory: &mut Directory,
        lost: &mut Lost,
        children: &mut Vec<Arc<Self>>,
    ) {
        match event {
            Event::Remove(span) => {
                self.note_change(Change::Gone(span.start(), span.end()));
                directory.note_removed(span);
                for part in directory.parts(span) {
                    part.region.lock().remove(part.piece.first, part.piece.pages, lost);
                }
            }
            Event::Unmap(span) => {
                self.note_change(Change::Gone(span.start(), span.end()));
                directory.take_removed(span);
                {
                    let mut leftover = self.leftover.lock();
                    if !leftover.is_empty() {
                        *leftover = without(&leftover, span);
                    }
                }
                for part in directory.explain(span).parts {
                    let (_, moving) = part.region.lock().unmap(part.piece.first, part.piece.pages, lost);
                    if moving {
                        self.broken_promise.store(true, Ordering::Relaxed);
                    }
                }
                // Threads that waited there would sleep for ever: nothing will be installed for them.
                self.wake(span);
            }
            Event::Remap { from, to, len } => self.apply_remap(from, to, len, directory, lost),
            Event::Fork(memory) => children.push(self.fork(memory, directory)),
        }
    }

    /// Either a move we ordered arrived in its slot, or the program moved a mapping.
    fn apply_remap(&self, from: u64, to: u64, len: u64, directory: &mut Directory, lost: &mut Lost) {
        let ordered = self.names.lock().filling_at(to);
        if let Some((_, standing)) = ordered {
            for run in &standing.runs {
                run.region.lock().moved(run.first, run.pages, || self.next_generation(), lost);
            }
            // The move registered the slot too, and who reads a hole in it would wait for us.
            if let Err(error) = self.memory.settle_slot(standing.slot.span()) {
                tracing::warn!(%error, "a slot stays registered");
            }
            standing.slot.settle(Phase::Ready);
            return;
        }
        if self.memory.slot_area().is_some_and(|area| area.contains(to)) {
            // Only orders move there: this one is in the books already, entered by a process that died before it had written down so.
            return;
        }
        let (Ok(source), Ok(target)) = (Span::new(from, len), Span::new(to, len)) else { return };
        self.note_change(Change::Gone(source.start(), source.end()));
        let carried: Vec<Span> =
            self.leftover.lock().iter().filter_map(|span| span.intersection(&source)).collect();
        // What it was carried off from stays in the list until that is unmapped, which the mover may not have asked for.
        for span in carried {
            span.moved_to(to + (span.start() - from)).into_iter().for_each(|span| self.note_leftover(span));
        }
        let moved = directory.explain(source);
        // Mostly that event came before this one.
        for part in directory.land_on(target) {
            part.region.lock().unmap(part.piece.first, part.piece.pages, lost);
        }
        directory.leave(source);
        // Registered when it moved, else nobody would have been told; since then all was left to the kernel, what stayed behind too.
        for part in moved.parts.iter().filter(|part| !part.region.lock().is_registered()) {
            part.span().into_iter().for_each(|span| directory.leave_unwatched(span));
        }
        for span in moved.left {
            if let Ok(span) = span.moved_to(to + (span.start() - from)) {
                directory.leave(span);
            }
        }
        for mut part in moved.parts {
            part.piece.addr = to + (part.piece.addr - from);
            part.region.lock().remap(part.piece.first, part.piece.pages, part.piece.addr);
            directory.insert(&part);
        }
        // Who waited at the old address must fault again, there or nowhere.
        self.wake(source);
    }

    /// The child of this address space: the same regions at the same addresses, the same objects.
    fn fork(&self, memory: Arc<dyn Memory>, directory: &Directory) -> Arc<Self> {
        let mut child = directory.for_child();
        let mut regions: HashMap<*const Region, Arc<Region>> = HashMap::new();
        let mut imported: HashMap<SlotId, SlotId> = HashMap::new();
        let counts = Counts::default();
        let mut names = SlotNames::kept(memory.ledger().cloned());
        for part in directory.all() {
            let region = regions
                .entry(Arc::as_ptr(&part.region))
                .or_insert_with(|| {
                    let mut shard = part.region.lock();
                    // In this order: a mover that writes a slot out looks at a page first and then for the slot's name. It holds no gate, but
                    // what stands in a slot now stands there until the gate is open again.
                    let parents = self.names.lock();
                    let (id, pages) = (shard.id(), shard.len());
                    let table = match memory.ledger() {
                        Some(ledger) => ledger.new_table(id, pages, self.key_base(id)),
                        None => PageTable::new(pages),
                    };
                    let forked = shard.fork_into(
                        table,
                        counts.clone(),
                        |handle| self.shares.add(handle),
                        |at| import(at, &parents, &mut names, &mut imported),
                        || self.next_generation(),
                    );
                    Region::new(forked)
                })
                .clone();
            child.insert(&Part { region, piece: part.piece });
        }
        // The names were given before the child's regions existed.
        for id in imported.values() {
            let Some(standing) = names.get_mut(*id) else { continue };
            standing.runs.retain_mut(|run| match regions.get(&Arc::as_ptr(&run.region)) {
                Some(region) => {
                    run.region = Arc::clone(region);
                    true
                }
                // None of its pages was here any more.
                None => false,
            });
        }
        let pool = pool_of(memory.as_ref(), self.pool.slot_pages());
        let space = Self::build(
            memory,
            Arc::clone(&self.store),
            Arc::clone(&self.shares),
            Arc::clone(&self.lineage),
            Books { directory: child, names, counts, pool },
        );
        space.set_sentinel(self.sentinel());
        // What is registered here is so there.
        space.leftover.lock().clone_from(&self.leftover.lock());
        space.next_region.store(self.next_region.load(Ordering::Relaxed), Ordering::Relaxed);
        space.key_bases.write().clone_from(&self.key_bases.read());
        if let Some(ledger) = space.memory.ledger() {
            ledger.note_owner(self.lineage.owner.0, self.pool.slot_pages());
            ledger.note_generation(self.lineage.generation.load(Ordering::Relaxed));
            space.write_down(&space.shared(), 0);
            ledger.enter();
        }
        space
    }

    fn wake(&self, span: Span) {
        self.counts.hit(Transition::Woken);
        self.memory.wake(span);
    }
}

/// A child's name for a slot its parent's pages stand in.
fn import(
    at: SlotPage,
    parents: &SlotNames,
    names: &mut SlotNames,
    imported: &mut HashMap<SlotId, SlotId>,
) -> SlotPage {
    let id = *imported.entry(at.slot).or_insert_with(|| match parents.get(at.slot) {
        Some(standing) => names.name(Standing { count: 0, ..standing.clone() }),
        None => SlotId(u32::MAX),
    });
    if let Some(standing) = names.get_mut(id) {
        standing.count += 1;
    }
    SlotPage { slot: id, offset: at.offset }
}
