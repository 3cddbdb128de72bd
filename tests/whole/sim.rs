//! The engine on a simulated machine: tens of thousands of seeds, and the stories of bugs that were found.

use userswap_tests::sim::{Options, Script, run_seeds};

/// Every seed of the normal run.
const SEEDS: std::ops::Range<u64> = 0..50_000;

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn no_byte_is_lost_in_tens_of_thousands_of_seeds_and_every_transition_is_taken() {
    let options = Options::default();
    let report = run_seeds(SEEDS, jobs(), options);
    println!("{report}");
    assert!(report.wrong.is_empty(), "{}", report.failures(options));
    assert_eq!(report.seeds, SEEDS.end - SEEDS.start);
    assert!(report.fewest_events >= 500, "a seed has only {} kernel events", report.fewest_events);
    assert_eq!(report.never(), [], "transitions that never happened");
}

/// Far from those of the normal run: a block landed where a range was taken into care that another had just been moved from.
#[test]
fn a_seed_that_once_lost_a_page() {
    let report = run_seeds(1_196_442..1_196_443, 1, Options::default());
    assert!(report.wrong.is_empty(), "{}", report.failures(Options::default()));
}

/// What successors of the dead did wrong, each found by the seed before it.
#[test]
fn seeds_whose_successors_once_erred() {
    let stories = [
        (
            10_158,
            "what was taken into care where a move had left something watched didn't count as watched: its next move left threads that nobody woke",
        ),
        (
            20_020,
            "an order that was never given was waited for, and a child told of meanwhile had its page out in a range that isn't watched",
        ),
        (
            47_394,
            "who waited where a mapping had been moved to, of which nobody had heard yet, was not woken",
        ),
        (
            29_852,
            "the slots of a process that was gone were read from one child's copy for another child, after the first had emptied it: a byte lost",
        ),
        (422_279, "the same for that child's own child"),
        (162_438, "what had turned out not to be overdue was overdue again, and a later event taken for it"),
        (
            6_345,
            "a child's page on its way to a slot was named as an older object of it that another child had: bytes of another time",
        ),
    ];
    for (seed, story) in stories {
        let report = run_seeds(seed..seed + 1, 1, Options::default());
        assert!(report.wrong.is_empty(), "{story}: {}", report.failures(Options::default()));
        assert!(report.deaths > 0, "{seed}: nobody died");
    }
}

#[test]
fn without_the_gate_chance_finds_what_it_is_for() {
    let report = run_seeds(0..2_000, jobs(), Options { gate: false, ..Options::default() });
    assert!(!report.wrong.is_empty(), "2,000 seeds without the gate and nothing was lost");
}

#[test]
fn without_a_sentinel_chance_finds_a_child_nobody_was_told_of() {
    let report = run_seeds(0..2_000, jobs(), Options { sentinel: false, ..Options::default() });
    let (_, wrong) = report.wrong.first().expect("2,000 seeds without a sentinel and every fork was told");
    assert!(wrong.contains("nobody was told of its fork"), "{wrong}");
}

/// The four races the gate and the sentinel are for. Each story is told with the defence and without.
mod races {
    use super::*;

    fn told(story: fn(&mut Script), gated: bool) -> Option<String> {
        let mut script = Script::new(3, gated, true);
        story(&mut script);
        script.rest();
        script.wrong()
    }

    #[track_caller]
    fn only_the_gate_helps(story: fn(&mut Script), what: &str) {
        assert_eq!(told(story, true), None);
        let wrong = told(story, false).expect("nothing is lost without the gate");
        assert!(wrong.contains(what), "{wrong}");
    }

    #[test]
    fn a_copy_that_comes_late_after_a_removal_was_read() {
        only_the_gate_helps(
            |script| {
                script.block(0, 4);
                script.touch(0, 1, true);
                script.move_out(1, false);
                // The bytes are in the handler's hands.
                script.touch(0, 1, false);
                script.hear();
                script.apply();
                script.serve();
                script.handle(2);
                script.machine().remove(1, 1, 1, false);
                script.finish(1);
                script.handle(3);
                script.apply();
                script.rest();
                script.touch(2, 1, false);
            },
            "should read Expected { value: 0",
        );
    }

    #[test]
    fn a_zero_page_at_an_address_something_else_was_moved_to() {
        only_the_gate_helps(
            |script| {
                // Page 0 was never touched, page 10 is in the store.
                script.block(0, 2);
                script.block(10, 1);
                script.touch(0, 1, true);
                script.touch(0, 10, true);
                script.move_out(1, false);
                script.move_out(10, false);
                script.touch(0, 0, false);
                script.hear();
                script.apply();
                script.serve();
                // Decided: a zero page.
                script.handle(1);
                script.machine().munmap(1, 0, 2);
                script.finish(1);
                script.machine().mremap(2, 10, 1, 0, false);
                script.finish(2);
                script.handle(1);
                script.apply();
                script.rest();
                script.touch(1, 0, false);
            },
            "reads 0 on page 0",
        );
    }

