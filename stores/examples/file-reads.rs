//! Random reads from a file store, beside a bare io_uring reader of the same file: `file-reads DIRECTORY [MIB [SECONDS]]`.
//!
//! Pages don't compress, so that a record is a page and 24 bytes and mostly lies in two blocks: the bare reader reads two blocks at once, and one, for
//! comparison. Runs of sixteen neighbours are compared with reads of as many bytes. Rounds of all are interleaved.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "an example that stops on errors")]

use std::cell::{Cell, RefCell};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tokio_uring::buf::BoundedBuf;
use userswap_store::{
    Budget, Completion, Fetch, Handle, OwnerId, Page, PageKey, Store, StoreError, Waiter, Wanted,
};

const PAGE: usize = 4096;
const DEPTH: usize = 32;
const RUN: usize = 16;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next() else {
        eprintln!("usage: file-reads DIRECTORY [MIB [SECONDS]]");
        std::process::exit(2);
    };
    let number = |text: Option<String>, usual: u64| text.map_or(usual, |text| text.parse().unwrap());
    let (mib, seconds) = (number(arguments.next(), 512), number(arguments.next(), 2));
    let path = format!("{directory}/userswap-file-reads");
    let spec = format!("file:{path}?compress=off&size={}M", mib * 5 / 4);
    let store = userswap_stores::open(&spec, PAGE).unwrap();
    let handles = fill(&*store, mib * 256);
    let time = Duration::from_secs(seconds);
    let bytes = mib << 20;
    println!("{:<34} {:>10} {:>10} {:>12}", "reads a second", "median", "MiB/s", "CPU µs each");
    let mut rounds: [Vec<(f64, f64)>; 5] = Default::default();
    for _ in 0..5 {
        for (at, rate) in [
            timed(|| fetches(&store, &handles, 1, time)),
            timed(|| raw(&path, bytes, 2 * PAGE, time)),
            timed(|| raw(&path, bytes, PAGE, time)),
            timed(|| fetches(&store, &handles, RUN, time)),
            timed(|| raw(&path, bytes, (RUN + 1) * PAGE, time)),
        ]
        .into_iter()
        .enumerate()
        {
            rounds[at].push(rate);
        }
    }
    let names = [
        ("store, random pages, depth 32", PAGE),
        ("bare, two blocks, depth 32", 2 * PAGE),
        ("bare, one block, depth 32", PAGE),
        ("store, runs of sixteen, depth 2", RUN * PAGE),
        ("bare, seventeen blocks, depth 2", RUN * PAGE),
    ];
    for ((name, bytes), mut rates) in names.into_iter().zip(rounds) {
        rates.sort_by(|one, other| one.0.total_cmp(&other.0));
        let median = rates[rates.len() / 2].0;
        rates.sort_by(|one, other| one.1.total_cmp(&other.1));
        let own = rates[rates.len() / 2].1;
        println!(
            "{name:<34} {median:>10.0} {:>10.1} {own:>12.1}",
            median * bytes as f64 / f64::from(1 << 20)
        );
    }
    drop(store);
    std::fs::remove_file(path).unwrap();
}

/// A rate, and the processor time of the whole process for each, in microseconds.
fn timed(rate: impl FnOnce() -> (f64, f64)) -> (f64, f64) {
    let time = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(time).unwrap()
    };
    let before = time();
    let (rate, count) = rate();
    (rate, (time() - before).as_secs_f64() * 1e6 / count)
}

fn key(page: u64) -> PageKey {
    PageKey { owner: OwnerId(1), page, generation: 1 }
}

fn fill(store: &dyn Store, count: u64) -> Vec<Handle> {
    let mut state = 1;
    let mut handles = Vec::new();
    for first in (0..count).step_by(64) {
        let bytes: Vec<u8> = (0..64 * PAGE / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect();
        let pages: Vec<_> =
            (first..).zip(bytes.chunks(PAGE)).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
        let mut put = vec![None; pages.len()];
        store.put(&pages, &mut put).unwrap();
        handles.extend(put.into_iter().map(Option::unwrap));
    }
    store.maintain(Budget::UNLIMITED);
    handles
}

/// Fetches runs of so many pages for a while, and says how many runs a second, and how many.
fn fetches(store: &Arc<dyn Store>, handles: &[Handle], run: usize, time: Duration) -> (f64, f64) {
    struct Post(Sender<u64>);
    impl Completion for Post {
        fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
            assert!(page.is_ok());
            self.0.send(token).unwrap();
        }
    }
    let (to, from) = channel();
    let sink: Arc<dyn Completion> = Arc::new(Post(to));
    let mut out = vec![0; run * PAGE];
    let mut state = 7;
    let mut ask = || {
        let first = usize::try_from(next(&mut state)).unwrap() % (handles.len() / run) * run;
        let wanted: Vec<_> =
            (first..first + run).map(|at| Wanted { handle: handles[at], key: key(at as u64) }).collect();
        let mut results: Vec<_> = (0..run).map(|_| Ok(Fetch::Ready)).collect();
        store.fetch_run(&wanted, &mut out, &mut results, &Waiter::new(Arc::clone(&sink), 0)).unwrap();
        results.iter().filter(|result| matches!(result, Ok(Fetch::Ready))).count()
    };
    let depth = if run == 1 { DEPTH } else { 2 };
    let (started, mut done, mut asked) = (Instant::now(), 0, 0);
    let (mut under_way, mut total) = (0, 0);
    while started.elapsed() < time || under_way > 0 {
        while started.elapsed() < time && under_way < depth * run {
            let ready = ask();
            asked += run;
            done += ready;
            under_way += run - ready;
        }
        if under_way > 0 {
            from.recv().unwrap();
            under_way -= 1;
            done += 1;
        }
        total = done;
    }
    assert_eq!(total, asked);
    let runs = total as f64 / run as f64;
    (runs / started.elapsed().as_secs_f64(), runs)
}

/// Reads so many bytes at a time, at random, for a while, and says how many reads a second, and how many.
fn raw(path: &str, bytes: u64, len: usize, time: Duration) -> (f64, f64) {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(0o40000).open(path).unwrap();
    let depth = if len <= 2 * PAGE { DEPTH } else { 2 };
    let started = Instant::now();
    let done = tokio_uring::start(async move {
        let file = Rc::new(tokio_uring::fs::File::from_std(file));
        let (done, state) = (Rc::new(Cell::new(0_u64)), Rc::new(RefCell::new(7)));
        let tasks: Vec<_> = (0..depth)
            .map(|_| {
                let (file, done, state) = (Rc::clone(&file), Rc::clone(&done), Rc::clone(&state));
                tokio_uring::spawn(async move {
                    let mut buffer = vec![0; len + PAGE];
                    let start = buffer.as_ptr().addr().next_multiple_of(PAGE) - buffer.as_ptr().addr();
                    while started.elapsed() < time {
                        let blocks = (bytes - len as u64) / PAGE as u64;
                        let at = next(&mut state.borrow_mut()) % blocks * PAGE as u64;
                        let (result, slice) = file.read_at(buffer.slice(start..start + len), at).await;
                        assert_eq!(result.unwrap(), len);
                        buffer = slice.into_inner();
                        done.set(done.get() + 1);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        done.get()
    });
    (done as f64 / started.elapsed().as_secs_f64(), done as f64)
}

/// A step of splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
