//! What pages that go down a tier cost those who fetch meanwhile.
//!
//! ```text
//! demotion IMAGE [STORES] [ROUNDS]        STORES: as behind tier:, such as 'ram:lz4>ram:zstd'
//! ```
//! A thread fetches pages of its own, which so stay young, one after the other in random order; the rest of the image goes down beside it at the usual rate, or doesn't, in turn.
//! Printed are the mean time of a fetch in a round with, by that in the round without before it, and the same of the thread's own processor time: where processors are short,
//! the first is about who gets one, and only the second about the stores.
#![allow(clippy::cast_precision_loss, reason = "an example")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Waiter};

const PAGE: usize = 4096;
const FOREGROUND: usize = 4000;
const ROUND: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let image = std::fs::read(args.next().ok_or("which image?")?)?;
    let stores = args.next().unwrap_or_else(|| "ram:lz4>ram:zstd".to_owned());
    let rounds: usize = args.next().map_or(Ok(10), |rounds| rounds.parse())?;
    let store = userswap_stores::open(&format!("tier?age=1s:{stores}"), PAGE)?;
    let pages: Vec<&[u8]> = image.chunks_exact(PAGE).collect();
    let key = |number: usize| PageKey { owner: OwnerId(1), page: number as u64, generation: 1 };
    let mut handles: Vec<Handle> = Vec::with_capacity(pages.len());
    for (number, bytes) in pages.iter().enumerate() {
        let mut handle = [None];
        store.put(&[Page { key: key(number), bytes }], &mut handle)?;
        handles.extend(handle.into_iter().flatten());
    }
    let step = (pages.len() / FOREGROUND).max(1);
    let mine: Vec<(Handle, PageKey)> =
        handles.iter().enumerate().step_by(step).map(|(number, handle)| (*handle, key(number))).collect();
    let (sinking, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let sunk = AtomicU64::new(0);
    let mut ratios = Vec::with_capacity(rounds);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if sinking.load(Ordering::Relaxed) {
                    // In small portions, so that a round ends when it is over.
                    let moved = store.maintain(Budget::bytes(1 << 20)).moved_bytes;
                    sunk.fetch_add(moved, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let mut random = 1_u64;
        let mut round = |is_sinking: bool| {
            sinking.store(is_sinking, Ordering::Relaxed);
            let mut page = vec![0; PAGE];
            let (waiter, start, own, mut fetched) = (Waiter::none(), Instant::now(), own_time(), 0_u32);
            while start.elapsed() < ROUND {
                for _ in 0..32 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let (handle, key) = mine[usize::try_from(random % mine.len() as u64).unwrap_or(0)];
                    if store.fetch(handle, key, &mut page, &waiter).is_ok() {
                        fetched += 1;
                    }
                }
            }
            [start.elapsed(), own_time() - own].map(|time| time.as_nanos() as f64 / f64::from(fetched))
        };
        round(false);
        for _ in 0..rounds {
            let before = sunk.load(Ordering::Relaxed);
            let (without, with) = (round(false), round(true));
            let moved = (sunk.load(Ordering::Relaxed) - before) >> 20;
            let ratio = [with[0] / without[0], with[1] / without[1]];
            println!(
                "{:.0} ns without ({:.0} of its own), {:.0} with {moved} MiB of work ({:.0}): {:.2} ({:.2})",
                without[0], without[1], with[0], with[1], ratio[0], ratio[1]
            );
            ratios.push(ratio);
        }
        done.store(true, Ordering::Relaxed);
    });
    for (which, what) in ["all", "of its own"].iter().enumerate() {
        let mut some: Vec<f64> = ratios.iter().map(|ratio| ratio[which]).collect();
        some.sort_by(f64::total_cmp);
        println!("{what}: median {:.2} ({:.2}-{:.2})", some[some.len() / 2], some[0], some[some.len() - 1]);
    }
    store.figures(&mut |name, figure| {
        if name.ends_with("_pages") || name.ends_with("_sunk") {
            println!("{name} {figure}");
        }
    });
    Ok(())
}

/// Processor time this thread has had.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}
