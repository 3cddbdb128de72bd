//! What a store costs on a memory image, beside the bare codec: `store-cost IMAGE [SPEC…]`.
//!
//! Prints the median time a page for putting and fetching, the same for the codec alone, bytes held a page, what is held after the
//! store's content was replaced ten times over, and two threads' throughput against one's. Same-filled pages are left out throughout.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "an example that stops on errors")]

use std::sync::Arc;
use std::time::Instant;

use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, Waiter};

const PAGE: usize = 4096;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: store-cost IMAGE [SPEC…]");
        std::process::exit(2);
    };
    let image = std::fs::read(path).unwrap();
    let filled = |page: &[u8]| page.chunks_exact(8).all(|word| word == &page[..8]);
    let pages: Vec<&[u8]> = image.chunks_exact(PAGE).filter(|page| !filled(page)).collect();
    println!("{} pages, {} same-filled left out", pages.len(), image.len() / PAGE - pages.len());
    let mut specs: Vec<String> = arguments.collect();
    if specs.is_empty() {
        specs = vec!["ram:lz4".into(), "ram:zstd?level=-1".into()];
    }
    println!(
        "{:<20} {:>8} {:>8} {:>6} {:>8} {:>8} {:>6} {:>8}",
        "store", "put", "bare", "×", "get", "bare", "×", "free"
    );
    for spec in specs {
        let store = userswap_stores::open(&spec, PAGE).unwrap();
        let mut codec = Bare::new(&spec);
        let mut handles = vec![None; pages.len()];
        let mut packed = vec![Vec::new(); pages.len()];
        let [puts, bare_puts] = medians(pages.len(), |at, clock| {
            either_first(at, clock, &mut || put(&*store, at, 0, pages[at], &mut handles[at]), &mut || {
                codec.compress(pages[at])
            });
            packed[at] = codec.buffer[..codec.len].to_vec();
        });
        // Again into memory the store already has, as in a store that has been running.
        let order = shuffled(pages.len());
        let mut again = vec![None; pages.len()];
        let [warm_puts, bare_warm_puts, frees] = medians(pages.len(), |at, clock| {
            clock(2, &mut || store.free(&[handles[order[at]].take().unwrap()]));
            either_first(at, clock, &mut || put(&*store, at, 1, pages[at], &mut again[at]), &mut || {
                codec.compress(pages[at])
            });
        });
        let (mut out, waiter) = ([0; PAGE], Waiter::none());
        let mut bare_out = [0; PAGE];
        let half = pages.len() / 2;
        let [gets, bare_gets] = medians(pages.len(), |at, clock| {
            let (one, other) = (order[at], order[(at + half) % order.len()]);
            let mut get = || {
                store.fetch(again[one].unwrap(), key(one, 1), &mut out, &waiter).unwrap();
            };
            either_first(at, clock, &mut get, &mut || codec.decompress(&packed[other], &mut bare_out));
        });
        let row = |name: &str, put: u64, bare_put: u64| {
            let (by_put, by_get) = (put as f64 / bare_put as f64, gets as f64 / bare_gets as f64);
            println!(
                "{name:<20} {put:>8} {bare_put:>8} {by_put:>6.2} {gets:>8} {bare_gets:>8} {by_get:>6.2} {frees:>8}"
            );
        };
        row(&spec, puts, bare_puts);
        row("  warm", warm_puts, bare_warm_puts);
        held("  at first", &*store);
        churn(&*store, &pages, &mut again);
        held("  after churn", &*store);
        let start = Instant::now();
        let done = store.maintain(Budget::UNLIMITED);
        let spent = start.elapsed();
        held("  and maintenance", &*store);
        println!(
            "  of {spent:.1?}, {} KiB moved, {} KiB released",
            done.moved_bytes >> 10,
            done.released_bytes >> 10
        );
        let handles: Vec<_> = again.iter().map(|handle| handle.unwrap()).collect();
        threads(&store, &pages, &handles);
    }
}

/// A codec alone, its context kept as a store keeps it.
struct Bare {
    buffer: Vec<u8>,
    len: usize,
    lz4: lz4_flex::block::CompressTable,
    #[cfg(feature = "ram-zstd")]
    zstd: Option<(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>)>,
}

impl Bare {
    fn new(spec: &str) -> Self {
        #[cfg(feature = "ram-zstd")]
        let zstd = spec.contains("zstd").then(|| {
            let level = spec.split("level=").nth(1).map_or(-1, |level| level.parse().unwrap());
            (zstd::bulk::Compressor::new(level).unwrap(), zstd::bulk::Decompressor::new().unwrap())
        });
        #[cfg(not(feature = "ram-zstd"))]
        let _ = spec;
        Self {
            buffer: vec![0; 8192],
            len: 0,
            lz4: lz4_flex::block::CompressTable::default(),
            #[cfg(feature = "ram-zstd")]
            zstd,
        }
    }

