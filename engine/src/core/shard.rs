//! All that is known of one region, and every decision about it.

use super::around::{Around, Habit};
use super::flight::{Fate, Flight, Segment};
use super::index::{Generation, PageIndex, RegionId, SlotPage};
use super::page::{Flags, PageState, PageTable};
use super::transition::{Counts, Transition};
use userswap_policy::strides::{Ahead, Strides, Verdicts};
use userswap_store::Handle;

/// A stream is worth going ahead of when so many pages come together.
const STREAM: u32 = 16;

/// The state of one region behind one `&mut`.
///
/// Methods that end somebody's claim to stored bytes report it to a [`Lost`] the caller passes in; the caller frees
/// handles and releases slot pages after it has let go of the lock.
#[derive(Clone, Debug)]
pub struct Shard {
    id: RegionId,
    pub(super) pages: PageTable,
    /// Where the pages are mapped now, by page; more than one piece after a partial munmap or mremap.
    pub(super) mapped: Vec<Piece>,
    /// Pages that are out or in flight. While it isn't zero the region stays registered.
    out: u32,
    /// Whether any of the region's range may be registered with the kernel.
    registered: bool,
    around: Around,
    pub(super) page_bytes: u64,
    pub(super) counts: Counts,
}

/// A stretch of the region that is mapped in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Its first page.
    pub first: PageIndex,
    /// Its length.
    pub pages: u32,
    /// Where it is mapped.
    pub addr: u64,
}

/// What to do for a faulting thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Somebody is on it already and will wake the thread.
    InFlight,
    /// A move order covers the page: decide again when its outcome is known.
    Wait,
    /// Nothing of ours is there: a zero page. The page is marked; finish with [`Shard::zeroed`].
    Zero,
    /// Load what is now in the [`Flight`] and install it.
    Load,
    /// It is lost: poison the page (again).
    Poison,
}

/// Why a page is to come back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// A thread waits for it. The lot of so many pages that it is in is worth bringing in with it.
    Fault { lot: u32 },
    /// A stream will want it.
    Ahead,
    /// It, and all that follow.
    All,
}

/// What became of the demanded page of a [`Flight`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Install {
    /// It is in place, or somebody else's page is, and its waiters are awake or must be woken by the caller.
    Done,
    /// The kernel refused for the moment; the page is back where it was: try again later.
    Busy,
    /// It was removed, unmapped or replaced meanwhile: decide anew.
    Vanished,
    /// Its bytes could not be loaded; it is marked poisoned.
    Lost,
}

/// How a [`Flight`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// What became of the demanded page.
    pub demanded: Install,
    /// A range that holds every other page that did not land.
    pub stranded: Option<(u64, u64)>,
}

/// What became of a zero page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zeroed {
    /// It is in place.
    Installed,
    /// Some page was there.
    Present,
    /// The kernel refused for the moment.
    Refused,
    /// Nothing that is watched is mapped there.
    Unmapped,
}

/// Claims that ended: bytes nobody will ask for again.
#[derive(Default, Debug)]
pub struct Lost {
    /// Handles to give back to the store; `true` if a relative may share it.
    pub handles: Vec<(Handle, bool)>,
    /// Slot pages nobody stands in any more.
    pub slots: Vec<SlotPage>,
}

impl Lost {
    /// With room for `pages`.
    pub fn with_capacity(pages: usize) -> Self {
        Self { handles: Vec::with_capacity(pages), slots: Vec::with_capacity(pages) }
    }

    pub(super) fn state(&mut self, state: PageState, flags: Flags) {
        match state {
            PageState::Stored(handle) | PageState::Fetching(handle) | PageState::Poisoned(Some(handle)) => {
                self.handles.push((handle, flags.has(Flags::SHARED)));
            }
            PageState::Standby(at) | PageState::Recalling(at) => self.slots.push(at),
            _ => {}
        }
    }

    /// Whether nothing ended.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty() && self.slots.is_empty()
    }

    /// Forgets everything, keeping the space.
    pub fn clear(&mut self) {
        self.handles.clear();
        self.slots.clear();
    }
}

/// What a written-out page's new object is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// The page is stored under it now; its slot page is free.
    Committed,
    /// The page went elsewhere meanwhile: free the object.
    Stale,
}

/// The pages a removed or unmapped range took with it, for statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vanished {
    /// Pages whose bytes had been out.
    pub out: u32,
}

