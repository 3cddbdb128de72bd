//! Forks of a program that pages itself.

use crate::sys::{all_hold, fork_bare as fork, reap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use userswap_engine::core::Transition;
use userswap_engine::{EvictError, Keep};
use userswap_tests::own::{Own, move_mapping, remove};
use userswap_tests::plain::PlainStore;
use userswap_tests::random::Random;
use userswap_tests::watch::until;

const PAGES: u64 = 256;

fn value(page: u64) -> u64 {
    page + 1
}

pub(crate) fn run(scenario: &str) {
    let store = Arc::new(PlainStore::default());
    let Some(own) = Own::settings(PAGES, Arc::clone(&store) as _).forks().build("forks") else { return };
    own.pages.fill_all(value);
    match scenario {
        "writes diverge" => writes_diverge(&own),
        "grandchildren" => grandchildren(&own),
        "standby" => standby(&own),
        "nothing is out" => nothing_is_out(&own),
        "while threads fault and evict" => while_threads_fault_and_evict(&own),
        "changes after the fork" => changes_after_the_fork(&own),
        other => panic!("no such scenario: {other}"),
    }
    // A child that never calls is known to be gone only by looking.
    until("the children are let go of", || {
        own.engine.sweep();
        own.engine.spaces().len() == 1
    });
    drop(own);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
    println!("done");
}

/// Both see what was; what each writes the other doesn't see, in memory and in the store.
fn writes_diverge(own: &Own) {
    for round in 0..8 {
        own.evict();
        let child = fork(|| {
            let seen = all_hold(own.pages, value);
            (0..PAGES).step_by(2).for_each(|page| own.pages.fill(page, !value(page)));
            seen && all_hold(own.pages, |page| if page % 2 == 0 { !value(page) } else { value(page) })
        });
        // The child needs it meanwhile, whatever becomes of it here.
        let mine = |page: u64| if page % 2 == 1 { value(page) << 8 | round } else { value(page) };
        (1..PAGES).step_by(2).for_each(|page| own.pages.fill(page, mine(page)));
        own.evict();
        own.pages.assert_all(mine);
        assert!(reap(child), "round {round}");
        own.pages.fill_all(value);
    }
    assert!(own.space.counts().get(Transition::ForkShared) > 0);
}

fn grandchildren(own: &Own) {
    own.evict();
    let child = fork(|| {
        own.pages.fill(0, 77);
        let grandchild = fork(|| {
            own.pages.fill(1, 88);
            let great = fork(|| own.pages.read(0) == Ok(77) && own.pages.read(1) == Ok(88));
            let rest = |page: u64| if page < 2 { [77, 88][page as usize] } else { value(page) };
            all_hold(own.pages, rest) && reap(great)
        });
        let rest = |page: u64| if page == 0 { 77 } else { value(page) };
        all_hold(own.pages, rest) && reap(grandchild)
    });
    assert!(reap(child));
    own.pages.assert_all(value);
}

/// Pages that stand in slots at the fork, and are written out, or come back, while the child needs them.
fn standby(own: &Own) {
    for round in 0..8 {
        own.space.move_out(own.pages.span(), u64::MAX, Keep::Standby).unwrap();
        let child = fork(|| all_hold(own.pages, value));
        if round % 2 == 0 {
            own.space.write_out(u64::MAX).unwrap();
        } else {
            own.pages.fill_all(|page| !value(page));
        }
        assert!(reap(child), "round {round}");
        own.pages.fill_all(value);
    }
    assert!(own.space.counts().get(Transition::ForkStandby) > 0);
}

/// Nothing but one page is registered: the fork is seen all the same, and nothing is missing on either side.
fn nothing_is_out(own: &Own) {
    let child = fork(|| all_hold(own.pages, value));
    until("the fork is seen", || own.engine.spaces().len() == 2);
    own.evict();
    own.pages.assert_all(value);
    assert!(reap(child));
}

/// Children are forked while threads touch and others move out and bring back.
fn while_threads_fault_and_evict(own: &Own) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    let page = random.below(PAGES);
                    assert_eq!(own.pages.read(page), Ok(value(page)));
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random::new(9);
            while !stop.load(Ordering::Relaxed) {
                let part = own.pages.part(random.below(PAGES - 32), 32).span();
                let keep = if random.one_in(2) { Keep::Standby } else { Keep::Stored };
                if random.one_in(5) {
                    own.space.bring_back(part, 16).unwrap();
                } else {
                    match own.space.move_out(part, u64::MAX, keep) {
                        // Children that are still there may stand in every slot.
                        Ok(_) | Err(EvictError::NoSlot) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        for round in 0..24 {
            let children: Vec<i32> = (0..2)
                .map(|_| {
                    fork(|| {
                        let seen = all_hold(own.pages, value);
                        own.pages.fill(round, 5);
                        seen && own.pages.read(round) == Ok(5)
                    })
                })
                .collect();
            for child in children {
                assert!(reap(child), "round {round}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    own.pages.assert_all(value);
}

/// What a process does to its mappings after the fork is its own affair.
fn changes_after_the_fork(own: &Own) {
    own.evict();
    let child = fork(|| {
        remove(own.pages.part(0, 64).span());
        let gone = (0..64).all(|page| own.pages.read(page) == Ok(0));
        let part = own.pages.part(64, 64).span();
        let Ok(moved) = move_mapping(part, part.len(), None) else { return false };
        // SAFETY: it is where the kernel moved this memory to.
        let moved = unsafe { userswap_tests::pages::Pages::new(moved) };
        let rest = own.pages.part(128, PAGES - 128);
        gone && all_hold(moved, |page| value(page + 64)) && all_hold(rest, |page| value(page + 128))
    });
    remove(own.pages.part(192, 64).span());
    for page in 0..PAGES {
        assert_eq!(own.pages.read(page), Ok(if page < 192 { value(page) } else { 0 }));
    }
    assert!(reap(child));
}
