//! A region of the own process that pages itself.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use userswap_engine::core::Transition;
use userswap_engine::local::PagedRegionBuilder;
use userswap_engine::{Engine, PagedRegion};
use userswap_store::Store;
use userswap_tests::own::Own;
use userswap_tests::pages::Pages;
use userswap_tests::plain::PlainStore;
use userswap_tests::random::Random;
use userswap_tests::watch::{Watchdog, rounds, until};
use userswap_uffd::Span;

const MIB: usize = 1 << 20;

/// Who serves a region's faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Handlers,
    Inline,
}

impl Way {
    pub(crate) fn builder<S: Store>(self, bytes: u64, store: &Arc<S>) -> PagedRegionBuilder {
        let builder = PagedRegion::builder(bytes, Arc::clone(store) as _);
        if self == Self::Inline { builder.inline() } else { builder }
    }
}

/// Both ways, or the one that this kernel has.
fn ways() -> impl Iterator<Item = Way> {
    static HAS_INLINE: LazyLock<bool> = LazyLock::new(|| {
        let built = Way::Inline.builder(4096, &Arc::new(PlainStore::default())).build();
        built.inspect_err(|error| println!("SKIPPED inline regions: {error}")).is_ok()
    });
    [Way::Handlers, Way::Inline].into_iter().filter(|way| *way == Way::Handlers || *HAS_INLINE)
}

fn fill(bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

fn check(bytes: &[u8]) {
    for (index, word) in bytes.chunks_exact(8).enumerate() {
        let expected = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), expected, "word {index}");
    }
}

#[test]
fn what_was_evicted_reads_back() {
    for way in ways() {
        let store = Arc::new(PlainStore::default());
        let mut region = way.builder(8 * MIB as u64, &store).build().unwrap();
        fill(region.as_mut_slice());
        let moved = region.evict(..).unwrap();
        assert_eq!((moved.moved, moved.stored, moved.pinned), (2048, 2048, 0));
        let usage = region.usage();
        assert_eq!((usage.resident_bytes, usage.out_bytes), (0, 8 * MIB as u64));
        check(region.as_slice());
        assert_eq!(region.usage().out_bytes, 0);
        // Objects are freed after the thread was woken: joining the handlers makes sure of it.
        drop(region);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}

#[test]
fn a_limit_is_held_while_threads_write_all_over() {
    for way in ways() {
        let store = Arc::new(PlainStore::default());
        let mut region = way.builder(32 * MIB as u64, &store).limit(4 * MIB as u64).build().unwrap();
        for _ in 0..3 {
            fill(region.as_mut_slice());
            check(region.as_slice());
        }
        let halves = region.as_mut_slice().split_at_mut(16 * MIB);
        std::thread::scope(|scope| {
            for half in [halves.0, halves.1] {
                scope.spawn(move || {
                    for _ in 0..3 {
                        fill(half);
                        check(half);
                    }
                });
            }
        });
        region.bring_in(..).unwrap();
        drop(region);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}

/// The pages of a region, for threads that share it.
pub(crate) fn pages_of(region: &PagedRegion) -> Pages {
    let span = Span::new(region.as_ptr().expose_provenance() as u64, region.len() as u64).unwrap();
    // SAFETY: read-write memory that lives as long as the region; the tests hold no slice of it meanwhile.
    unsafe { Pages::new(span) }
}

/// Threads read and write pages of their own while others move out and bring in whatever they like.
#[test]
fn reads_writes_evictions_and_returns_at_once_lose_nothing() {
    let _watch = Watchdog::new("reads_writes_evictions_and_returns_at_once_lose_nothing");
    for way in ways() {
        const PAGES: u64 = 512;
        const WRITERS: u64 = 3;
        let store = Arc::new(PlainStore::default());
        let builder = way.builder(PAGES * 4096, &store);
        let region = builder.limit(PAGES * 1024).staging(MIB as u64).build().unwrap();
        let pages = pages_of(&region);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    scope.spawn(move || {
                        let mut random = Random::new(number);
                        let mut holds = vec![0; PAGES as usize];
                        for step in 0..rounds(6000, 300_000) {
                            let page = random.below(PAGES / WRITERS) * WRITERS + number;
                            assert_eq!(
                                pages.read(page),
                                Ok(holds[page as usize]),
                                "page {page}, step {step}"
                            );
                            if random.one_in(2) {
                                holds[page as usize] = number << 48 | (step + 1);
                                pages.fill(page, holds[page as usize]);
                            }
                        }
                        for page in (number..PAGES).step_by(WRITERS as usize) {
                            assert_eq!(pages.read(page), Ok(holds[page as usize]), "page {page}");
                        }
                    })
                })
                .collect();
            for seed in 0..2 {
                let (region, end) = (&region, &end);
                scope.spawn(move || {
                    let mut random = Random::new(100 + seed);
                    while !end.load(Ordering::Relaxed) {
                        let from = random.below(PAGES) as usize * 4096;
                        let to = from + random.below(64) as usize * 4096;
                        if random.one_in(3) {
                            region.bring_in(from..to).unwrap();
                        } else {
                            region.evict(from..to).unwrap();
                        }
                    }
                });
            }
            for writer in writers {
                writer.join().unwrap();
            }
            end.store(true, Ordering::Relaxed);
        });
        drop(region);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}

