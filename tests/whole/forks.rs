//! Programs that page themselves and fork, each in a process of its own: a fork concerns every region of a process.

use crate::child;
use userswap_tests::watch::Watchdog;

fn scenario(name: &'static str, scenario: &str) {
    let _watch = Watchdog::new(name);
    let mut part = child::start("forks", &[scenario]);
    if !part.skipped_or("done") {
        part.wait();
    }
}

#[test]
fn a_child_sees_what_was_and_writes_diverge() {
    scenario("a_child_sees_what_was_and_writes_diverge", "writes diverge");
}

#[test]
fn grandchildren_see_what_was() {
    scenario("grandchildren_see_what_was", "grandchildren");
}

#[test]
fn pages_standing_in_slots_are_there_for_the_child_too() {
    scenario("pages_standing_in_slots_are_there_for_the_child_too", "standby");
}

#[test]
fn a_fork_with_nothing_out_is_seen() {
    scenario("a_fork_with_nothing_out_is_seen", "nothing is out");
}

#[test]
fn children_forked_among_faults_and_evictions_see_everything() {
    scenario("children_forked_among_faults_and_evictions_see_everything", "while threads fault and evict");
}

#[test]
fn what_either_does_to_its_mappings_after_the_fork_is_its_own_affair() {
    scenario("what_either_does_to_its_mappings_after_the_fork_is_its_own_affair", "changes after the fork");
}