    #[test]
    fn a_move_out_of_a_mapping_that_took_the_old_ones_place() {
        only_the_gate_helps(
            |script| {
                script.block(0, 4);
                script.touch(0, 1, true);
                script.move_out(1, false);
                script.touch(0, 2, true);
                script.rest();
                script.begin_move(0, false);
                // Looked, found room, planned.
                script.move_on(3);
                script.machine().munmap(1, 0, 4);
                script.finish(1);
                script.machine().mmap(0, 0, 4);
                script.touch(2, 2, true);
                script.move_on(1);
                script.apply();
                script.rest();
                script.touch(1, 2, false);
            },
            "reads 0 on page 2",
        );
    }

    #[test]
    fn a_fork_with_nothing_registered() {
        let story = |sentinel| {
            let mut script = Script::new(2, true, sentinel);
            script.block(0, 4);
            script.touch(0, 1, true);
            script.machine().fork(0);
            script.finish(0);
            script.rest();
            script.wrong()
        };
        assert_eq!(story(true), None);
        let wrong = story(false).expect("the engine hears of a fork nobody is told of");
        assert!(wrong.contains("nobody was told of its fork"), "{wrong}");
    }
}

/// Bugs that were found, each as the shortest story that shows it.
mod found {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;
    use userswap_engine::core::Transition;
    use userswap_engine::fault::FaultWork;
    use userswap_engine::memory::{Batch, Fault};
    use userswap_store::{
        Capabilities, Fetch, FetchKind, Handle, Page, PageKey, Stats, Store, StoreError, Waiter,
    };
    use userswap_tests::sim::machine::addr_of;
    use userswap_tests::sim::memory::Shared;
    use userswap_tests::sim::store::{Manners, SimStore};

    #[track_caller]
    fn ends_well(mut script: Script, story: impl FnOnce(&mut Script)) {
        story(&mut script);
        script.rest();
        assert_eq!(script.wrong(), None);
    }

    fn script() -> Script {
        Script::new(3, true, true)
    }

    /// Everything a program unmaps and maps while it isn't registered happens unseen; what the books took for watched was not.
    #[test]
    fn a_mapping_made_in_a_hole_of_a_registered_region() {
        ends_well(script(), |script| {
            script.block(0, 4);
            script.touch(0, 1, true);
            script.machine().munmap(1, 3, 1);
            script.finish(1);
            script.move_out(1, false);
            script.machine().mmap(0, 3, 1);
            script.touch(0, 3, true);
            script.move_out(0, false);
            script.touch(0, 3, false);
        });
    }

    /// One thread unmaps A and loses its CPU before it says so; another's block moves to A; the late UNMAP is not about that.
    #[test]
    fn an_unmapped_event_that_comes_after_something_landed_there() {
        ends_well(script(), |script| {
            for block in [0, 10] {
                script.block(block, 1);
                script.touch(0, block, true);
                script.move_out(block, false);
            }
            script.machine().munmap(1, 0, 1);
            script.machine().mremap(2, 10, 1, 0, false);
            script.finish(2);
            script.finish(1);
            script.touch(0, 0, false);
        });
    }

    /// One thread moves A to B, another C to A, and the second says so first.
    #[test]
    fn a_move_that_is_told_after_something_landed_on_its_source() {
        ends_well(script(), |script| {
            for block in [0, 10] {
                script.block(block, 1);
                script.touch(0, block, true);
                script.move_out(block, false);
            }
            script.machine().mremap(1, 0, 1, 20, false);
            script.machine().mremap(2, 10, 1, 0, false);
            script.finish(2);
            script.finish(1);
            script.touch(0, 0, false);
            script.touch(2, 20, false);
        });
    }

    /// After a move the kernel says that the old place is unmapped, too; by then something else may stand there.
    #[test]
    fn a_block_that_lands_between_a_move_and_the_end_of_its_old_mapping() {
        ends_well(script(), |script| {
            for block in [0, 10] {
                script.block(block, 1);
                script.touch(0, block, true);
                script.move_out(block, false);
            }
            script.machine().mremap(1, 0, 1, 20, false);
            // "0 moved to 20" is told, "0 is unmapped" not yet.
            script.go_on(1);
            script.hear();
            script.machine().mremap(2, 10, 1, 0, false);
            script.finish(2);
            script.finish(1);
            script.touch(0, 0, false);
            script.touch(2, 20, false);
        });
    }

