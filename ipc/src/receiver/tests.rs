//! Orders against memory that takes notes.

use super::*;
use crate::superpages::Offered;
use std::sync::{Arc, Mutex};

const SWAP: u64 = 0x1000_0000;
const STAGING: u64 = 0x2000_0000;
const STACK: u64 = 0x3000_0000;
const PROGRAM: u64 = 0x4000_0000;
const LEN: u64 = 0x10_0000;

/// Takes notes; every page is in core, and every answer is "done".
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Memory for Notes {
    fn move_ptes(&mut self, src: Span, dest: u64) -> Result<(), userswap_uffd::Error> {
        self.note(format!("remap {src:?} {dest:#x}"));
        Ok(())
    }

    fn map_none(&mut self, area: Span) -> Result<(), userswap_uffd::Error> {
        self.note(format!("none {area:?}"));
        Ok(())
    }

    fn dont_need(&mut self, area: Span) -> Result<(), userswap_uffd::Error> {
        self.note(format!("drop {area:?}"));
        Ok(())
    }

    fn uffd_move(&mut self, src: Span, dest: u64) -> Outcome {
        self.note(format!("move {src:?} {dest:#x}"));
        Outcome { done: src.len(), stop: None }
    }

    fn in_core(&mut self, _: Span, pages: &mut Vec<bool>) -> Result<(), userswap_uffd::Error> {
        *pages = vec![true];
        Ok(())
    }
}

fn span(start: u64, len: u64) -> Span {
    Span::new(start, len).unwrap()
}

fn receiver() -> (Receiver<Notes>, Notes, Offered) {
    let areas =
        Areas { swap: span(SWAP, LEN), staging: Some(span(STAGING, LEN)), stack: Some(span(STACK, LEN)) };
    let (notes, offered) = (Notes::default(), Offered::default());
    (Receiver::new(notes.clone(), areas, Box::new(offered.clone())), notes, offered)
}

fn order(address: u64, length: u64, dest: u64) -> MovePtesLeavingMapping {
    MovePtesLeavingMapping { src: MemoryRegion { address, length }, dest }
}

#[test]
fn a_move_that_is_no_move_into_the_swap_area_never_reaches_the_kernel() {
    let (mut receiver, notes, _) = receiver();
    let not_a_range = [
        order(PROGRAM + 1, 0x1000, SWAP),
        order(PROGRAM, 0x1001, SWAP),
        order(PROGRAM, 0, SWAP),
        order(u64::MAX - 0xfff, 0x2000, SWAP),
        order(PROGRAM, 0x1000, SWAP + 1),
        order(PROGRAM, 0x1000, u64::MAX - 0xfff),
    ];
    for order in not_a_range {
        let refused = receiver.move_ptes(&order);
        assert!(matches!(refused, Err(ReceiverError::NotARange { .. })), "{order:?}: {refused:?}");
    }
    for dest in [SWAP - 0x1000, SWAP + LEN - 0x1000, SWAP + LEN, STAGING, PROGRAM + LEN] {
        let refused = receiver.move_ptes(&order(PROGRAM, 0x2000, dest));
        assert!(matches!(refused, Err(ReceiverError::Outside { .. })), "{dest:#x}: {refused:?}");
    }
    for src in [SWAP + LEN / 2, SWAP - 0x1000, STAGING, STACK, STACK - 0x1000] {
        let refused = receiver.move_ptes(&order(src, 0x2000, SWAP));
        assert!(matches!(refused, Err(ReceiverError::OwnSource { .. })), "{src:#x}: {refused:?}");
    }
    assert!(notes.taken().is_empty());
    receiver.move_ptes(&order(PROGRAM, 0x2000, SWAP + LEN - 0x2000)).unwrap();
    assert_eq!(notes.taken().len(), 1);
}

#[test]
fn only_what_was_set_aside_is_dropped() {
    let (mut receiver, notes, _) = receiver();
    let drop = |address, how| Drop { areas: vec![MemoryRegion::new(address, 0x1000)], how };
    for refused in [
        receiver.map_area(&MapArea { area: MemoryRegion::new(PROGRAM, 0x1000) }),
        receiver.map_area(&MapArea { area: MemoryRegion::new(SWAP, LEN + 0x1000) }),
        receiver.drop_areas(&drop(PROGRAM, DropHow::DontNeed)),
        receiver.drop_areas(&drop(PROGRAM, DropHow::MapArea)),
        receiver.drop_areas(&drop(STAGING, DropHow::MapArea)),
    ] {
        assert!(matches!(refused, Err(ReceiverError::Outside { .. })), "{refused:?}");
    }
    assert!(notes.taken().is_empty());
    receiver.map_area(&MapArea { area: MemoryRegion::new(SWAP, LEN) }).unwrap();
    receiver.drop_areas(&drop(SWAP, DropHow::MapArea)).unwrap();
    receiver.drop_areas(&drop(SWAP, DropHow::DontNeed)).unwrap();
    receiver.drop_areas(&drop(STAGING, DropHow::DontNeed)).unwrap();
    assert_eq!(notes.taken().len(), 4);
}

#[test]
fn each_mover_has_its_own_destination() {
    let (mut receiver, notes, _) = receiver();
    let mut give = |mover, dest| {
        let range = MoveRange { src: PROGRAM, len: 0x1000, dest };
        let mut results = [MoveResult { moved: 0, stop: MoveStop::None }; MAX_MOVES];
        receiver.move_ranges(mover, &[range], &mut results);
        [results[0]]
    };
    let refused = [MoveResult { moved: 0, stop: MoveStop::Refused }];
    let done = [MoveResult { moved: 0x1000, stop: MoveStop::None }];
    assert_eq!(give(Mover::Remap, STAGING), refused);
    assert_eq!(give(Mover::UffdMove, SWAP), refused);
    assert!(notes.taken().is_empty());
    assert_eq!(give(Mover::Remap, SWAP), done);
    assert_eq!(give(Mover::UffdMove, STAGING), done);
    assert_eq!(notes.taken().len(), 2);
}

#[test]
fn what_the_client_end_needs_is_never_offered() {
    let (mut receiver, _, offered) = receiver();
    offered.offer(span(PROGRAM, 0x1000));
    offered.offer(span(STACK - 0x1000, LEN + 0x2000));
    offered.offer(span(STAGING, LEN));
    let mut used = |max_superpages| {
        receiver.superpages_used(&GetPartitionAllocSuperPagesUsed { max_superpages }).unwrap()
    };
    let regions = [
        MemoryRegion::new(STACK - 0x1000, 0x1000),
        MemoryRegion::new(STACK + LEN, 0x1000),
        MemoryRegion::new(PROGRAM, 0x1000),
    ];
    assert_eq!(used(-1), regions);
    assert_eq!(used(i32::MIN), regions);
    assert_eq!(used(2), regions[..2]);
    assert_eq!(used(0), []);
}
