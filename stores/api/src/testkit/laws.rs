//! The laws.

use std::sync::Arc;

use super::images::{next, random, varied};
use super::model::model;
use super::steps::{Outcome, expect_page, gauges, key, put_all, put_one, settle, verdict};
use super::wait::Mailbox;
use super::{Ask, Law, Make, Verdict, fetch_and_wait, images};
use crate::{Budget, Fetch, Handle, Medium, OwnerId, Page, PageKey, Store, StoreError, Waiter, Wanted};

/// Every law, in the order of `conformance!`'s tests.
pub const LAWS: &[Law] = &[
    law("round_trips", "a page comes back as it was put, however often it is fetched", round_trips),
    law("put_copies", "a page's buffer is the caller's again when put returns", put_copies),
    law("batches_are_all_or_nothing", "a put that fails leaves no trace", batches),
    law("identity_is_checked", "no handle and key give another page's bytes", identity),
    law("runs_go_page_by_page", "a run's pages fare each on its own", runs),
    law("accounts_return_to_zero", "what is freed is counted out and used again", accounts),
    law("capacity_is_kept", "a full store says so, holds no more than it may, and loses nothing", capacity),
    law("maintenance_loses_nothing", "background work ends, and no page notices", maintenance),
    law("threads_do_not_mix", "threads that put, fetch and free at once each see their own pages", threads),
    law("model", "any sequence of calls gives what a map would", model),
];

const fn law(name: &'static str, says: &'static str, check: fn(&dyn Make) -> Verdict) -> Law {
    Law { name, says, check }
}

fn round_trips(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let images = images(store.capabilities().page_size);
    let each = || {
        for (page, image) in (0..).zip(&images) {
            let handle =
                put_one(&*store, key(page), &image.bytes).map_err(|e| format!("{}: {e}", image.name))?;
            for time in ["first", "second"] {
                expect_page(&*store, handle, key(page), &image.bytes)
                    .map_err(|how| format!("{} page, {time} fetch: {how}", image.name))?;
            }
        }
        let batch = images.len().min(store.capabilities().max_batch);
        let pages: Vec<_> = (100..)
            .zip(&images[..batch])
            .map(|(at, image)| Page { key: key(at), bytes: &image.bytes })
            .collect();
        for (page, handle) in pages.iter().zip(put_all(&*store, &pages).map_err(|e| e.to_string())?) {
            expect_page(&*store, handle, page.key, page.bytes).map_err(|how| format!("in a batch: {how}"))?;
        }
        put_all(&*store, &[]).map_err(|e| format!("an empty batch: {e}"))?;
        Ok(())
    };
    verdict(each())
}

fn put_copies(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let mut buffer = vec![0; size];
    let mut check = || {
        let mut put = Vec::new();
        for page in 0..8 {
            buffer.copy_from_slice(&varied(page, size));
            put.push(put_one(&*store, key(page), &buffer).map_err(|e| e.to_string())?);
        }
        for (page, handle) in (0..).zip(put) {
            expect_page(&*store, handle, key(page), &varied(page, size))?;
        }
        Ok(())
    };
    verdict(check())
}

fn batches(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let good: Vec<_> = (0..4).map(|seed| varied(seed, size)).collect();
    let check = || {
        let before = put_one(&*store, key(50), &good[0]).map_err(|e| e.to_string())?;
        let pages = gauges(&*store);
        let mut short: Vec<_> = (0..4).zip(&good).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
        short[2].bytes = &good[2][1..];
        let mut handles = [Some(before); 4];
        unsupported(store.put(&short, &mut handles), "a short page")?;
        untouched(&*store, &handles, pages)?;
        short[2].bytes = &good[2];
        let mut handles = [Some(before); 3];
        unsupported(store.put(&short, &mut handles), "too few handles")?;
        untouched(&*store, &handles, pages)?;
        let max = store.capabilities().max_batch;
        if max < 1 << 16 {
            let many: Vec<_> = (0..=max as u64).map(|at| Page { key: key(at), bytes: &good[0] }).collect();
            let mut handles = vec![Some(before); max + 1];
            unsupported(store.put(&many, &mut handles), "more than max_batch pages")?;
            untouched(&*store, &handles, pages)?;
        }
        expect_page(&*store, before, key(50), &good[0]).map_err(|how| format!("the page before: {how}"))?;
        // One of these comes to the end with a part of the batch taken, whatever room a page takes.
        full_batch(make, 13)?;
        full_batch(make, 16)
    };
    verdict(check())
}