impl Shard {
    /// A region of `pages` absent pages of `page_bytes` each, mapped at `addr`.
    pub fn new(id: RegionId, pages: u32, page_bytes: u64, addr: u64, counts: Counts) -> Self {
        let mapped = vec![Piece { first: PageIndex(0), pages, addr }];
        Self::over(id, PageTable::new(pages), mapped, page_bytes, counts)
    }

    /// The region whose pages are told of in a table, none of them out, mapped as said.
    pub fn over(id: RegionId, pages: PageTable, mapped: Vec<Piece>, page_bytes: u64, counts: Counts) -> Self {
        Self { id, pages, mapped, out: 0, registered: false, around: Around::default(), page_bytes, counts }
    }

    /// Counts the pages that are out: the table was filled by other ways.
    pub(crate) fn recount(&mut self) {
        let out = (0..self.len()).filter(|page| self.pages.state(PageIndex(*page)).is_out()).count();
        self.out = u32::try_from(out).unwrap_or(u32::MAX);
    }

    /// Takes over from the region it is a copy of what a fork leaves as it is.
    pub(super) fn inherit(&mut self, parent: &Self) {
        self.registered = parent.registered;
        self.around = parent.around;
    }

    /// Its page table.
    pub(crate) fn table(&self) -> &PageTable {
        &self.pages
    }

