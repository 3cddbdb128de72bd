//! What stores hold of memory images, and at what cost: `density [--pages N] IMAGE… -- SPEC…`.
//!
//! For each image and specification: bytes held a page before and after maintenance, nanoseconds a page for putting (before the
//! store has a dictionary, and after) and fetching, and what maintenance took. Same-filled pages are left out. Stores take turns in
//! rounds, and of the rounds the least time counts, so that a busy machine falls on all alike.
//!
//! A store sees the image's pages once, in order. Then it tidies up, all its pages are fetched, and half of them, every other one,
//! are put again: these are compressed with the dictionary of the rest.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "an example that stops on errors")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, Waiter};

const PAGE: usize = 4096;
const ROUNDS: usize = 8;
/// Pages of a timed batch.
const BATCH: usize = 1000;

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut limit = usize::MAX;
    if arguments.next_if(|argument| argument == "--pages").is_some() {
        limit = arguments.next().and_then(|pages| pages.parse().ok()).unwrap_or(limit);
    }
    let images: Vec<String> = arguments.by_ref().take_while(|argument| argument != "--").collect();
    let mut specs: Vec<String> = arguments.collect();
    if images.is_empty() {
        eprintln!("usage: density [--pages N] IMAGE… -- SPEC…");
        std::process::exit(2);
    }
    if specs.is_empty() {
        specs = ["ram:lz4", "ram:zstd?dict=off", "ram:zstd", "ram:zstd?level=5"].map(String::from).to_vec();
    }
    for path in images {
        let image = std::fs::read(&path).unwrap();
        let filled = |page: &[u8]| page.chunks_exact(8).all(|word| word == &page[..8]);
        let pages: Vec<&[u8]> = image.chunks_exact(PAGE).filter(|page| !filled(page)).take(limit).collect();
        println!("{path}: {} pages that aren't same-filled", pages.len());
        println!(
            "  {:<28} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>10} {:>9}",
            "store", "held", "tidied", "put", "put 2", "fetch", "× first", "tidying", "a call"
        );
        let mut entrants: Vec<Entrant> = specs.iter().map(|spec| Entrant::new(spec, &pages)).collect();
        for round in 0..ROUNDS {
            entrants.iter_mut().for_each(|entrant| entrant.fetch_some(round, &pages));
        }
        for round in 0..ROUNDS {
            entrants.iter_mut().for_each(|entrant| entrant.put_some_again(round, &pages));
        }
        let first = entrants.first().map_or(0, |entrant| entrant.fetch);
        for it in &entrants {
            println!(
                "  {:<28} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8.2} {:>10.1?} {:>9.1?}",
                it.spec,
                it.held_at_first,
                it.held,
                it.put,
                it.put_again,
                it.fetch,
                it.fetch as f64 / first as f64,
                it.tidying,
                it.longest_call,
            );
        }
    }
}

/// A store with an image in it. Times are nanoseconds a page.
struct Entrant {
    spec: String,
    store: Arc<dyn Store>,
    handles: Vec<Option<Handle>>,
    held_at_first: u64,
    held: u64,
    put: u64,
    put_again: u64,
    fetch: u64,
    tidying: Duration,
    longest_call: Duration,
}

impl Entrant {
    fn new(spec: &str, pages: &[&[u8]]) -> Self {
        let store = userswap_stores::open(spec, PAGE).unwrap();
        let mut handles = vec![None; pages.len()];
        let mut put_times = Vec::new();
        for (number, batch) in pages.chunks(BATCH).enumerate() {
            let start = Instant::now();
            for (at, page) in (number * BATCH..).zip(batch) {
                put(&*store, at, 0, page, &mut handles[at]);
            }
            put_times.push(nanos(start) / batch.len() as u64);
        }
        put_times.sort_unstable();
        let held_at_first = store.stats().memory_bytes / pages.len() as u64;
        let (mut tidying, mut longest_call) = (Duration::ZERO, Duration::ZERO);
        loop {
            let start = Instant::now();
            let more = store.maintain(Budget::bytes(16 << 20)).more;
            tidying += start.elapsed();
            longest_call = longest_call.max(start.elapsed());
            if !more {
                break;
            }
        }
        let held = store.stats().memory_bytes / pages.len() as u64;
        Self {
            spec: spec.to_owned(),
            store,
            handles,
            held_at_first,
            held,
            put: put_times[put_times.len() / 4],
            put_again: u64::MAX,
            fetch: u64::MAX,
            tidying,
            longest_call,
        }
    }

    fn fetch_some(&mut self, round: usize, pages: &[&[u8]]) {
        let (mut out, waiter) = ([0; PAGE], Waiter::none());
        let mut state = 11 * round as u64 + 1;
        let start = Instant::now();
        for _ in 0..BATCH {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = usize::try_from(state >> 33).unwrap() % pages.len();
            self.store.fetch(self.handles[at].unwrap(), key(at, 0), &mut out, &waiter).unwrap();
        }
        self.fetch = self.fetch.min(nanos(start) / BATCH as u64);
        for at in (round..pages.len()).step_by(ROUNDS) {
            self.store.fetch(self.handles[at].unwrap(), key(at, 0), &mut out, &waiter).unwrap();
            assert_eq!(out, pages[at], "page {at}");
        }
    }

    fn put_some_again(&mut self, round: usize, pages: &[&[u8]]) {
        let some: Vec<usize> = (2 * round..pages.len()).step_by(2 * ROUNDS).collect();
        for at in &some {
            self.store.free(&[self.handles[*at].take().unwrap()]);
        }
        let start = Instant::now();
        for at in &some {
            put(&*self.store, *at, 1, pages[*at], &mut self.handles[*at]);
        }
        self.put_again = self.put_again.min(nanos(start) / some.len().max(1) as u64);
    }
}

fn put(store: &dyn Store, at: usize, generation: u32, bytes: &[u8], handle: &mut Option<Handle>) {
    store.put(&[Page { key: key(at, generation), bytes }], std::slice::from_mut(handle)).unwrap();
}

fn key(at: usize, generation: u32) -> PageKey {
    PageKey { owner: OwnerId(1), page: at as u64, generation }
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap()
}
