//! The races the gate is there for, each made to happen again and again: the program's call stands in the kernel with its event
//! unread just when a decision made before it is about to be carried out.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use userswap_engine::core::Transition;
use userswap_engine::{Keep, Space};
use userswap_tests::own::{Own, Point, free_range, give_notice, map_over, move_mapping, remove, unmap_span};
use userswap_tests::pages::Pages;
use userswap_tests::plain::PlainStore;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::{LONG, Watchdog, rounds, until};
use userswap_uffd::Span;

/// Two threads that meet: one says where it is, the other tells it to go on.
struct Meeting {
    here: Sender<()>,
    go_on: parking_lot::Mutex<Receiver<()>>,
}

/// The other side of a [`Meeting`].
struct Other {
    arrived: Receiver<()>,
    go: Sender<()>,
}

fn meeting() -> (Meeting, Other) {
    let (here, arrived) = channel();
    let (go, go_on) = channel();
    (Meeting { here, go_on: parking_lot::Mutex::new(go_on) }, Other { arrived, go })
}

impl Meeting {
    fn meet(&self) {
        let _ = self.here.send(());
        let _ = self.go_on.lock().recv_timeout(LONG);
    }
}

impl Other {
    fn wait(&self) {
        self.arrived.recv_timeout(LONG).unwrap();
    }

    fn go(&self) {
        self.go.send(()).unwrap();
    }
}

/// Whether there is something to be read and somebody has tried.
fn stands_unread(space: &Space) -> bool {
    let messages = space.memory().messages().unwrap();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    space.has_unread()
        && rustix::event::poll(&mut [PollFd::new(&messages, PollFlags::IN)], Some(&now)) == Ok(1)
}

/// While a page's bytes are being fetched it is removed, and the removal has been read and applied. The bytes come too late.
#[test]
fn a_late_copy_after_a_removal_was_read_brings_nothing_back() {
    let _watch = Watchdog::new("a_late_copy_after_a_removal_was_read_brings_nothing_back");
    let (fetching, test) = meeting();
    let store = Arc::new(ScriptedStore::new(move |_| {
        fetching.meet();
        Answer::Ready
    }));
    let settings = Own::settings(64, Arc::clone(&store) as _).around(1);
    let Some(own) = settings.build("a_late_copy_after_a_removal_was_read_brings_nothing_back") else {
        return;
    };
    let rounds = rounds(300, 5000);
    for round in 1..=rounds {
        let page = round % own.pages.len();
        let one = own.pages.part(page, 1);
        one.fill(0, round);
        assert_eq!(own.evict_span(one.span()).stored, 1);
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| one.read(0));
            test.wait();
            // Returns when another handler has read of it and the page is gone: the first one still fetches.
            remove(one.span());
            test.go();
            assert_eq!(toucher.join().unwrap(), Ok(0), "round {round}: a removed page came back");
        });
        one.fill(0, !round);
        assert_eq!(one.read(0), Ok(!round));
    }
    assert_eq!(own.space.counts().get(Transition::RemovedInFlight), rounds);
    assert_eq!(own.space.counts().get(Transition::VanishedInFlight), rounds);
    drop(own);
    assert_eq!((store.plain().len(), store.plain().freed_twice()), (0, 0));
}

/// A zero page is about to be installed where nothing was ever; just then the program moves a mapping there whose pages are out.
#[test]
fn a_zero_page_never_lands_on_a_mapping_that_moved_there() {
    let _watch = Watchdog::new("a_zero_page_never_lands_on_a_mapping_that_moved_there");
    let store = Arc::new(PlainStore::default());
    let settings = Own::settings(16, Arc::clone(&store) as _).around(1);
    let Some(own) = settings.build("a_zero_page_never_lands_on_a_mapping_that_moved_there") else { return };
    let (zeroing, test) = meeting();
    let refused = Arc::new(AtomicU64::new(0));
    let (space, refusals) = (Arc::clone(&own.space), Arc::clone(&refused));
    let armed = Arc::new(AtomicU64::new(0));
    let target = Arc::clone(&armed);
    own.hooks.set(move |point| {
        if let Point::Zero(addr) = point
            && addr == target.load(Ordering::Acquire)
        {
            target.store(0, Ordering::Release);
            zeroing.meet();
            // The event waits unread: whoever wanted to read it was turned away by the gate.
            until("an event unread, a handler turned away by the gate", || stands_unread(&space));
            refusals.fetch_add(1, Ordering::Relaxed);
        }
    });
    let rounds = rounds(200, 3000);
    let mut targets = Vec::new();
    for round in 1..=rounds {
        // Where nothing is out there would be no fault: the first page is.
        let target = free_range(4 * 4096).leak();
        own.space.manage(target).unwrap();
        // SAFETY: fresh read-write memory that nobody else knows.
        let at = unsafe { Pages::new(target) };
        let source = free_range(4 * 4096).leak();
        own.space.manage(source).unwrap();
        // SAFETY: as above.
        let from = unsafe { Pages::new(source) };
        at.fill(0, 7);
        own.evict_span(target);
        from.fill_all(|page| round + page);
        assert_eq!(own.evict_span(from.span()).stored, 4);
        armed.store(at.address(2), Ordering::Release);
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| at.read(2));
            test.wait();
            let mover = scope.spawn(|| move_mapping(from.span(), from.span().len(), Some(target.start())));
            test.go();
            assert_eq!(mover.join().unwrap().unwrap(), target);
            // It waited for the page that was there; what moved there is what it gets.
            assert_eq!(toucher.join().unwrap(), Ok(round + 2), "round {round}: zeros over what moved here");
        });
        at.assert_all(|page| round + page);
        targets.push(target);
    }
    // Not before: a handler may come late to a fault that was served, and would put its zero page where the next round looks for none.
    for target in targets {
        give_notice(&own.space, target);
        unmap_span(target);
    }
    assert_eq!(refused.load(Ordering::Relaxed), rounds);
    drop(own);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