    /// A second thread touches a page that comes along with another's; the kernel is busy, and only the first was tried again.
    #[test]
    fn a_neighbour_of_a_flight_that_ends_early_has_its_thread_woken() {
        ends_well(script(), |script| {
            script.block(0, 8);
            for page in 0..8 {
                script.touch(0, page, true);
            }
            script.move_out(0, false);
            // In order, so that neighbours come along.
            for page in 0..2 {
                script.touch(0, page, false);
                script.rest();
            }
            // 2 came with 1, and now four at once.
            script.touch(0, 3, false);
            script.hear();
            script.serve();
            script.handle(2);
            script.touch(1, 4, false);
            script.hear();
            script.serve_by(1);
            script.handle_by(1, 1);
            script.machine().remove(2, 7, 1, false);
            script.go_on(2);
            // Busy: the removal is queued.
            script.handle(3);
        });
    }

    /// What is unregistered is whatever is mapped there, and that may be another region, which moved there a moment ago.
    #[test]
    fn nothing_is_unregistered_while_anything_is_out() {
        ends_well(script(), |script| {
            for block in [0, 10] {
                script.block(block, 1);
                script.touch(0, block, true);
                script.move_out(block, false);
            }
            script.begin_back(0);
            // Back, but not yet unregistered.
            script.move_on(7);
            script.machine().munmap(1, 0, 1);
            script.machine().mremap(2, 10, 1, 0, false);
            script.move_on(2);
            script.touch(0, 0, false);
        });
    }

    /// A program makes itself a daemon: it forks while a page of its own stands in a slot, and exits. The child's page was lost with it.
    #[test]
    fn what_stood_in_the_slot_of_a_parent_that_is_gone() {
        ends_well(script(), |script| {
            script.block(0, 2);
            script.touch(0, 0, true);
            script.touch(0, 1, true);
            script.move_out(0, true);
            script.machine().fork(0);
            script.finish(0);
            script.machine().exit(0);
            script.space().close();
            let child = Arc::clone(&script.children()[0]);
            let thread = script.machine().threads.len() - 1;
            let mut work = FaultWork::new(1);
            for page in 0..2 {
                assert!(!script.touch(thread, page, false));
                let mut batch = Batch::default();
                child.take_messages(&mut batch, Duration::ZERO).unwrap();
                assert_eq!(batch.faults.len(), 1);
                work.run(&child, batch.faults[0]);
                // Compares what it reads with what was written.
                script.machine().run(thread, true);
            }
            assert_eq!(child.counts().get(Transition::Poisoned), 0);
            script.machine().exit(1);
            child.close();
        });
    }

    /// A process exits between a move and the reading of its slot: what was written before was committed again, and freed twice.
    #[test]
    fn a_slot_that_cannot_be_read_commits_nothing() {
        ends_well(script(), |script| {
            script.block(0, 2);
            script.block(10, 1);
            script.touch(0, 0, true);
            script.touch(0, 1, true);
            script.touch(0, 10, true);
            script.move_out(0, false);
            for page in 0..2 {
                script.touch(0, page, false);
                script.rest();
            }
            script.begin_move(10, false);
            // Looked, found room, planned, asked, recorded.
            script.move_on(5);
            script.machine().exit(0);
            script.move_on(2);
            script.space().close();
        });
    }

    /// A second fault on a page whose removal is under way finds the old page there; moved out now, it would come back.
    #[test]
    fn a_page_that_waits_to_be_removed_is_not_moved_out() {
        ends_well(script(), |script| {
            script.block(0, 2);
            script.touch(0, 0, true);
            script.move_out(0, false);
            script.touch(0, 0, false);
            script.hear();
            // A signal: the same fault again.
            script.machine().signal(0);
            script.machine().run(0, true);
            script.hear();
            script.serve();
            script.handle(6);
            script.machine().remove(1, 0, 1, false);
            script.go_on(1);
            script.hear();
            script.go_on(1);
            // The old page is there still. The second fault, and a move.
            script.serve();
            script.handle(2);
            script.begin_move(0, true);
            script.move_on(5);
            script.rest();
            script.touch(2, 0, false);
        });
    }

    /// A range nobody has in care is removed; before that is done it is taken into care, and its old page moved out.
    #[test]
    fn a_removal_that_was_read_before_the_range_was_in_care() {
        ends_well(script(), |script| {
            script.block(0, 1);
            script.touch(0, 0, true);
            script.move_out(0, false);
            // The old mapping stays, registered and nobody's.
            script.machine().mremap(1, 0, 1, 20, true);
            script.finish(1);
            script.touch(0, 0, true);
            script.rest();
            script.machine().remove(1, 0, 1, false);
            script.go_on(1);
            script.hear();
            script.go_on(1);
            script.manage(0, 1);
            script.begin_move(0, true);
            script.move_on(5);
            script.go_on(1);
            script.rest();
            script.touch(2, 0, false);
        });
    }

