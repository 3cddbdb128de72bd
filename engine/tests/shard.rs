//! The page states and what takes a page from one to the next, where a single region is enough to show it.

#![allow(clippy::unwrap_used)]

use userswap_engine::core::{
    Counts, Decision, Flight, Generation, Install, Kept, Lost, PageIndex, PageState, Piece, RegionId, Shard,
    SlotId, SlotPage, Transition, Zeroed,
};
use userswap_store::Handle;

const PAGE: u64 = 4096;
const AT: u64 = 0x10_0000_0000;
const PAGES: u32 = 8;

fn handle(number: u64) -> Handle {
    Handle::from_raw(number).unwrap()
}

fn page(index: u32) -> PageIndex {
    PageIndex(index)
}

struct Rig {
    shard: Shard,
    counts: Counts,
    flight: Flight,
    lost: Lost,
    generation: u32,
}

impl Rig {
    fn new() -> Self {
        Self::of(PAGES)
    }

    fn of(pages: u32) -> Self {
        let counts = Counts::default();
        let shard = Shard::new(RegionId(0), pages, PAGE, AT, counts.clone());
        Self { shard, counts, flight: Flight::with_capacity(8), lost: Lost::default(), generation: 0 }
    }

    /// Marks pages for a move.
    fn order(&mut self, first: u32, pages: u32) -> Piece {
        let at = SlotPage { slot: SlotId(3), offset: 0 };
        self.shard.plan_move(page(first), page(first + pages), pages, at, &|_| true).unwrap()
    }

    /// Moves pages into slot 3, from its offset 0 on.
    fn standing(&mut self, first: u32, pages: u32) {
        self.order(first, pages);
        let Self { shard, lost, generation, .. } = self;
        let next = || {
            *generation += 1;
            Generation::from_count(*generation)
        };
        shard.moved(page(first), pages, next, lost);
    }

    /// Moves pages out and commits page `n` as handle `n + 1`.
    fn stored(&mut self, first: u32, pages: u32) {
        self.standing(first, pages);
        for offset in 0..pages {
            let this = page(first + offset);
            let generation = self.shard.generation(this);
            let object = handle(u64::from(first + offset) + 1);
            let at = SlotPage { slot: SlotId(3), offset };
            assert_eq!(self.shard.commit(this, at, generation, object), Kept::Committed);
        }
    }

    fn touch(&mut self, index: u32) -> Decision {
        self.shard.decide(page(index), 8, 1, &mut self.flight)
    }

    /// Everything aboard is loaded and lands.
    fn land(&mut self) -> Install {
        for at in 0..self.flight.len() {
            self.flight.loaded(at, true);
        }
        while let Some(segment) = self.shard.segment(&self.flight, 0) {
            self.shard.landed(&mut self.flight, segment, segment.pages, &mut self.lost);
        }
        self.shard.end_flight(&mut self.flight, &mut self.lost).demanded
    }
}

#[test]
fn a_page_leaves_by_way_of_a_slot_and_comes_back_from_the_store() {
    let mut rig = Rig::new();
    rig.stored(2, 1);
    assert_eq!((rig.shard.state(page(2)), rig.shard.out()), (PageState::Stored(handle(3)), 1));
    assert_eq!(rig.touch(2), Decision::Load);
    assert_eq!(rig.flight.source(0).unwrap().0, handle(3));
    assert_eq!(rig.land(), Install::Done);
    assert_eq!((rig.shard.state(page(2)), rig.shard.out()), (PageState::Resident, 0));
    assert_eq!(rig.lost.handles, [(handle(3), false)]);
}

#[test]
fn a_page_comes_back_from_its_slot_while_it_is_written_and_the_object_is_stale() {
    let mut rig = Rig::new();
    rig.standing(2, 1);
    let (at, generation) = (SlotPage { slot: SlotId(3), offset: 0 }, rig.shard.generation(page(2)));
    assert_eq!(rig.touch(2), Decision::Load);
    assert_eq!(rig.flight.slot(), Some(at));
    assert_eq!(rig.land(), Install::Done);
    assert_eq!(rig.lost.slots, [at]);
    assert_eq!(rig.shard.commit(page(2), at, generation, handle(9)), Kept::Stale);
    // Nor is it kept if the page is out again, in the same slot even.
    rig.standing(2, 1);
    assert_eq!(rig.shard.commit(page(2), at, generation, handle(9)), Kept::Stale);
}