    fn compress(&mut self, page: &[u8]) {
        #[cfg(feature = "ram-zstd")]
        if let Some((compressor, _)) = &mut self.zstd {
            self.len = compressor.compress_to_buffer(page, &mut self.buffer[..]).unwrap();
            return;
        }
        self.len = lz4_flex::block::compress_into_with_table(page, &mut self.buffer, &mut self.lz4).unwrap();
    }

    fn decompress(&mut self, packed: &[u8], out: &mut [u8]) {
        #[cfg(feature = "ram-zstd")]
        if let Some((_, decompressor)) = &mut self.zstd {
            decompressor.decompress_to_buffer(packed, out).unwrap();
            return;
        }
        lz4_flex::block::decompress_into(packed, out).unwrap();
    }
}

/// Replaces pages by others ten times as many as the store holds.
fn churn(store: &dyn Store, pages: &[&[u8]], handles: &mut [Option<Handle>]) {
    let mut state = 1_u64;
    for _ in 0..10 * pages.len() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let at = usize::try_from(state >> 33).unwrap() % pages.len();
        let from = usize::try_from(state >> 17).unwrap() % pages.len();
        store.free(&[handles[at].take().unwrap()]);
        put(store, at, 2, pages[from], &mut handles[at]);
    }
}

fn held(when: &str, store: &dyn Store) {
    let stats = store.stats();
    let pages = stats.pages as f64;
    println!(
        "{when:<20} {:.0} bytes stored, {:.0} held a page: × {:.3}, ratio {:.2}",
        stats.stored_bytes as f64 / pages,
        stats.memory_bytes as f64 / pages,
        stats.memory_bytes as f64 / stats.stored_bytes as f64,
        stats.ratio(PAGE)
    );
}

/// Fetches by one thread, then by two: throughput of both together against one's.
fn threads(store: &Arc<dyn Store>, pages: &[&[u8]], handles: &[Handle]) {
    let order = shuffled(pages.len());
    let fetch_all = |from: usize| {
        let mut out = [0; PAGE];
        let waiter = Waiter::none();
        let start = Instant::now();
        for at in 0..order.len() {
            let at = order[(at + from) % order.len()];
            // The churn put some under generation 2.
            if store.fetch(handles[at], key(at, 2), &mut out, &waiter).is_err() {
                store.fetch(handles[at], key(at, 1), &mut out, &waiter).unwrap();
            }
        }
        start.elapsed().as_secs_f64()
    };
    let one = fetch_all(0);
    let both = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| fetch_all(0));
        scope.spawn(|| fetch_all(order.len() / 2));
    });
    println!("  two threads fetch    × {:.2} of one's throughput", 2.0 * one / both.elapsed().as_secs_f64());
}

fn put(store: &dyn Store, at: usize, generation: u32, bytes: &[u8], handle: &mut Option<Handle>) {
    store.put(&[Page { key: key(at, generation), bytes }], std::slice::from_mut(handle)).unwrap();
}

fn key(at: usize, generation: u32) -> PageKey {
    PageKey { owner: OwnerId(1), page: at as u64, generation }
}

/// Clocks the store's call as number 0 and the codec's as 1, by turns the one first and the other: who comes second finds
/// the page in the cache.
fn either_first(round: usize, clock: &mut Clock<'_>, store: &mut dyn FnMut(), bare: &mut dyn FnMut()) {
    if round.is_multiple_of(2) {
        clock(0, store);
        clock(1, bare);
    } else {
        clock(1, bare);
        clock(0, store);
    }
}

/// Takes the time of a call, under a number.
type Clock<'a> = dyn FnMut(usize, &mut dyn FnMut()) + 'a;

/// Rounds of N clocked calls, so that the machine's moods fall on all alike: the median nanoseconds of each.
fn medians<const N: usize>(rounds: usize, mut round: impl FnMut(usize, &mut Clock<'_>)) -> [u64; N] {
    let mut times: Vec<Vec<u64>> = vec![Vec::with_capacity(rounds); N];
    for at in 0..rounds {
        round(at, &mut |number, timed| {
            let start = Instant::now();
            timed();
            times[number].push(u64::try_from(start.elapsed().as_nanos()).unwrap());
        });
    }
    std::array::from_fn(|number| {
        times[number].sort_unstable();
        times[number][rounds / 2]
    })
}

fn shuffled(len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut state = 7_u64;
    for at in (1..len).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        order.swap(at, usize::try_from(state >> 33).unwrap() % (at + 1));
    }
    order
}
