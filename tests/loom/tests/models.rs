//! Each piece, in every interleaving of a few threads.

use userswap_loom::models;

#[test]
fn a_signal_lock_has_one_holder_and_no_sleeper_is_forgotten() {
    models::lock(2, 2, 4);
    models::lock(3, 1, 3);
}

#[test]
fn who_waits_for_a_bell_hears_it() {
    models::bell(1, 5);
    models::bell(2, 3);
}

#[test]
fn nothing_is_left_in_the_box_of_a_sleeper_and_nothing_is_served_twice() {
    models::mailbox(1, 6);
    models::mailbox(2, 3);
}

#[test]
fn no_thread_begins_on_a_block_that_is_being_moved() {
    models::moving(1, 2, 5);
    models::moving(2, 1, 3);
}