#[test]
fn a_second_thread_is_left_to_the_first_ones_flight() {
    let mut rig = Rig::new();
    rig.stored(0, 2);
    assert_eq!(rig.touch(0), Decision::Load);
    let mut other = Flight::with_capacity(8);
    assert_eq!(rig.shard.decide(page(0), 8, 1, &mut other), Decision::InFlight);
    assert_eq!(rig.counts.get(Transition::DuplicateFault), 1);
}

#[test]
fn who_reads_in_order_is_gone_ahead_of_as_far_as_pages_are_out() {
    let mut rig = Rig::of(256);
    rig.flight = Flight::with_capacity(32);
    rig.stored(0, 160);
    let mut touch = |index: u32| {
        let decision = rig.shard.decide(page(index), 32, 1, &mut rig.flight);
        (decision, rig.flight.len(), rig.flight.take_ahead().map(|page| page.0))
    };
    for (at, pages, ahead) in [(0, 1, None), (1, 2, None), (3, 4, None), (7, 8, None), (15, 16, None)] {
        assert_eq!(touch(at), (Decision::Load, pages, ahead), "the window grows at first");
    }
    assert_eq!(touch(31), (Decision::Load, 32, Some(63)));
    assert_eq!(touch(63), (Decision::Load, 32, Some(95)), "as a worker is told to");
    // Its thread has come to what the worker is at.
    assert_eq!(touch(64), (Decision::InFlight, 0, Some(95)));
    assert_eq!(
        touch(40),
        (Decision::InFlight, 0, None),
        "behind the stream's last window nothing is to be gained"
    );
    assert_eq!(touch(95), (Decision::Load, 32, Some(127)));
    assert_eq!(touch(127), (Decision::Load, 32, Some(159)));
    assert_eq!(touch(159), (Decision::Load, 1, None), "what follows isn't out");
    assert_eq!(rig.flight.take_ahead(), None);
}

#[test]
fn a_flight_of_one_page_at_most_is_no_panic() {
    let mut rig = Rig::new();
    rig.stored(0, 4);
    for index in 0..4 {
        assert_eq!(rig.shard.decide(page(index), 1, 1, &mut rig.flight), Decision::Load);
        assert_eq!(rig.flight.len(), 1);
        rig.land();
    }
}

#[test]
fn a_flight_that_ends_early_says_whom_to_wake() {
    let mut rig = Rig::new();
    rig.stored(0, 8);
    for index in [0, 1] {
        rig.touch(index);
        rig.land();
    }
    assert_eq!(rig.touch(3), Decision::Load);
    assert_eq!(rig.flight.len(), 4);
    rig.flight.loaded(0, true);
    let ended = rig.shard.end_flight(&mut rig.flight, &mut rig.lost);
    assert_eq!(ended.demanded, Install::Busy);
    assert_eq!(ended.stranded, Some((AT + 4 * PAGE, AT + 7 * PAGE)));
    assert_eq!(rig.counts.get(Transition::ReturnedToStore), 4);
}

#[test]
fn what_is_removed_in_flight_vanishes_and_gives_its_object_back_once() {
    let mut rig = Rig::new();
    rig.stored(0, 1);
    rig.touch(0);
    rig.shard.remove(page(0), 1, &mut rig.lost);
    assert!(rig.lost.is_empty(), "the flight owns the handle still");
    assert_eq!(rig.land(), Install::Vanished);
    assert_eq!(rig.lost.handles, [(handle(1), true)]);
    assert_eq!(rig.shard.state(page(0)), PageState::Zero);
}

