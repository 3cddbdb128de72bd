//! What several threads do with each of the pieces. loom runs each in every order that matters, and with every value that the memory
//! model lets a load give; a deadlock, or two threads at once at what one is to have, ends the test.

use crate::lock::{Bell, Blocked, SignalLock};
use crate::mailbox::Mailbox;
use crate::moving::Moving;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// Tries it with at most so many switches that no thread asked for.
fn tried(switches: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(model);
}

/// `threads` threads take the lock, each `times`, and are alone with what it guards; nobody sleeps for ever.
pub fn lock(threads: usize, times: usize, switches: usize) {
    tried(switches, move || {
        let lock = Arc::new((SignalLock::new(()), UnsafeCell::new(0usize)));
        let work = move |lock: &(SignalLock<()>, UnsafeCell<usize>)| {
            // SAFETY: there are no signals in a model.
            let blocked = unsafe { Blocked::by_the_kernel() };
            for _ in 0..times {
                let held = lock.0.lock(&blocked);
                // SAFETY: the lock's holder is the one who looks; loom watches.
                lock.1.with_mut(|count| unsafe { *count += 1 });
                drop(held);
            }
        };
        // Made here, before there is anybody else.
        work(&lock);
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || work(&lock))
            })
            .collect();
        work(&lock);
        others.into_iter().for_each(|other| other.join().unwrap());
        // SAFETY: nobody else is left.
        assert_eq!(lock.1.with(|count| unsafe { *count }), (threads + 1) * times);
    });
}

/// `waiters` threads wait for something that another says and rings for.
pub fn bell(waiters: usize, switches: usize) {
    tried(switches, move || {
        let all = Arc::new((Bell::default(), AtomicBool::new(false)));
        all.0.ring();
        assert!(!all.1.load(Ordering::Relaxed));
        let waiting: Vec<_> = (0..waiters)
            .map(|_| {
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    loop {
                        let seen = all.0.now();
                        if all.1.load(Ordering::Relaxed) {
                            return;
                        }
                        all.0.wait(seen, None);
                    }
                })
            })
            .collect();
        all.1.store(true, Ordering::Relaxed);
        all.0.ring();
        waiting.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

/// A handler looks into its box until it may sleep; others leave it things or serve them themselves. Each is served once.
pub fn mailbox(others: usize, switches: usize) {
    tried(switches, move || {
        let all = Arc::new((Mailbox::new(), AtomicU32::new(0)));
        all.0.gets_up();
        assert_eq!(all.1.load(Ordering::Relaxed), 0);
        let served = |all: &(Mailbox<u32>, AtomicU32), what: u32| {
            assert_eq!(all.1.fetch_add(what, Ordering::Relaxed) & what, 0, "served twice");
        };
        let others: Vec<_> = (0..others)
            .map(|number| {
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    if let Some(back) = all.0.put(1 << number) {
                        served(&all, back);
                    }
                })
            })
            .collect();
        while !all.0.may_sleep() {
            all.0.gets_up();
            while let Some(post) = all.0.take() {
                served(&all, post);
            }
        }
        let count = others.len();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(all.0.is_empty(), "left with a sleeper");
        assert_eq!(all.1.load(Ordering::Relaxed), (1 << count) - 1);
    });
}

/// An agent moves the page a thread's control block is on, unless the thread is entered; threads enter themselves and go on when nothing is
/// moved any more. None touches its block while it is away.
pub fn moving(threads: usize, moves: usize, switches: usize) {
    struct All {
        moving: Moving,
        entered: Vec<AtomicU32>,
        blocks: Vec<UnsafeCell<u32>>,
    }
    tried(switches, move || {
        let all = Arc::new(All {
            moving: Moving::default(),
            entered: (0..threads).map(|_| AtomicU32::new(0)).collect(),
            blocks: (0..threads).map(|_| UnsafeCell::new(0)).collect(),
        });
        all.moving
            .during(|| all.entered.iter().for_each(|entered| assert_eq!(entered.load(Ordering::Relaxed), 0)));
        let starting: Vec<_> = (0..threads)
            .map(|number| {
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    all.entered[number].store(1, Ordering::Release);
                    all.moving.await_end();
                    // SAFETY: what the model is about: the agent isn't at it. loom watches.
                    all.blocks[number].with_mut(|block| unsafe { *block += 1 });
                })
            })
            .collect();
        for _ in 0..moves {
            all.moving.during(|| {
                for (entered, block) in all.entered.iter().zip(&all.blocks) {
                    if entered.load(Ordering::Acquire) == 0 {
                        // SAFETY: as above.
                        block.with_mut(|block| unsafe { *block += 1 });
                    }
                }
            });
        }
        starting.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