/// A range is about to be moved out; just then the program unmaps it, and maps something else there as soon as it can.
#[test]
fn a_move_never_takes_a_mapping_that_replaced_the_one_it_was_for() {
    let _watch = Watchdog::new("a_move_never_takes_a_mapping_that_replaced_the_one_it_was_for");
    let store = Arc::new(PlainStore::default());
    let settings = Own::settings(64, Arc::clone(&store) as _);
    let Some(own) = settings.build("a_move_never_takes_a_mapping_that_replaced_the_one_it_was_for") else {
        return;
    };
    let (moving, test) = meeting();
    let space = Arc::clone(&own.space);
    let (armed, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (target, refusals) = (Arc::clone(&armed), Arc::clone(&refused));
    own.hooks.set(move |point| {
        if let Point::Move(span) = point
            && span.contains(target.load(Ordering::Acquire))
        {
            target.store(0, Ordering::Release);
            moving.meet();
            until("an event unread, a handler turned away by the gate", || stands_unread(&space));
            refusals.fetch_add(1, Ordering::Relaxed);
        }
    });
    let rounds = rounds(200, 3000);
    for round in 1..=rounds {
        let block = own.pages.part(16, 16);
        block.fill_all(|page| round << 8 | page);
        armed.store(block.address(0), Ordering::Release);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| own.space.move_out(block.span(), u64::MAX, Keep::Stored));
            test.wait();
            let program = scope.spawn(|| {
                map_over(block.span());
                block.fill_all(|page| !(round << 8 | page));
                block.assert_all(|page| !(round << 8 | page));
            });
            test.go();
            program.join().unwrap();
            // That nothing was moved may be said in either way.
            let moved = mover.join().unwrap().map_or(0, |moved| moved.moved);
            assert_eq!(moved, 0, "round {round}");
        });
        block.assert_all(|page| !(round << 8 | page));
        own.space.manage(block.span()).unwrap();
    }
    assert_eq!(refused.load(Ordering::Relaxed), rounds);
    drop(own);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

/// The same without any order imposed: programs remove, replace and move what others move out and bring back.
#[test]
fn removals_replacements_and_moves_among_faults_and_evictions_lose_nothing() {
    let _watch = Watchdog::new("removals_replacements_and_moves_among_faults_and_evictions_lose_nothing");
    let store = Arc::new(ScriptedStore::new(|key| {
        // Now and then another thread gets its turn while bytes are under way.
        if key.generation.is_multiple_of(7) {
            std::thread::yield_now();
        }
        Answer::Ready
    }));
    let settings = Own::settings(3 * 32, Arc::clone(&store) as _).around(8);
    let Some(mut own) =
        settings.build("removals_replacements_and_moves_among_faults_and_evictions_lose_nothing")
    else {
        return;
    };
    // The programs unmap and move their parts.
    own.keep_mapped();
    let steps = rounds(8000, 200_000);
    let calm = RwLock::new(());
    std::thread::scope(|scope| {
        let programs: Vec<_> = (0..3)
            .map(|number| {
                let (own, calm, block) = (&own, &calm, own.pages.part(number * 32, 32).span());
                scope.spawn(move || crate::program::run(&own.space, calm, block, number + 1, steps))
            })
            .collect();
        let mut evictor = userswap_tests::random::Random::new(99);
        while programs.iter().any(|program| !program.is_finished()) {
            let all: Vec<Span> = own
                .space
                .parts()
                .iter()
                .filter_map(|part| Span::from_pages(part.piece.addr, u64::from(part.piece.pages)).ok())
                .collect();
            for span in all {
                // What was unmapped meanwhile can't be moved, nor brought back.
                if evictor.one_in(4) {
                    // Not while a program counts on being told of what is registered.
                    let _calm = calm.write().unwrap();
                    let _ = own.space.bring_back(span, 8);
                } else {
                    let keep = if evictor.one_in(2) { Keep::Standby } else { Keep::Stored };
                    let _ = own.space.move_out(span, 1 + evictor.below(32), keep);
                }
            }
        }
        for program in programs {
            program.join().unwrap();
        }
    });
    let counts = own.space.counts();
    for transition in [
        Transition::Moved,
        Transition::Fetch,
        Transition::RemovedStored,
        Transition::Remapped,
        Transition::UnmappedOut,
    ] {
        assert!(counts.get(transition) > 0, "never happened: {}", transition.name());
    }
    drop(own);
    assert_eq!((store.plain().len(), store.plain().freed_twice()), (0, 0));
}