#[test]
fn what_cannot_be_loaded_is_poisoned_if_it_was_asked_for_and_else_goes_back() {
    let mut rig = Rig::new();
    rig.stored(0, 8);
    rig.touch(0);
    rig.land();
    rig.touch(1);
    assert_eq!(rig.flight.len(), 2);
    rig.flight.loaded(0, false);
    rig.flight.loaded(1, false);
    let ended = rig.shard.end_flight(&mut rig.flight, &mut rig.lost);
    assert_eq!(ended.demanded, Install::Lost);
    assert_eq!(rig.shard.state(page(1)), PageState::Poisoned(Some(handle(2))));
    assert_eq!(rig.shard.state(page(2)), PageState::Stored(handle(3)));
    assert_eq!(rig.touch(1), Decision::Poison);
    // A page that turns out to be there wins, and its object goes.
    rig.lost.clear();
    rig.shard.found(page(1), &mut rig.lost);
    assert_eq!(rig.shard.state(page(1)), PageState::Resident);
    assert_eq!(rig.lost.handles, [(handle(2), false)]);
}

#[test]
fn what_a_zero_page_found_decides_whether_the_page_may_move() {
    for (removed, zeroed, state) in [
        (false, Zeroed::Installed, PageState::Resident),
        (false, Zeroed::Present, PageState::Resident),
        (false, Zeroed::Refused, PageState::Absent),
        (false, Zeroed::Unmapped, PageState::Absent),
        (true, Zeroed::Installed, PageState::Resident),
        // The old page, about to go.
        (true, Zeroed::Present, PageState::Zero),
        (true, Zeroed::Refused, PageState::Zero),
        (true, Zeroed::Unmapped, PageState::Absent),
    ] {
        let mut rig = Rig::new();
        if removed {
            rig.shard.remove(page(0), 1, &mut rig.lost);
        }
        assert_eq!(rig.touch(0), Decision::Zero);
        rig.shard.zeroed(page(0), zeroed);
        assert_eq!(rig.shard.state(page(0)), state, "removed {removed}, {zeroed:?}");
    }
}

#[test]
fn a_page_that_waits_to_be_removed_is_not_planned_to_move() {
    let mut rig = Rig::new();
    rig.shard.remove(page(1), 1, &mut rig.lost);
    assert_eq!(rig.order(0, 4).pages, 1);
    assert_eq!(rig.order(1, 4), Piece { first: page(2), pages: 3, addr: AT + 2 * PAGE });
}

#[test]
fn what_is_removed_while_a_move_is_ordered_is_dead_on_arrival_and_zero_if_it_stays() {
    for arrives in [true, false] {
        let mut rig = Rig::new();
        rig.order(0, 2);
        assert_eq!(rig.touch(0), Decision::Wait);
        rig.shard.remove(page(0), 1, &mut rig.lost);
        if arrives {
            rig.shard.moved(page(0), 2, Generation::default, &mut rig.lost);
            assert_eq!(rig.lost.slots, [SlotPage { slot: SlotId(3), offset: 0 }]);
            assert!(matches!(rig.shard.state(page(1)), PageState::Standby(_)));
        } else {
            rig.shard.not_moved(page(0), 2);
            assert_eq!(rig.shard.state(page(1)), PageState::Resident);
        }
        assert_eq!(rig.shard.state(page(0)), PageState::Zero);
    }
}

#[test]
fn unmapping_says_whether_a_move_order_covered_the_range() {
    let mut rig = Rig::new();
    rig.stored(4, 1);
    rig.order(0, 2);
    assert!(!rig.shard.unmap(page(4), 1, &mut rig.lost).1);
    assert_eq!(rig.lost.handles, [(handle(5), false)]);
    assert!(rig.shard.unmap(page(1), 1, &mut rig.lost).1);
    assert_eq!(rig.shard.out(), 1);
    assert_eq!(rig.shard.address(page(1)), None);
    assert_eq!(rig.shard.address(page(2)), Some((AT + 2 * PAGE, 2)));
}