/// A batch that a limited store has no room for, wholly or in part.
fn full_batch(make: &dyn Make, batch: usize) -> Outcome {
    let store = make.make(&Ask { capacity: Some(1 << 20) });
    let capabilities = store.capabilities();
    let Some(limit) = capabilities.capacity else { return Ok(()) };
    let batch = batch.min(capabilities.max_batch);
    for round in 0..4 * limit / capabilities.page_size as u64 {
        // Others each time: a store may keep equal pages once.
        let seeds = round * batch as u64..(round + 1) * batch as u64;
        let bytes: Vec<_> = seeds.map(|seed| random(seed, capabilities.page_size)).collect();
        let pages: Vec<_> =
            (round * 16..).zip(&bytes).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
        let before = gauges(&*store);
        let mut handles = vec![None; batch];
        match store.put(&pages, &mut handles) {
            Ok(()) => {}
            Err(StoreError::Full { .. }) => return untouched(&*store, &handles, before),
            Err(error) => return Err(format!("a batch too large for the room left: {error}")),
        }
    }
    Err(format!("a store of {limit} bytes took four times as much that doesn't compress"))
}

fn unsupported(result: Result<(), StoreError>, what: &str) -> Outcome {
    match result {
        Err(StoreError::Unsupported { .. }) => Ok(()),
        Err(error) => Err(format!("{what} gives: {error}")),
        Ok(()) => Err(format!("{what} is taken")),
    }
}

fn untouched(store: &dyn Store, handles: &[Option<Handle>], before: [u64; 3]) -> Outcome {
    if handles.iter().any(Option::is_some) {
        return Err("a put that failed gave a handle".into());
    }
    let after = gauges(store);
    if after != before {
        return Err(format!(
            "a put that failed changed pages, raw and stored bytes from {before:?} to {after:?}"
        ));
    }
    Ok(())
}

fn identity(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let check = || {
        let pages: Vec<_> = (0..40).map(|seed| (key(seed), varied(seed, size))).collect();
        let mut handles = Vec::new();
        for (key, bytes) in &pages {
            handles.push(put_one(&*store, *key, bytes).map_err(|e| e.to_string())?);
        }
        for ((of, _), handle) in pages.iter().zip(&handles) {
            let others = [
                PageKey { page: of.page + 1000, ..*of },
                PageKey { generation: of.generation + 1, ..*of },
                PageKey { owner: OwnerId(of.owner.0 + 1), ..*of },
            ];
            for other in others {
                let in_handler = store.fetch_in_handler(*handle, other, &mut vec![0; size]);
                if fetch_and_wait(&*store, *handle, other).is_ok() || matches!(in_handler, Some(Ok(()))) {
                    return Err(format!("the handle of {of} also gives {other}"));
                }
            }
        }
        store.free(&handles[..20]);
        // Same pages, next generation: their handles may well be the old ones.
        for (key, _) in &pages[..20] {
            let newer = PageKey { generation: key.generation + 1, ..*key };
            put_one(&*store, newer, &random(key.page + 77, size)).map_err(|e| e.to_string())?;
        }
        for ((key, bytes), handle) in pages[..20].iter().zip(&handles) {
            if fetch_and_wait(&*store, *handle, *key).is_ok_and(|found| found != *bytes) {
                return Err(format!("the freed handle of {key} gives other bytes"));
            }
        }
        let mut state = 5;
        for _ in 0..1000 {
            let forged = Handle::from_raw(next(&mut state) >> (state % 60)).unwrap_or(Handle::MIN);
            let never_put = PageKey { owner: OwnerId(99), page: state % 64, generation: 1 };
            if fetch_and_wait(&*store, forged, never_put).is_ok() {
                return Err(format!("{forged:?} gives a page that was never put"));
            }
        }
        for ((key, bytes), handle) in pages[20..].iter().zip(&handles[20..]) {
            expect_page(&*store, *handle, *key, bytes).map_err(|how| format!("afterwards, {key}: {how}"))?;
        }
        Ok(())
    };
    verdict(check())
}

