//! What the owner of a region does to it: removes, unmaps, moves, forks, ends.

use super::index::{Generation, PageIndex, SlotPage};
use super::page::{Flags, PageState, PageTable};
use super::shard::{Lost, Piece, Shard, Vanished};
use super::transition::{Counts, Transition};
use userswap_store::Handle;

impl Shard {
    /// The owner removed `pages` pages from `first` on (madvise): they read as zeros from now on.
    pub fn remove(&mut self, first: PageIndex, pages: u32, lost: &mut Lost) -> Vanished {
        let mut vanished = Vanished::default();
        for page in (0..pages).map(|n| first.plus(n)) {
            let state = self.pages.state(page);
            if state.is_out() {
                vanished.out += 1;
            }
            match state {
                PageState::Moving(_) => {
                    self.counts.hit(Transition::RemovedWhileMoving);
                    self.pages.set_flags(page, self.pages.flags(page).with(Flags::DOOMED));
                    continue;
                }
                PageState::Fetching(_) | PageState::Recalling(_) => {
                    self.counts.hit(Transition::RemovedInFlight);
                }
                PageState::Stored(_) | PageState::Poisoned(_) => {
                    self.counts.hit(Transition::RemovedStored);
                    lost.state(state, self.pages.flags(page));
                }
                PageState::Standby(_) => {
                    self.counts.hit(Transition::RemovedStandby);
                    lost.state(state, self.pages.flags(page));
                }
                PageState::Absent | PageState::Resident | PageState::Zero | PageState::Zeroing => {
                    self.counts.hit(Transition::RemovedResident);
                }
            }
            self.set(page, PageState::Zero);
            self.pages.set_flags(page, Flags::NONE);
        }
        vanished
    }

    /// The range is mapped no more. Says too whether a move order covered any of it, which a client that promised not
    /// to unmap has broken its word by.
    pub fn unmap(&mut self, first: PageIndex, pages: u32, lost: &mut Lost) -> (Vanished, bool) {
        let mut vanished = Vanished::default();
        let mut moving = false;
        for page in (0..pages).map(|n| first.plus(n)) {
            let state = self.pages.state(page);
            if state.is_out() {
                vanished.out += 1;
                self.counts.hit(Transition::UnmappedOut);
            }
            match state {
                PageState::Fetching(_) | PageState::Recalling(_) => {}
                PageState::Moving(at) => {
                    moving = true;
                    lost.slots.push(at);
                }
                other => lost.state(other, self.pages.flags(page)),
            }
            self.set(page, PageState::Absent);
            self.pages.set_flags(page, Flags::NONE);
        }
        self.cut(first, pages);
        (vanished, moving)
    }

    /// The range was moved to `addr` by its owner.
    pub fn remap(&mut self, first: PageIndex, pages: u32, addr: u64) {
        self.counts.hit(Transition::Remapped);
        self.cut(first, pages);
        self.mapped.push(Piece { first, pages, addr });
        self.mapped.sort_unstable_by_key(|piece| piece.first);
    }

    /// A piece cut so that of each part either all is out or nothing.
    pub fn by_whereabouts(&self, piece: Piece) -> Vec<Piece> {
        let mut parts: Vec<Piece> = Vec::new();
        let mut before = None;
        for at in 0..piece.pages {
            let first = piece.first.plus(at);
            let is_out = self.pages.state(first).is_out();
            match parts.last_mut() {
                Some(part) if before == Some(is_out) => part.pages += 1,
                _ => {
                    parts.push(Piece { first, pages: 1, addr: piece.addr + u64::from(at) * self.page_bytes })
                }
            }
            before = Some(is_out);
        }
        parts
    }

    /// Something else stands where the range was mapped, and where it is now isn't known yet: [`remap`](Self::remap) or
    /// [`unmap`](Self::unmap) follows. Until then nothing of it can be installed or moved out.
    pub fn displace(&mut self, first: PageIndex, pages: u32) {
        self.counts.hit(Transition::Displaced);
        self.cut(first, pages);
    }

    /// Takes a range out of the mapped pieces.
    fn cut(&mut self, first: PageIndex, pages: u32) {
        let (start, end) = (first.0, first.0 + pages);
        let mut left = Vec::with_capacity(self.mapped.len() + 1);
        for piece in &self.mapped {
            let (from, to) = (piece.first.0, piece.first.0 + piece.pages);
            if start > from {
                left.push(Piece { pages: start.min(to) - from, ..*piece });
            }
            if end < to {
                let skip = end.max(from) - from;
                left.push(Piece {
                    first: piece.first.plus(skip),
                    pages: piece.pages - skip,
                    addr: piece.addr + u64::from(skip) * self.page_bytes,
                });
            }
        }
        self.mapped = left;
    }

    /// The child's shard after a fork. Stored pages are shared from now on: `share` is told of each. Pages that stand in
    /// a slot, or are about to, are served from the same slot: `import` gives it a name in the child's address space. `generations` numbers the tenancies of
    /// those that are about to: their latest is that of an object of other bytes, which another child may still share.
    pub fn fork(
        &mut self,
        counts: Counts,
        share: impl FnMut(Handle),
        import: impl FnMut(SlotPage) -> SlotPage,
        generations: impl FnMut() -> Generation,
    ) -> Self {
        self.fork_into(PageTable::new(self.len()), counts, share, import, generations)
    }

    /// As [`fork`](Self::fork), the child's pages being told of in `table`, an empty one of the same length.
    pub fn fork_into(
        &mut self,
        table: PageTable,
        counts: Counts,
        mut share: impl FnMut(Handle),
        mut import: impl FnMut(SlotPage) -> SlotPage,
        mut generations: impl FnMut() -> Generation,
    ) -> Self {
        table.copy_from(&self.pages);
        let mut child = Self::over(self.id(), table, self.mapped.clone(), self.page_bytes, counts);
        child.recount();
        child.inherit(self);
        for page in (0..self.len()).map(PageIndex) {
            let state = match self.pages.state(page) {
                PageState::Stored(handle) | PageState::Fetching(handle) => {
                    self.counts.hit(Transition::ForkShared);
                    share(handle);
                    let flags = self.pages.flags(page).with(Flags::SHARED);
                    self.pages.set_flags(page, flags);
                    child.pages.set_flags(page, flags);
                    PageState::Stored(handle)
                }
                PageState::Moving(_) if self.pages.flags(page).has(Flags::DOOMED) => {
                    child.pages.set_flags(page, Flags::NONE);
                    PageState::Zero
                }
                state @ (PageState::Standby(at) | PageState::Recalling(at) | PageState::Moving(at)) => {
                    self.counts.hit(Transition::ForkStandby);
                    if matches!(state, PageState::Moving(_)) {
                        child.pages.set_generation(page, generations());
                    }
                    PageState::Standby(import(at))
                }
                // The marker in the page table was copied; the object stays with the parent.
                PageState::Poisoned(_) => PageState::Poisoned(None),
                // The parent's zero page is on its way; the child's isn't.
                PageState::Zeroing => PageState::Zero,
                settled => settled,
            };
            child.set(page, state);
        }
        child
    }

    /// Gives up everything: the address space is gone. Flights still out give up their own.
    pub fn clear(&mut self, lost: &mut Lost) {
        for page in (0..self.len()).map(PageIndex) {
            match self.pages.state(page) {
                PageState::Fetching(_) | PageState::Recalling(_) => {}
                PageState::Moving(at) => lost.slots.push(at),
                state => lost.state(state, self.pages.flags(page)),
            }
            self.set(page, PageState::Absent);
        }
        self.mapped.clear();
    }
}