    /// Fails once, then answers later or at once.
    struct Stutter {
        inner: Arc<SimStore>,
        first: fn(PageKey) -> StoreError,
        late: bool,
        waiting: Mutex<Option<(Handle, PageKey, Waiter)>>,
        fetches: Mutex<u32>,
    }

    impl Stutter {
        fn new(machine: &Shared, first: fn(PageKey) -> StoreError, late: bool) -> Arc<Self> {
            let inner = SimStore::new(machine, Manners::GOOD);
            Arc::new(Self { inner, first, late, waiting: Mutex::new(None), fetches: Mutex::new(0) })
        }

        fn answer(&self) {
            let waiting = self.waiting.lock().take();
            if let Some((handle, key, waiter)) = waiting {
                let mut page = vec![0; userswap_uffd::page_size()];
                assert!(matches!(
                    self.inner.fetch(handle, key, &mut page, &Waiter::none()),
                    Ok(Fetch::Ready)
                ));
                waiter.complete(Ok(&page));
            }
        }
    }

    impl Store for Stutter {
        fn capabilities(&self) -> Capabilities {
            let mut capabilities = self.inner.capabilities();
            capabilities.fetch = FetchKind::Mixed;
            capabilities
        }

        fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
            self.inner.put(pages, handles)
        }

        fn fetch(
            &self,
            handle: Handle,
            key: PageKey,
            page: &mut [u8],
            waiter: &Waiter,
        ) -> Result<Fetch, StoreError> {
            *self.fetches.lock() += 1;
            if *self.fetches.lock() == 1 {
                return Err((self.first)(key));
            }
            if !self.late {
                return self.inner.fetch(handle, key, page, waiter);
            }
            *self.waiting.lock() = Some((handle, key, waiter.clone()));
            Ok(Fetch::Pending)
        }

        fn free(&self, handles: &[Handle]) {
            self.inner.free(handles);
        }

        fn stats(&self) -> Stats {
            self.inner.stats()
        }
    }

    /// A fetch that is tried again and answered later was answered to nobody, and the page given up.
    #[test]
    fn a_retried_fetch_that_is_answered_later_is_waited_for() {
        let mut store = None;
        let script = Script::with_store(1, true, true, |machine: &Shared| {
            let timed_out =
                |_| StoreError::Io { doing: "stuttering", source: io::ErrorKind::TimedOut.into() };
            let stutter = Stutter::new(machine, timed_out, true);
            store = Some(Arc::clone(&stutter));
            stutter
        });
        let store = store.expect("made");
        ends_well(script, |script| {
            script.block(0, 1);
            script.touch(0, 0, true);
            script.move_out(0, false);
            script.touch(0, 0, false);
            script.hear();
            script.serve();
            script.handle(2);
            store.answer();
        });
        assert_eq!(*store.fetches.lock(), 2);
    }

    /// A page that can't be brought back moved meanwhile, and what stands at its old place was poisoned for it.
    #[test]
    fn poison_goes_where_the_page_is() {
        let script = Script::with_store(3, true, true, |machine: &Shared| {
            Stutter::new(machine, |key| StoreError::Corrupt { key, what: "a story" }, false)
        });
        ends_well(script, |script| {
            for block in [0, 10] {
                script.block(block, 1);
                script.touch(0, block, true);
                script.move_out(block, false);
            }
            script.touch(0, 0, false);
            script.hear();
            script.serve();
            // Fetched, in vain.
            script.handle(2);
            script.machine().mremap(1, 0, 1, 20, false);
            script.finish(1);
            script.machine().mremap(2, 10, 1, 0, false);
            script.finish(2);
        });
    }

    /// A process that forked and exited before it carried out a move: its child's page was looked for in that slot for ever.
    #[test]
    fn a_move_whose_process_is_gone_has_failed() {
        let mut script = Script::ordered(2);
        script.block(0, 1);
        script.touch(0, 0, true);
        script.begin_move(0, true);
        // Looked, found room, planned, asked, recorded that it was ordered.
        script.move_on(5);
        script.machine().fork(0);
        script.finish(0);
        script.machine().exit(0);
        script.space().close();
        let child = Arc::clone(&script.children()[0]);
        let fault = Fault { addr: addr_of(0), write: false, thread: None };
        FaultWork::new(1).run(&child, fault);
        assert!(!child.has_parked());
        // It has a page of its own, and the books say so.
        assert_eq!(child.usage().out, 0);
        assert_eq!(script.wrong(), None);
    }
}