    /// The region's name.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// How many pages it has.
    pub fn len(&self) -> u32 {
        self.pages.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Pages out or in flight.
    pub fn out(&self) -> u32 {
        self.out
    }

    /// Whether any of its range may be registered.
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    /// Notes that some of its range may be registered, or that none is.
    pub fn set_registered(&mut self, registered: bool) {
        self.registered = registered;
    }

    /// The page's state.
    pub fn state(&self, page: PageIndex) -> PageState {
        self.pages.state(page)
    }

    /// The page's generation.
    pub fn generation(&self, page: PageIndex) -> Generation {
        self.pages.generation(page)
    }

    /// Where the region is mapped.
    pub fn mapped(&self) -> &[Piece] {
        &self.mapped
    }

    /// Where `page` is mapped now, and how many pages from it on are mapped with it.
    pub fn address(&self, page: PageIndex) -> Option<(u64, u32)> {
        self.mapped.iter().find_map(|piece| {
            let within = page.0.checked_sub(piece.first.0)?;
            (within < piece.pages)
                .then(|| (piece.addr + u64::from(within) * self.page_bytes, piece.pages - within))
        })
    }

    pub(super) fn set(&mut self, page: PageIndex, state: PageState) {
        let was = self.pages.state(page).is_out();
        match (was, state.is_out()) {
            (false, true) => self.out += 1,
            (true, false) => self.out -= 1,
            _ => {}
        }
        self.pages.set_state(page, state);
    }

    // ---- faults ----

    /// A thread waits for `page`. Fills `flight` if something is to be loaded, with up to `most` pages: what
    /// there is of the aligned lot of so many pages that it is in, or, where that is one page, what follows if it was reached in order.
    pub fn decide(&mut self, page: PageIndex, most: u32, lot: u32, flight: &mut Flight) -> Decision {
        self.decide_for(page, Asked::Fault { lot }, most, flight)
    }

    /// As [`decide`](Self::decide) for what a stream will want next, which no thread waits for yet.
    pub fn decide_ahead(&mut self, page: PageIndex, most: u32, flight: &mut Flight) -> Decision {
        self.decide_for(page, Asked::Ahead, most, flight)
    }

    /// As [`decide`](Self::decide) for `pages` pages that are all wanted.
    pub fn decide_all(&mut self, page: PageIndex, pages: u32, flight: &mut Flight) -> Decision {
        self.decide_for(page, Asked::All, pages, flight)
    }

    fn decide_for(&mut self, page: PageIndex, asked: Asked, most: u32, flight: &mut Flight) -> Decision {
        flight.pages.clear();
        flight.demand = 0;
        flight.ahead = None;
        let state = self.pages.state(page);
        match state {
            PageState::Absent | PageState::Resident | PageState::Zero => {
                self.counts.hit(match state {
                    PageState::Absent => Transition::FirstTouch,
                    PageState::Zero => Transition::TouchRemoved,
                    _ => Transition::TouchResident,
                });
                let removed = state == PageState::Zero;
                self.pages.set_flags(page, if removed { Flags::DOOMED } else { Flags::NONE });
                self.set(page, PageState::Zeroing);
                Decision::Zero
            }
            PageState::Moving(_) => {
                self.counts.hit(Transition::FaultOnMoving);
                Decision::Wait
            }
            PageState::Zeroing | PageState::Recalling(_) | PageState::Fetching(_) => {
                self.counts.hit(Transition::DuplicateFault);
                flight.ahead = self.ahead(page, most);
                Decision::InFlight
            }
            PageState::Poisoned(_) => {
                self.counts.hit(Transition::FaultOnPoison);
                Decision::Poison
            }
            PageState::Standby(_) | PageState::Stored(_) => {
                let mut of_lot = false;
                let (first, window) = match asked {
                    Asked::All => (page, most),
                    Asked::Ahead => (page, self.around.go_on(page, most)),
                    Asked::Fault { lot } => {
                        let pages = &self.pages;
                        let window = self.around.window(page, most, |page| pages.state(page).is_out());
                        let verdicts = self.around.take_verdicts();
                        self.count_verdicts(verdicts);
                        let around = self.lot_around(page, lot.min(most));
                        of_lot = window < around.1;
                        if of_lot { around } else { (page, window) }
                    }
                };
                self.board_run(first, window, asked != Asked::Ahead, flight);
                flight.demand = page.since(first);
                if asked != Asked::All {
                    let along = if of_lot { 0 } else { flight.len() - 1 };
                    self.around.ran_to(first.0 + flight.len(), along);
                    flight.ahead = self.ahead(page, most);
                }
                Decision::Load
            }
        }
    }

    /// After [`Decision::Load`] for a fault: if nothing else comes with the page, what is stored at even distances does, `most` pages at most, where threads
    /// have gone through memory like that.
    pub fn take_along(&mut self, strides: &mut Strides, most: u32, flight: &mut Flight) {
        let room = flight.pages.capacity().saturating_sub(1);
        let most = most.saturating_sub(1).min(u32::try_from(room).unwrap_or(u32::MAX));
        if flight.len() != 1 || flight.slot().is_some() || most == 0 || self.around.was_aside() {
            return;
        }
        let page = flight.page(0);
        let Ahead { stride, count } = strides.asked(u64::from(self.id.0) << 32 | u64::from(page.0), most);
        for n in 1..=i64::from(count) {
            let Some(page) = u32::try_from(i64::from(page.0) + n * stride).ok().map(PageIndex) else { break };
            if page.0 >= self.len() {
                break;
            }
            if let PageState::Stored(handle) = self.pages.state(page)
                && self.address(page).is_some()
            {
                self.board(page, PageState::Fetching(handle), Transition::FetchAround, flight);
            }
        }
        if count > 0 {
            strides.came(flight.len() - 1);
        }
        if stride < 0 {
            flight.pages.reverse();
            flight.demand = flight.len() - 1;
        }
        self.count_verdicts(strides.take_verdicts());
    }

    fn count_verdicts(&self, verdicts: Verdicts) {
        self.counts.add_to(Transition::AlongUsed, verdicts.used.into());
        self.counts.add_to(Transition::AlongUnused, verdicts.unused.into());
    }

    fn board(&mut self, page: PageIndex, aboard: PageState, transition: Transition, flight: &mut Flight) {
        self.counts.hit(transition);
        flight.board(page, aboard, self.pages.generation(page));
        self.set(page, aboard);
    }

    /// Where the stream goes on whose last window `page` is in, if that is worth going ahead for.
    fn ahead(&self, page: PageIndex, most: u32) -> Option<PageIndex> {
        let next = self.around.beyond(page, most.max(STREAM))?;
        (next.0 < self.len() && self.pages.state(next).is_out()).then_some(next)
    }

    /// Remembers how `pages` pages from `first` on are used; what was said of four ranges is remembered.
    pub fn expect(&mut self, first: PageIndex, pages: u32, habit: Habit) {
        self.around.expect(first.0, first.0 + pages, habit);
    }

    /// After [`Decision::Zero`]: marks the pages after it, too, that were never touched, as many as fault-around says. The number, with it;
    /// each is finished with [`zeroed`](Self::zeroed). For memory of which every touch is told: elsewhere untouched pages may be there.
    pub fn zero_run(&mut self, page: PageIndex, most: u32) -> u32 {
        let pages = &self.pages;
        let is_untouched = |page| pages.state(page) == PageState::Absent;
        let window = self.around.window(page, most, is_untouched).min(self.len() - page.0);
        let untouched = |n: u32| self.pages.state(page.plus(n)) == PageState::Absent;
        let pages = (1..window).find(|n| !untouched(*n)).unwrap_or(window);
        for n in 1..pages {
            self.set(page.plus(n), PageState::Zeroing);
        }
        self.around.ran_to(page.0 + pages, 0);
        pages
    }

    /// A page is there that nobody has touched since the region is looked after.
    pub fn seen(&mut self, page: PageIndex) {
        if self.pages.state(page) == PageState::Absent {
            self.set(page, PageState::Resident);
        }
    }

    /// The run within the lot of `most` pages that `page` is in that comes from the same kind of place without a gap.
    fn lot_around(&self, page: PageIndex, most: u32) -> (PageIndex, u32) {
        let start = page.0 - page.0 % most.max(1);
        let mut first = page;
        while first.0 > start && follows(self.pages.state(PageIndex(first.0 - 1)), self.pages.state(first)) {
            first.0 -= 1;
        }
        // Where the mapping begins within the lot.
        let room = self.mapped.iter().find_map(|piece| {
            let within = page.0.checked_sub(piece.first.0)?;
            (within < piece.pages).then_some(within)
        });
        let first = PageIndex(first.0.max(page.0 - room.unwrap_or(0)));
        (first, (start + most).min(self.len()) - first.0)
    }

    /// Takes pages from `page` on into the flight while they come from the same kind of place and are mapped in one piece. All of them come along if none
    /// is `demanded`.
    #[allow(clippy::cast_possible_truncation)] // a window of pages
    fn board_run(&mut self, page: PageIndex, window: u32, demanded: bool, flight: &mut Flight) {
        let room = self
            .mapped
            .iter()
            .find(|piece| page.0.wrapping_sub(piece.first.0) < piece.pages)
            .map_or(1, |piece| piece.first.0 + piece.pages - page.0);
        let most = window.min(room).min(flight.pages.capacity() as u32).max(1);
        let mut slot = None;
        for n in 0..most {
            let page = page.plus(n);
            let aboard = match (self.pages.state(page), slot) {
                (PageState::Stored(handle), None) => PageState::Fetching(handle),
                (PageState::Standby(at), None) if n == 0 => {
                    slot = Some(at);
                    PageState::Recalling(at)
                }
                (PageState::Standby(at), Some(SlotPage { slot, offset }))
                    if at.slot == slot && at.offset == offset + n =>
                {
                    PageState::Recalling(at)
                }
                _ => break,
            };
            let transition = match (aboard, demanded && n == 0) {
                (PageState::Recalling(_), true) => Transition::Recall,
                (PageState::Recalling(_), false) => Transition::RecallAround,
                (_, true) => Transition::Fetch,
                (_, false) => Transition::FetchAround,
            };
            self.board(page, aboard, transition, flight);
        }
    }

    /// Whether the flight's page at `at` is still the one that was taken aboard.
    fn holds(&self, flight: &Flight, at: u32) -> bool {
        let passenger = flight.pages[at as usize];
        let page = flight.page(at);
        self.pages.state(page) == passenger.state && self.pages.generation(page) == passenger.generation
    }

    /// The next stretch of the flight, from its page `from` on, that is loaded, still wanted, and mapped in one piece.
    pub fn segment(&self, flight: &Flight, from: u32) -> Option<Segment> {
        let ready = |at: u32| flight.pages[at as usize].fate == Fate::Loaded && self.holds(flight, at);
        let at = (from..flight.len()).find(|&at| ready(at) && self.address(flight.page(at)).is_some())?;
        let (addr, room) = self.address(flight.page(at))?;
        let most = room.min(flight.len() - at);
        let next = |n: u32| flight.page(at + n) == flight.page(at).plus(n);
        let pages = (1..most).find(|&n| !ready(at + n) || !next(n)).unwrap_or(most);
        Some(Segment { at, pages, addr })
    }

    /// Records that the first `done` pages of a segment are in place.
    pub fn landed(&mut self, flight: &mut Flight, segment: Segment, done: u32, lost: &mut Lost) {
        for at in segment.at..segment.at + done.min(segment.pages) {
            self.counts.hit(Transition::Installed);
            self.land(flight, at, lost);
        }
    }

    /// Records that somebody else's page was found where the flight's page at `at` was to go: what is there wins.
    pub fn present(&mut self, flight: &mut Flight, at: u32, lost: &mut Lost) {
        self.counts.hit(Transition::FoundPresent);
        self.land(flight, at, lost);
    }

    fn land(&mut self, flight: &mut Flight, at: u32, lost: &mut Lost) {
        let page = flight.page(at);
        lost.state(flight.pages[at as usize].state, self.pages.flags(page));
        flight.pages[at as usize].fate = Fate::Landed;
        self.set(page, PageState::Resident);
        self.pages.set_flags(page, Flags::NONE);
    }

    /// Ends the flight: every page that did not land goes back to where it was, or, if it vanished meanwhile, gives up
    /// what it was to be loaded from. Says what became of the demanded page, and which others have to be woken: threads
    /// that wait for those were told that somebody is on it.
    pub fn end_flight(&mut self, flight: &mut Flight, lost: &mut Lost) -> Ended {
        let mut demanded = Install::Done;
        let mut stranded: Option<(u64, u64)> = None;
        for at in 0..flight.len() {
            let passenger = flight.pages[at as usize];
            if passenger.fate == Fate::Landed {
                continue;
            }
            let page = flight.page(at);
            let is_demand = at == flight.demand;
            let ended = if !self.holds(flight, at) {
                self.counts.hit(Transition::VanishedInFlight);
                // A relative may have come to share it while it flew.
                lost.state(passenger.state, Flags::SHARED);
                Install::Vanished
            } else if passenger.fate == Fate::Failed && is_demand {
                self.counts.hit(Transition::Poisoned);
                let kept = match passenger.state {
                    PageState::Fetching(handle) => Some(handle),
                    other => {
                        lost.state(other, Flags::NONE);
                        None
                    }
                };
                self.set(page, PageState::Poisoned(kept));
                Install::Lost
            } else {
                self.counts.hit(Transition::ReturnedToStore);
                let back = match passenger.state {
                    PageState::Fetching(handle) => PageState::Stored(handle),
                    PageState::Recalling(at) => PageState::Standby(at),
                    other => other,
                };
                self.set(page, back);
                Install::Busy
            };
            if is_demand {
                demanded = ended;
            } else if let Some((addr, _)) = self.address(page) {
                let end = addr + self.page_bytes;
                stranded = Some(stranded.map_or((addr, end), |(low, high)| (low.min(addr), high.max(end))));
            }
        }
        flight.pages.clear();
        Ended { demanded, stranded }
    }

    /// Ends what [`Decision::Zero`] began.
    pub fn zeroed(&mut self, page: PageIndex, zeroed: Zeroed) {
        if self.pages.state(page) != PageState::Zeroing {
            return;
        }
        let removed = self.pages.flags(page).has(Flags::DOOMED);
        self.pages.set_flags(page, Flags::NONE);
        self.set(
            page,
            match (zeroed, removed) {
                (Zeroed::Installed, _) | (Zeroed::Present, false) => PageState::Resident,
                // What is there may be what its owner is about to remove: moved out now, it would come back.
                (Zeroed::Present | Zeroed::Refused, true) => PageState::Zero,
                (Zeroed::Refused, false) | (Zeroed::Unmapped, _) => PageState::Absent,
            },
        );
    }

    /// A page is there that was taken for poisoned: what is there wins.
    pub fn found(&mut self, page: PageIndex, lost: &mut Lost) {
        let state = self.pages.state(page);
        if let PageState::Poisoned(_) = state {
            self.counts.hit(Transition::FoundPresent);
            lost.state(state, self.pages.flags(page));
            self.set(page, PageState::Resident);
            self.pages.set_flags(page, Flags::NONE);
        }
    }
}

/// Whether a page that is `next` can come back with its neighbour before it that is `state`.
fn follows(state: PageState, next: PageState) -> bool {
    match (state, next) {
        (PageState::Stored(_), PageState::Stored(_)) => true,
        (PageState::Standby(at), PageState::Standby(next)) => {
            at.slot == next.slot && at.offset + 1 == next.offset
        }
        _ => false,
    }
}