/// Dropped full, empty, half out, under a limit, beside others on the same engine: nothing is left, the others go on.
#[test]
fn a_region_may_be_dropped_at_any_time() {
    let _watch = Watchdog::new("a_region_may_be_dropped_at_any_time");
    for way in ways() {
        let store = Arc::new(PlainStore::default());
        let engine = Arc::new(Engine::builder(Arc::clone(&store) as _).build().unwrap());
        let build = |limit: Option<u64>| {
            let builder = way.builder(MIB as u64, &store).engine(Arc::clone(&engine));
            match limit {
                Some(limit) => builder.limit(limit).build().unwrap(),
                None => builder.build().unwrap(),
            }
        };
        let mut stays = build(None);
        fill(stays.as_mut_slice());
        let mut random = Random::new(1);
        for round in 0..rounds(40, 2000) {
            let mut region = build((round % 3 == 0).then_some(MIB as u64 / 4));
            if !random.one_in(5) {
                fill(region.as_mut_slice());
            }
            let part = random.below(MIB as u64) as usize;
            match random.below(4) {
                0 => assert!(region.evict(..).is_ok()),
                1 => assert!(region.evict(part..).is_ok()),
                2 => {
                    region.evict(..).unwrap();
                    region.bring_in(..part).unwrap();
                }
                _ => {}
            }
            stays.evict(part..).unwrap();
            drop(region);
            // A handler frees an object after it woke who waited for the page.
            until("only what stays has pages in the store", || {
                store.len() as u64 * 4096 == stays.usage().out_bytes
            });
        }
        check(stays.as_slice());
        drop(stays);
        // Joins the handlers, who free an object only after they woke who waited for the page.
        drop(engine);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}

/// Far more address space than memory, of which a few pages are used.
#[test]
fn a_huge_region_costs_what_is_used_of_it() {
    let _watch = Watchdog::new("a_huge_region_costs_what_is_used_of_it");
    for way in ways() {
        const BYTES: u64 = 64 << 30;
        let store = Arc::new(PlainStore::default());
        let region = way.builder(BYTES, &store).build().unwrap();
        let pages = pages_of(&region);
        let used: Vec<u64> = (0..40).map(|n| n * (pages.len() / 40) + n).chain([pages.len() - 1]).collect();
        for page in &used {
            pages.fill(*page, page + 1);
        }
        for _ in 0..2 {
            let moved = region.evict(..).unwrap();
            assert_eq!((moved.stored, region.usage().out_bytes), (41, 41 * 4096));
            for page in &used {
                assert_eq!(pages.read(*page), Ok(page + 1));
            }
        }
        // What nobody used holds zeros.
        assert_eq!(pages.read(used[7] + 1), Ok(0));
        drop(region);
        assert_eq!((store.len(), store.freed_twice()), (0, 0));
    }
}

/// Fault-around of a single page once made a handler panic: its window was to be two at least, and one at most.
#[test]
fn a_window_of_one_page_brings_in_one_page() {
    let _watch = Watchdog::new("a_window_of_one_page_brings_in_one_page");
    let store = Arc::new(PlainStore::default());
    let settings = Own::settings(32, Arc::clone(&store) as _).around(1);
    let Some(own) = settings.build("a_window_of_one_page_brings_in_one_page") else { return };
    own.pages.fill_all(|page| page + 1);
    own.evict();
    for page in 0..32 {
        assert_eq!(own.pages.read(page), Ok(page + 1));
        assert_eq!(own.space.counts().get(Transition::FetchAround), 0);
    }
}
