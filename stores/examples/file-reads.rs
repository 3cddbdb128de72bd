//! Random reads from a file store, beside a bare io_uring reader of the same file: `file-reads DIRECTORY [MIB [SECONDS [IMAGE]]]`.
//!
//! With an image, its pages are stored, compressed, again and again. Without, pages don't compress, so that a record is a page and 24 bytes and mostly lies in two blocks: the bare reader reads two blocks at once, and one, for
//! comparison. Runs of sixteen neighbours are compared with reads of as many bytes. Rounds of all are interleaved.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "an example that stops on errors")]

use std::cell::{Cell, RefCell};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio_uring::buf::BoundedBuf;
use userswap_store::{
    Budget, Completion, Fetch, Handle, OwnerId, Page, PageKey, Store, StoreError, Waiter, Wanted,
};

const PAGE: usize = 4096;
const DEPTH: usize = 32;
const RUN: usize = 16;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next() else {
        eprintln!("usage: file-reads DIRECTORY [MIB [SECONDS [IMAGE]]]");
        std::process::exit(2);
    };
    let number = |text: Option<String>, usual: u64| text.map_or(usual, |text| text.parse().unwrap());
    let (mib, seconds) = (number(arguments.next(), 512), number(arguments.next(), 2));
    let path = format!("{directory}/userswap-file-reads");
    let image = arguments.next().map(|path| std::fs::read(path).unwrap());
    let compress = if image.is_some() { "lz4" } else { "off" };
    let spec = format!("file:{path}?compress={compress}&size={}M", mib * 5 / 4);
    let store = userswap_stores::open(&spec, PAGE).unwrap();
    let handles: Arc<[Handle]> = fill(&*store, mib * 256, image.as_deref()).into();
    let time = Duration::from_secs(seconds);
    let bytes = store.stats().device_bytes;
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

fn fill(store: &dyn Store, count: u64, image: Option<&[u8]>) -> Vec<Handle> {
    let mut state = 1;
    let filled = |page: &&[u8]| page.chunks(8).all(|word| word == &page[..8]);
    let image = image.map(|image| image.chunks_exact(PAGE).filter(|page| !filled(page)));
    let mut image = image.map(Iterator::cycle);
    let mut handles = Vec::new();
    for first in (0..count).step_by(64) {
        let bytes: Vec<u8> = match &mut image {
            Some(pages) => pages.take(64).flatten().copied().collect(),
            None => (0..64 * PAGE / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect(),
        };
        let pages: Vec<_> =
            (first..).zip(bytes.chunks(PAGE)).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
        let mut put = vec![None; pages.len()];
        store.put(&pages, &mut put).unwrap();
        handles.extend(put.into_iter().map(Option::unwrap));
    }
    store.maintain(Budget::UNLIMITED);
    handles
}

/// Fetches runs of so many pages for a while, and says how many runs a second, and how many. As with the bare reader, who is given a run asks for
/// the next, on the thread it was given on.
fn fetches(store: &Arc<dyn Store>, handles: &Arc<[Handle]>, run: usize, time: Duration) -> (f64, f64) {
    let depth = depth(run);
    let (ended, end) = channel();
    let started = Instant::now();
    let asker = Arc::new_cyclic(|me| Asker {
        store: Arc::clone(store),
        handles: Arc::clone(handles),
        run,
        until: started + time,
        random: AtomicU64::new(7),
        runs: AtomicU64::new(0),
        missing: (0..depth).map(|_| AtomicUsize::new(0)).collect(),
        ended: Mutex::new(ended),
        me: Weak::clone(me),
    });
    (0..depth).for_each(|slot| asker.ask(slot));
    (0..depth).for_each(|_| end.recv().unwrap());
    let runs = asker.runs.load(Ordering::Relaxed) as f64;
    (runs / started.elapsed().as_secs_f64(), runs)
}

/// Keeps runs under way, each in a slot: a page's token is its slot's number and its place in the run.
struct Asker {
    store: Arc<dyn Store>,
    handles: Arc<[Handle]>,
    run: usize,
    until: Instant,
    random: AtomicU64,
    runs: AtomicU64,
    /// Pages that a slot still waits for.
    missing: Vec<AtomicUsize>,
    ended: Mutex<Sender<()>>,
    me: Weak<Self>,
}

impl Asker {
    /// Asks for runs until one has to be waited for, or time is up.
    fn ask(&self, slot: usize) {
        let run = self.run;
        let waiter = Waiter::new(self.me.upgrade().unwrap(), (slot * run) as u64);
        let mut out = vec![0; run * PAGE];
        while Instant::now() < self.until {
            let mut state = self.random.fetch_add(GOLDEN, Ordering::Relaxed);
            let first = usize::try_from(next(&mut state)).unwrap() % (self.handles.len() / run) * run;
            let wanted: Vec<_> = (first..first + run)
                .map(|at| Wanted { handle: self.handles[at], key: key(at as u64) })
                .collect();
            let mut results: Vec<_> = (0..run).map(|_| Ok(Fetch::Ready)).collect();
            // One more than there are, so that the run isn't over before all of it was asked for.
            self.missing[slot].store(run + 1, Ordering::Relaxed);
            self.store.fetch_run(&wanted, &mut out, &mut results, &waiter).unwrap();
            let here = results.iter().filter(|result| matches!(result, Ok(Fetch::Ready))).count();
            if !self.arrived(slot, here + 1) {
                return;
            }
        }
        self.ended.lock().unwrap().send(()).unwrap();
    }

    /// So many pages of a slot's run are there; whether they were the last.
    fn arrived(&self, slot: usize, pages: usize) -> bool {
        let all = self.missing[slot].fetch_sub(pages, Ordering::AcqRel) == pages;
        self.runs.fetch_add(all.into(), Ordering::Relaxed);
        all
    }
}

impl Completion for Asker {
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
        assert!(page.is_ok());
        let slot = usize::try_from(token).unwrap() / self.run;
        if self.arrived(slot, 1) {
            self.ask(slot);
        }
    }
}

/// How many are under way.
fn depth(pages: usize) -> usize {
    if pages <= 2 { DEPTH } else { 2 }
}

/// Reads so many bytes at a time, at random, for a while, and says how many reads a second, and how many.
fn raw(path: &str, bytes: u64, len: usize, time: Duration) -> (f64, f64) {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(0o40000).open(path).unwrap();
    let depth = depth(len / PAGE);
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
    *state = state.wrapping_add(GOLDEN);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