fn runs(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let check = || {
        let bytes: Vec<_> = (0..9).map(|seed| varied(seed, size)).collect();
        let mut wanted = Vec::new();
        for (at, bytes) in (0..).zip(&bytes) {
            let handle = put_one(&*store, key(at), bytes).map_err(|e| e.to_string())?;
            wanted.push(Wanted { handle, key: key(at) });
        }
        // A page in the middle under a key it never had.
        wanted[4].key.generation += 9;
        let mut out = vec![0x3c; size * 9];
        let mut results: Vec<Result<Fetch, StoreError>> = (0..9).map(|_| Err(StoreError::Closed)).collect();
        let mailbox = Mailbox::new(9);
        let waiter = Waiter::new(mailbox.clone(), 0);
        if store.fetch_run(&wanted, &mut out[1..], &mut results, &waiter).is_ok() {
            return Err("a run is taken whose buffer is short".to_owned());
        }
        store.fetch_run(&wanted, &mut out, &mut results, &waiter).map_err(|e| e.to_string())?;
        for (at, result) in results.into_iter().enumerate() {
            let page = match result {
                Ok(Fetch::Ready) => Ok(out[at * size..(at + 1) * size].to_vec()),
                Ok(Fetch::Pending) => mailbox.wait(at),
                Err(error) => Err(error),
            };
            match page {
                Ok(page) if at != 4 && page == bytes[at] => {}
                Err(StoreError::NotFound { .. } | StoreError::Corrupt { .. }) if at == 4 => {}
                Ok(_) => return Err(format!("page {at} of the run has wrong bytes")),
                Err(error) => return Err(format!("page {at} of the run: {error}")),
            }
        }
        Ok(())
    };
    verdict(check())
}

fn accounts(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let capabilities = store.capabilities();
    let size = capabilities.page_size;
    let images = images(size);
    let check = || {
        let mut after_first = 0;
        for cycle in 0..6 {
            let mut handles = Vec::new();
            for at in 0..600_usize {
                let image = &images[at % images.len()];
                let key = PageKey { generation: cycle, ..key(at as u64) };
                handles.push(put_one(&*store, key, &image.bytes).map_err(|e| e.to_string())?);
            }
            let stats = store.stats();
            if (stats.pages, stats.raw_bytes) != (600, 600 * size as u64) {
                return Err(format!("600 pages are counted as {} of {} bytes", stats.pages, stats.raw_bytes));
            }
            let filled = (0..600).filter(|at| images[at % images.len()].same_filled).count() as u64;
            if capabilities.detects_same_filled && stats.same_filled_pages != filled {
                return Err(format!("{filled} same-filled pages are counted as {}", stats.same_filled_pages));
            }
            if stats.held_bytes() < stats.stored_bytes {
                return Err(format!("{} bytes in {} that are held", stats.stored_bytes, stats.held_bytes()));
            }
            // Half one by one, half together.
            let (singly, together) = handles.split_at(300);
            singly.iter().for_each(|handle| store.free(&[*handle]));
            store.free(together);
            let stats = store.stats();
            let left = [stats.pages, stats.raw_bytes, stats.stored_bytes];
            if left != [0; 3] || stats.same_filled_pages + stats.incompressible_pages != 0 {
                return Err(format!("with everything freed these are left: {stats:?}"));
            }
            if stats.frees != 600 * (u64::from(cycle) + 1) || stats.puts != stats.frees {
                return Err(format!("{} puts and {} frees counted", stats.puts, stats.frees));
            }
            settle(&*store)?;
            let held = store.stats().held_bytes();
            if cycle == 0 {
                after_first = held;
            } else if held > after_first {
                return Err(format!(
                    "an empty store held {after_first} bytes, and holds {held} some cycles later"
                ));
            }
        }
        Ok(())
    };
    verdict(check())
}

