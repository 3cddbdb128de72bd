//! Taking up the pages of a process that died at any instant.

use super::index::{Generation, PageIndex, SlotPage};
use super::page::{Flags, PageState};
use super::shard::{Lost, Shard};
use userswap_store::Handle;

/// What a page was found as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Nothing more is to be known of it.
    Settled,
    /// It stands in a slot.
    Standing(SlotPage),
    /// An order to move it was given, or about to be.
    Ordered(SlotPage),
    /// Its object isn't there.
    Missing,
}

impl Shard {
    /// Settles what a dead process was doing with a page, as far as the table alone can say, and says what it is. `find` knows the object that was
    /// stored under a generation; `renew` gives a page that stands in a slot another one, since it may have been about to.
    ///
    /// A page on its way back is where it came from: if it had arrived, who brings it again finds it there, and what is there wins.
    pub(crate) fn take_up(
        &mut self,
        page: PageIndex,
        find: impl FnOnce(Generation) -> Option<Handle>,
        renew: impl FnOnce() -> Generation,
    ) -> Found {
        match self.pages.state(page) {
            PageState::Absent | PageState::Resident | PageState::Zero | PageState::Poisoned(None) => {
                Found::Settled
            }
            PageState::Zeroing => {
                let removed = self.pages.flags(page).has(Flags::DOOMED);
                self.set(page, if removed { PageState::Zero } else { PageState::Absent });
                self.pages.set_flags(page, Flags::NONE);
                Found::Settled
            }
            PageState::Stored(_) | PageState::Fetching(_) => match find(self.pages.generation(page)) {
                Some(handle) => {
                    self.set(page, PageState::Stored(handle));
                    Found::Settled
                }
                None => {
                    self.set(page, PageState::Poisoned(None));
                    Found::Missing
                }
            },
            PageState::Poisoned(Some(_)) => {
                let handle = find(self.pages.generation(page));
                self.set(page, PageState::Poisoned(handle));
                Found::Settled
            }
            PageState::Standby(at) | PageState::Recalling(at) => {
                self.set(page, PageState::Standby(at));
                self.pages.set_generation(page, renew());
                Found::Standing(at)
            }
            PageState::Moving(at) => Found::Ordered(at),
        }
    }

    /// Where a page stands isn't known: it is lost.
    pub(crate) fn lose(&mut self, page: PageIndex) {
        self.set(page, PageState::Poisoned(None));
    }

    /// A relative names the page's object, too.
    pub(crate) fn note_shared(&mut self, page: PageIndex) {
        self.pages.set_flags(page, self.pages.flags(page).with(Flags::SHARED));
    }

    /// A page that was on its way back is there.
    pub(crate) fn arrived(&mut self, page: PageIndex, lost: &mut Lost) {
        let state = self.pages.state(page);
        if matches!(state, PageState::Stored(_) | PageState::Standby(_)) {
            lost.state(state, self.pages.flags(page));
            self.set(page, PageState::Resident);
            self.pages.set_flags(page, Flags::NONE);
        }
    }

    /// Whether the page was on its way back.
    pub(crate) fn is_on_its_way(&self, page: PageIndex) -> bool {
        matches!(self.pages.state(page), PageState::Fetching(_) | PageState::Recalling(_))
    }
}
