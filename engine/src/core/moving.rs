//! Moving a region's pages out, and what comes of it.

use super::index::{Generation, PageIndex, SlotPage};
use super::page::{Flags, PageState};
use super::shard::{Kept, Lost, Piece, Shard};
use super::transition::Transition;
use userswap_store::Handle;

impl Shard {
    /// Marks the first run of at most `most` pages in `from..to` that may move out and are `resident`, for the slot's
    /// pages from `at` on. `resident(page)` says what the kernel's page table says.
    pub fn plan_move(
        &mut self,
        from: PageIndex,
        to: PageIndex,
        most: u32,
        at: SlotPage,
        resident: &dyn Fn(PageIndex) -> bool,
    ) -> Option<Piece> {
        // Zero isn't movable: the page its owner is removing may still be there, and must not be kept.
        let movable = |shard: &Self, page: PageIndex| {
            matches!(shard.pages.state(page), PageState::Absent | PageState::Resident) && resident(page)
        };
        let end = to.0.min(self.len());
        let first =
            (from.0..end).map(PageIndex).find(|&page| movable(self, page) && self.address(page).is_some())?;
        let (addr, room) = self.address(first)?;
        let most = most.min(room).min(end - first.0);
        let pages = (1..most).find(|&n| !movable(self, first.plus(n))).unwrap_or(most);
        for offset in 0..pages {
            self.counts.hit(Transition::MoveOrdered);
            let at = SlotPage { slot: at.slot, offset: at.offset + offset };
            self.set(first.plus(offset), PageState::Moving(at));
        }
        Some(Piece { first, pages, addr })
    }

    /// Records that `pages` pages from `first` on now stand in their slot. `generations` numbers the tenancies.
    pub fn moved(
        &mut self,
        first: PageIndex,
        pages: u32,
        mut generations: impl FnMut() -> Generation,
        lost: &mut Lost,
    ) {
        for page in (0..pages).map(|n| first.plus(n)) {
            let PageState::Moving(at) = self.pages.state(page) else { continue };
            if self.pages.flags(page).has(Flags::DOOMED) {
                self.counts.hit(Transition::DoomedArrived);
                self.set(page, PageState::Zero);
                lost.slots.push(at);
            } else {
                self.counts.hit(Transition::Moved);
                self.set(page, PageState::Standby(at));
                self.pages.set_generation(page, generations());
            }
            self.pages.set_flags(page, Flags::NONE);
        }
    }

    /// Records that `pages` pages from `first` on stayed where they were.
    pub fn not_moved(&mut self, first: PageIndex, pages: u32) {
        for page in (0..pages).map(|n| first.plus(n)) {
            if let PageState::Moving(_) = self.pages.state(page) {
                self.counts.hit(Transition::NotMoved);
                let doomed = self.pages.flags(page).has(Flags::DOOMED);
                self.set(page, if doomed { PageState::Zero } else { PageState::Resident });
                self.pages.set_flags(page, Flags::NONE);
            }
        }
    }

    /// The page was written to the store as `handle` while it stood at `at` in its `generation`.
    pub fn commit(&mut self, page: PageIndex, at: SlotPage, generation: Generation, handle: Handle) -> Kept {
        if self.pages.state(page) == PageState::Standby(at) && self.pages.generation(page) == generation {
            self.counts.hit(Transition::Committed);
            self.set(page, PageState::Stored(handle));
            Kept::Committed
        } else {
            self.counts.hit(Transition::StaleWrite);
            Kept::Stale
        }
    }

    /// Forgets removals that are certainly over: removed pages of the range that `resident` says are not there any more.
    /// Returns whether some removed page is still there, so that the range must stay registered.
    pub fn settle_removed(
        &mut self,
        first: PageIndex,
        pages: u32,
        resident: &dyn Fn(PageIndex) -> bool,
    ) -> bool {
        let mut pending = false;
        for page in (0..pages).map(|n| first.plus(n)) {
            if self.pages.state(page) == PageState::Zero {
                if resident(page) {
                    pending = true;
                } else {
                    self.set(page, PageState::Absent);
                }
            }
        }
        pending
    }
}
