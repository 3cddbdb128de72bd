//! The simulator is as good as what it finds: an engine that makes one mistake, of each kind, is found out by a few thousand seeds.

use userswap_tests::sim::{Defect, Options, run_seeds};

/// Seeds each mistake must be found in.
const SEEDS: std::ops::Range<u64> = 0..10_000;

#[track_caller]
fn is_found(defect: Defect) {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let found = run_seeds(SEEDS, jobs, Options { defect: Some(defect), ..Options::default() });
    let Some((seed, wrong)) = found.wrong.first() else {
        panic!("{} isn't found in {SEEDS:?}", defect.name());
    };
    println!("{}: seed {seed}: {wrong}", defect.name());
    // It is the defect that was found, nothing else.
    let without = run_seeds(*seed..seed + 1, 1, Options::default());
    assert!(without.wrong.is_empty(), "{}", without.failures(Options::default()));
}

#[test]
fn a_removed_page_that_is_kept_is_found() {
    is_found(Defect::StaleAfterRemove);
}

#[test]
fn a_page_that_is_kept_though_removed_while_it_moved_is_found() {
    is_found(Defect::RemovedWhileMoving);
}

#[test]
fn events_applied_after_the_faults_beside_them_are_found() {
    is_found(Defect::EventsAfterFaults);
}

#[test]
fn a_lost_wake_is_found() {
    is_found(Defect::LostWake);
}

#[test]
fn a_refusal_taken_for_done_is_found() {
    is_found(Defect::RefusalDropped);
}

#[test]
fn a_part_taken_for_the_whole_is_found() {
    is_found(Defect::PartTakenForWhole);
}

#[test]
fn handlers_without_the_gate_are_found() {
    is_found(Defect::GateNotHeldByHandlers);
}

#[test]
fn movers_without_the_gate_are_found() {
    is_found(Defect::GateNotHeldByMovers);
}

#[test]
fn a_slot_emptied_before_its_page_is_stored_is_found() {
    is_found(Defect::SlotEmptiedEarly);
}

#[test]
fn a_page_freed_twice_is_found() {
    is_found(Defect::DoubleFree);
}

#[test]
fn a_page_freed_before_it_is_in_place_is_found() {
    is_found(Defect::EarlyFree);
}

#[test]
fn a_page_that_a_fork_did_not_count_is_found() {
    is_found(Defect::MissedShare);
}

#[test]
fn zeros_in_place_of_a_lost_page_are_found() {
    is_found(Defect::LossGuessed);
}

#[test]
fn a_successor_that_forgets_what_was_read_is_found() {
    is_found(Defect::EventsForgotten);
}

#[test]
fn a_successor_that_takes_what_moved_for_not_moved_is_found() {
    is_found(Defect::MoveForgotten);
}

/// Each has its test above.
#[test]
fn every_defect_has_a_name_of_its_own() {
    for defect in Defect::ALL {
        assert_eq!(Defect::named(defect.name()), Some(defect));
    }
}
