//! The compressed memory of a store: pages put in and freed, and fetched, by batches and alone.
#![allow(clippy::unwrap_used, reason = "a benchmark stops on errors")]

mod pages;

use criterion::{Criterion, Throughput};
use pages::{PAGE, records};
use std::hint::black_box;
use userswap_store::{Handle, OwnerId, Page, PageKey, Store, Waiter, Wanted};

/// Pages in the store beside those that come and go, so that its index and its classes are used.
const THERE: usize = 20_000;

/// Pages put at once, as the engine does.
const BATCH: usize = 16;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for spec in ["ram:lz4", "ram:zstd?dict=off&dense=off"] {
        of(&mut criterion, spec);
    }
    criterion.final_summary();
}

fn of(criterion: &mut Criterion, spec: &str) {
    let store = userswap_stores::open(spec, PAGE).unwrap();
    let bytes = records(512);
    let there: Vec<Wanted> = (0..THERE as u64 / BATCH as u64)
        .flat_map(|batch| put(store.as_ref(), &bytes, batch * BATCH as u64, 1))
        .collect();
    let mut group = criterion.benchmark_group(spec);

    group.throughput(Throughput::Elements(BATCH as u64));
    let mut generation = 1;
    group.bench_function("put 16 and free them", |bencher| {
        bencher.iter(|| {
            generation += 1;
            let put = put(store.as_ref(), &bytes, THERE as u64, generation);
            let handles: Vec<Handle> = put.iter().map(|page| page.handle).collect();
            store.free(&handles);
        });
    });
    let mut run = vec![0; BATCH * PAGE];
    let mut turn = there.chunks_exact(BATCH).cycle();
    group.bench_function("fetch a run of 16", |bencher| {
        bencher.iter(|| {
            let wanted = turn.next().unwrap();
            let mut results = wanted.iter().map(|_| Ok(userswap_store::Fetch::Pending)).collect::<Vec<_>>();
            store.fetch_run(wanted, &mut run, &mut results, &Waiter::none()).unwrap();
            black_box(&results);
        });
    });

    group.throughput(Throughput::Elements(1));
    let mut page = vec![0; PAGE];
    // Far apart, as pages that are touched at random are.
    let mut turn = (0..there.len()).cycle().step_by(7919);
    let waiter = Waiter::none();
    group.bench_function("fetch one", |bencher| {
        bencher.iter(|| {
            let wanted = there[turn.next().unwrap()];
            black_box(store.fetch(wanted.handle, wanted.key, &mut page, &waiter).unwrap())
        });
    });
    if store.capabilities().fetches_in_handlers {
        group.bench_function("fetch one in a signal handler", |bencher| {
            bencher.iter(|| {
                let wanted = there[turn.next().unwrap()];
                black_box(store.fetch_in_handler(wanted.handle, wanted.key, &mut page))
            });
        });
    }
    group.finish();
}

/// A batch of pages from `first` on.
fn put(store: &dyn Store, bytes: &[Vec<u8>], first: u64, generation: u32) -> Vec<Wanted> {
    let owner = OwnerId(1);
    let keys: Vec<PageKey> =
        (first..first + BATCH as u64).map(|page| PageKey { owner, page, generation }).collect();
    let of = |key: &PageKey| &bytes[usize::try_from(key.page).unwrap() % bytes.len()];
    let pages: Vec<Page<'_>> = keys.iter().map(|key| Page { key: *key, bytes: of(key) }).collect();
    let mut handles = vec![None; BATCH];
    store.put(&pages, &mut handles).unwrap();
    keys.into_iter().zip(handles).map(|(key, handle)| Wanted { handle: handle.unwrap(), key }).collect()
}
