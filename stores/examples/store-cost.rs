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
    println!("{:<20} {:>8} {:>8} {:>6} {:>8} {:>8} {:>6}", "store", "put", "bare", "×", "get", "bare", "×");
    for spec in specs {
        let (bare_put, bare_get) = bare(&spec, &pages);
        let store = userswap_stores::open(&spec, PAGE).unwrap();
        let mut handles = vec![None; pages.len()];
        let puts = times(pages.len(), |at| put(&*store, at, 0, pages[at], &mut handles[at]));
        // Again into memory the store already has, as in a store that has been running.
        let mut again = vec![None; pages.len()];
        let order = shuffled(pages.len());
        let warm = times(pages.len(), |at| {
            store.free(&[handles[order[at]].take().unwrap()]);
            put(&*store, order[at], 1, pages[order[at]], &mut again[order[at]]);
        });
        let (mut out, waiter) = ([0; PAGE], Waiter::none());
        let gets = times(pages.len(), |at| {
            store.fetch(again[order[at]].unwrap(), key(order[at], 1), &mut out, &waiter).unwrap();
        });
        let ratio = |a: u64, b: u64| a as f64 / b as f64;
        let row = |name: &str, put| {
            let (by_put, by_get) = (ratio(put, bare_put), ratio(gets, bare_get));
            println!("{name:<20} {put:>8} {bare_put:>8} {by_put:>6.2} {gets:>8} {bare_get:>8} {by_get:>6.2}");
        };
        row(&spec, puts);
        row("  free and put", warm);
        held("  at first", &*store);
        churn(&*store, &pages, &mut again);
        held("  after churn", &*store);
        while store.maintain(Budget::UNLIMITED).more {}
        held("  and maintenance", &*store);
        let handles: Vec<_> = again.iter().map(|handle| handle.unwrap()).collect();
        threads(&store, &pages, &handles);
    }
}

/// Median nanoseconds a page of the codec alone: compressing, decompressing.
fn bare(spec: &str, pages: &[&[u8]]) -> (u64, u64) {
    let order = shuffled(pages.len());
    let mut out = [0; PAGE];
    #[cfg(feature = "ram-zstd")]
    if spec.contains("zstd") {
        let level = spec.split("level=").nth(1).map_or(-1, |level| level.parse().unwrap());
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
        let mut buffer = vec![0; 8192];
        let mut packed = Vec::new();
        let put = times(pages.len(), |at| {
            let len = compressor.compress_to_buffer(pages[at], &mut buffer[..]).unwrap();
            packed.push(buffer[..len].to_vec());
        });
        let get = times(pages.len(), |at| {
            decompressor.decompress_to_buffer(&packed[order[at]], &mut out[..]).unwrap();
        });
        return (put, get);
    }
    let _ = spec;
    let mut table = lz4_flex::block::CompressTable::default();
    let mut buffer = vec![0; 8192];
    let mut packed = Vec::new();
    let put = times(pages.len(), |at| {
        let len = lz4_flex::block::compress_into_with_table(pages[at], &mut buffer, &mut table).unwrap();
        packed.push(buffer[..len].to_vec());
    });
    let get = times(pages.len(), |at| {
        lz4_flex::block::decompress_into(&packed[order[at]], &mut out).unwrap();
    });
    (put, get)
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

/// The median of a call's times, in nanoseconds.
fn times(calls: usize, mut call: impl FnMut(usize)) -> u64 {
    let mut times: Vec<u64> = (0..calls)
        .map(|at| {
            let start = Instant::now();
            call(at);
            u64::try_from(start.elapsed().as_nanos()).unwrap()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
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