#[test]
fn a_moved_mapping_takes_its_flights_along() {
    let mut rig = Rig::new();
    rig.stored(0, 8);
    rig.touch(0);
    rig.land();
    rig.touch(1);
    assert_eq!(rig.flight.len(), 2);
    rig.shard.remap(page(2), 1, AT + 100 * PAGE);
    rig.flight.loaded(0, true);
    rig.flight.loaded(1, true);
    let first = rig.shard.segment(&rig.flight, 0).unwrap();
    assert_eq!((first.at, first.pages, first.addr), (0, 1, AT + PAGE));
    let second = rig.shard.segment(&rig.flight, 1).unwrap();
    assert_eq!((second.at, second.pages, second.addr), (1, 1, AT + 100 * PAGE));
}

#[test]
fn what_is_displaced_lands_nowhere_until_it_is_known_where_it_went() {
    let mut rig = Rig::new();
    rig.stored(0, 1);
    rig.touch(0);
    rig.flight.loaded(0, true);
    rig.shard.displace(page(0), 1);
    assert_eq!(rig.shard.segment(&rig.flight, 0), None);
    assert_eq!(rig.shard.end_flight(&mut rig.flight, &mut rig.lost).demanded, Install::Busy);
    rig.shard.remap(page(0), 1, AT + 50 * PAGE);
    assert_eq!(rig.touch(0), Decision::Load);
    assert_eq!(rig.land(), Install::Done);
}

#[test]
fn a_child_shares_what_is_stored_and_stands_where_its_parent_does() {
    let mut rig = Rig::new();
    rig.stored(0, 2);
    rig.touch(0);
    rig.standing(4, 1);
    rig.order(5, 1);
    rig.order(6, 1);
    rig.shard.remove(page(6), 1, &mut rig.lost);
    let mut shared = Vec::new();
    let import = |at: SlotPage| SlotPage { slot: SlotId(77), ..at };
    let generation = || Generation::from_count(99);
    let mut child = rig.shard.fork(Counts::default(), |handle| shared.push(handle), import, generation);
    // An object of the page as it was before, if somebody has one still, isn't taken for this one's.
    assert_eq!(child.generation(page(5)), generation());
    assert_eq!(child.generation(page(4)), rig.shard.generation(page(4)));
    assert_eq!(shared, [handle(1), handle(2)]);
    assert_eq!(child.state(page(0)), PageState::Stored(handle(1)), "the flight is the parent's");
    assert!(matches!(child.state(page(4)), PageState::Standby(at) if at.slot == SlotId(77)));
    assert!(matches!(child.state(page(5)), PageState::Standby(at) if at.slot == SlotId(77)));
    assert_eq!((child.state(page(6)), child.out()), (PageState::Zero, 4));
    // Each lets go of it, told that others may have it.
    rig.land();
    assert_eq!(rig.lost.handles, [(handle(1), true)]);
    let mut lost = Lost::default();
    child.clear(&mut lost);
    assert_eq!(lost.handles, [(handle(1), true), (handle(2), true)]);
    assert_eq!(child.out(), 0);
}

#[test]
fn clearing_leaves_to_a_flight_what_it_carries() {
    let mut rig = Rig::new();
    rig.stored(0, 2);
    rig.touch(0);
    rig.shard.clear(&mut rig.lost);
    assert_eq!(rig.lost.handles, [(handle(2), false)]);
    assert_eq!(rig.land(), Install::Vanished);
    assert_eq!(rig.lost.handles, [(handle(2), false), (handle(1), true)]);
    assert_eq!(rig.shard.out(), 0);
}

#[test]
fn a_part_is_cut_where_what_is_out_begins_and_ends() {
    let mut rig = Rig::new();
    rig.stored(2, 3);
    let whole = Piece { first: page(0), pages: PAGES, addr: AT };
    let cut: Vec<_> =
        rig.shard.by_whereabouts(whole).iter().map(|piece| (piece.first.0, piece.pages)).collect();
    assert_eq!(cut, [(0, 2), (2, 3), (5, 3)]);
}