fn capacity(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask { capacity: Some(2 << 20) });
    let capabilities = store.capabilities();
    let Some(limit) = capabilities.capacity else {
        return Verdict::Skipped("the store has no capacity to reach");
    };
    let size = capabilities.page_size;
    let check = || {
        let mut held: Vec<(PageKey, Handle)> = Vec::new();
        let mut page = 0;
        for round in 0..3 {
            let filled_at = held.len();
            loop {
                let key = key(page);
                match put_one(&*store, key, &random(page, size)) {
                    Ok(handle) => held.push((key, handle)),
                    Err(StoreError::Full { .. }) => break,
                    Err(error) => return Err(format!("with little room left: {error}")),
                }
                page += 1;
                let taken = match capabilities.medium {
                    Medium::Memory => store.stats().memory_bytes,
                    Medium::Device => store.stats().device_bytes,
                };
                if taken > limit {
                    return Err(format!("{taken} bytes held by a store that may hold {limit}"));
                }
                if held.len() as u64 * size as u64 > 2 * limit {
                    return Err(format!("twice the {limit} bytes of capacity, and it still isn't full"));
                }
            }
            if held.len() == filled_at {
                return Err(format!("round {round}: no room after half the pages were freed"));
            }
            for (key, handle) in &held {
                expect_page(&*store, *handle, *key, &random(key.page, size))
                    .map_err(|how| format!("once full, {key}: {how}"))?;
            }
            let mut keep = false;
            held.retain(|(_, handle)| {
                keep = !keep;
                if !keep {
                    store.free(&[*handle]);
                }
                keep
            });
            settle(&*store)?;
        }
        Ok(())
    };
    verdict(check())
}

fn maintenance(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let check = || {
        let mut held = Vec::new();
        for page in 0..900 {
            held.push((page, put_one(&*store, key(page), &varied(page, size)).map_err(|e| e.to_string())?));
        }
        let mut state = 1;
        let (stay, go): (Vec<_>, Vec<_>) = held.into_iter().partition(|_| next(&mut state).is_multiple_of(3));
        store.free(&go.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        for budget in [Budget::bytes(0), Budget::bytes(10_000), Budget::UNLIMITED] {
            store.maintain(budget);
            for (page, handle) in &stay {
                expect_page(&*store, *handle, key(*page), &varied(*page, size))
                    .map_err(|how| format!("after {budget:?}, page {page}: {how}"))?;
            }
        }
        settle(&*store)?;
        store.free(&stay.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        if gauges(&*store) != [0; 3] {
            return Err(format!("pages, raw and stored bytes left at the end: {:?}", gauges(&*store)));
        }
        Ok(())
    };
    verdict(check())
}

fn threads(make: &dyn Make) -> Verdict {
    let store = make.make(&Ask::default());
    let size = store.capabilities().page_size;
    let shared: Result<Vec<_>, _> = (0..32)
        .map(|page| put_one(&*store, key(page), &varied(page, size)).map(|handle| (page, handle)))
        .collect();
    let shared = match shared {
        Ok(shared) => Arc::new(shared),
        Err(error) => return Verdict::Broken(error.to_string()),
    };
    let one = |owner: u64| -> Outcome {
        let mut state = owner;
        let mut mine: Vec<(PageKey, Handle)> = Vec::new();
        let image = |key: PageKey| varied(key.owner.0 << 32 | u64::from(key.generation), size);
        for generation in 0..1500 {
            let roll = next(&mut state);
            match roll % 8 {
                0..3 => {
                    let key = PageKey { owner: OwnerId(owner), page: roll >> 8 & 63, generation };
                    mine.push((key, put_one(&*store, key, &image(key)).map_err(|e| e.to_string())?));
                }
                3 if !mine.is_empty() => {
                    let at = usize::try_from(roll >> 8).unwrap_or(0) % mine.len();
                    store.free(&[mine.swap_remove(at).1]);
                }
                4 => {
                    let (page, handle) = shared[usize::try_from(roll >> 8).unwrap_or(0) % shared.len()];
                    expect_page(&*store, handle, key(page), &varied(page, size))
                        .map_err(|how| format!("a page all threads read: {how}"))?;
                }
                5 if generation % 8 == 0 => drop(store.maintain(Budget::bytes(1 << 16))),
                _ if !mine.is_empty() => {
                    let (key, handle) = mine[usize::try_from(roll >> 8).unwrap_or(0) % mine.len()];
                    expect_page(&*store, handle, key, &image(key)).map_err(|how| format!("{key}: {how}"))?;
                }
                _ => {}
            }
        }
        store.free(&mine.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        Ok(())
    };
    let outcome = std::thread::scope(|scope| {
        let running: Vec<_> = (2..6).map(|owner| scope.spawn(move || one(owner))).collect();
        let joined =
            running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into())));
        joined.collect::<Vec<_>>().into_iter().collect::<Outcome>()
    });
    store.free(&shared.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
    verdict(outcome.and_then(|()| match gauges(&*store) {
        [0, 0, 0] => Ok(()),
        left => Err(format!("pages, raw and stored bytes left at the end: {left:?}")),
    }))
}
