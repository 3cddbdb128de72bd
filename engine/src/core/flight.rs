//! Pages on their way back, and the work in flight for them.

use super::index::{Generation, PageIndex, SlotPage};
use super::page::PageState;
use userswap_store::Handle;

/// Pages being brought back together: the page a thread waits for, and those around it or at even distances behind it. In ascending order.
/// Reused from fault to fault; holds no allocation that grows after the first.
#[derive(Debug)]
pub struct Flight {
    pub(super) demand: u32,
    pub(super) pages: Vec<Passenger>,
    pub(super) ahead: Option<PageIndex>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Passenger {
    pub(super) page: PageIndex,
    /// `Fetching` or `Recalling`, as it stands in the table while the flight is under way.
    pub(super) state: PageState,
    pub(super) generation: Generation,
    pub(super) fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Waiting,
    Loaded,
    Failed,
    Landed,
}

/// Neighbouring pages of a flight that can be installed by one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Offset in the flight, and so in its buffer, in pages.
    pub at: u32,
    /// Length in pages.
    pub pages: u32,
    /// Where to install.
    pub addr: u64,
}

impl Flight {
    /// A flight with room for `capacity` pages.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { demand: 0, pages: Vec::with_capacity(capacity), ahead: None }
    }

    /// The number of pages aboard.
    #[allow(clippy::cast_possible_truncation)] // bounded by the window
    pub fn len(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Whether nobody is aboard.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Which page of the flight a thread waits for.
    pub fn demand(&self) -> u32 {
        self.demand
    }

    /// Where the stream goes on that the page asked for is in, if it is followed with a whole window and what is there is out.
    /// Told once.
    pub fn take_ahead(&mut self) -> Option<PageIndex> {
        self.ahead.take()
    }

    /// The region page at `at`.
    pub fn page(&self, at: u32) -> PageIndex {
        self.pages[at as usize].page
    }

    /// Whether each page is the neighbour of the one before.
    pub fn is_run(&self) -> bool {
        match (self.pages.first(), self.pages.last()) {
            (Some(first), Some(last)) => last.page.since(first.page) < self.len(),
            _ => true,
        }
    }

    /// The object the page at `at` is fetched from, and the generation it was stored under; `None` if it comes from a slot.
    pub fn source(&self, at: u32) -> Option<(Handle, Generation)> {
        match self.pages[at as usize] {
            Passenger { state: PageState::Fetching(handle), generation, .. } => Some((handle, generation)),
            _ => None,
        }
    }

    /// The slot page the flight's first page comes from; the others follow it there. `None` if they come from the store.
    pub fn slot(&self) -> Option<SlotPage> {
        match self.pages.first()?.state {
            PageState::Recalling(at) => Some(at),
            _ => None,
        }
    }

    /// Notes whether the bytes of the page at `at` are in the buffer.
    pub fn loaded(&mut self, at: u32, ok: bool) {
        self.pages[at as usize].fate = if ok { Fate::Loaded } else { Fate::Failed };
    }

    /// Whether the bytes of the page at `at` are still to come.
    pub fn is_waiting(&self, at: u32) -> bool {
        self.pages[at as usize].fate == Fate::Waiting
    }

    /// Whether the page at `at` is in place.
    pub fn has_landed(&self, at: u32) -> bool {
        self.pages[at as usize].fate == Fate::Landed
    }

    pub(super) fn board(&mut self, page: PageIndex, state: PageState, generation: Generation) {
        self.pages.push(Passenger { page, state, generation, fate: Fate::Waiting });
    }
}
