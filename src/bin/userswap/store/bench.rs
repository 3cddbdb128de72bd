//! `userswap store bench`: what a store costs on a memory image, beside lz4 and copying alone, in the same rounds.

mod figures;
mod pages;
mod turns;

use super::Opened;
use crate::args::Bench;
use crate::failure::{Failure, Status};
use figures::{Figures, Held};
use pages::Pages;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use turns::{BLOCK, Bare, Gets, Round, Turns};
use userswap_store::{Budget, Handle, Maintained, OwnerId, Page, PageKey, Store, StoreError};

/// Measures a store, and prints the figures.
pub(super) fn bench(args: &Bench) -> Result<ExitCode, Failure> {
    let Opened { store, page_size, .. } = super::open(&args.store, args.page_size)?;
    let pages = Pages::read(&args.image, page_size, args.most.0)?;
    let mut figures = Figures::new(&args.store, &*store, &pages, args.rounds);
    for round in 0..args.rounds {
        measure(args, &store, &pages, round, &mut figures)?;
    }
    if args.json {
        println!("{}", figures.as_json());
    } else {
        print!("{figures}");
    }
    Ok(ExitCode::from(if figures.wrong == 0 { 0 } else { Status::Failed as u8 }))
}

fn key(round: u32, page: usize) -> PageKey {
    PageKey { owner: OwnerId(1), page: page as u64, generation: round }
}

/// One round: everything in, looked after, everything out in random order, and gone.
fn measure(
    args: &Bench,
    store: &Arc<dyn Store>,
    pages: &Pages,
    round: u32,
    figures: &mut Figures,
) -> Result<(), Failure> {
    let mut bare = Bare::new(pages.len(), pages.page_size);
    let mut handles: Vec<Option<Handle>> = vec![None; pages.len()];
    let batch = (args.batch as usize).min(store.capabilities().max_batch);
    let mut puts = Turns::new(round);
    for from in (0..pages.len()).step_by(BLOCK) {
        let block = from..(from + BLOCK).min(pages.len());
        puts.take(&mut |who, times| match who {
            turns::Who::Store => {
                for from in block.clone().step_by(batch) {
                    let some = from..(from + batch).min(block.end);
                    let batch: Vec<_> =
                        some.clone().map(|at| Page { key: key(round, at), bytes: pages.page(at) }).collect();
                    let started = Instant::now();
                    let put = store.put(&batch, &mut handles[some.clone()]);
                    times.add(started, some.len());
                    match put {
                        Ok(()) => {}
                        Err(StoreError::Full { .. }) => figures.full += some.len() as u64,
                        Err(error) => return Err(Failure::of("putting a page", &error)),
                    }
                }
                Ok(())
            }
            turns::Who::Lz4 => bare.compress(pages, block.clone(), times),
            turns::Who::Copy => bare.copy(pages, block.clone(), times),
        })?;
    }
    if handles.iter().all(Option::is_none) {
        return Err(Failure::new(Status::Failed, "the store took none of the pages"));
    }
    figures.put.end_round(puts);
    figures.held = Held::of(&**store, bare.packed_bytes(), pages.len());
    let started = Instant::now();
    let done = look_after(&**store);
    figures.maintained(started.elapsed(), done);
    figures.held_after = Held::of(&**store, bare.packed_bytes(), pages.len());

    let order = pages.shuffled(round);
    let mut gets = Turns::new(round);
    let mut getting = Gets::new(pages.page_size);
    for block in order.chunks(BLOCK) {
        gets.take(&mut |who, times| match who {
            turns::Who::Store => {
                for at in block {
                    let Some(handle) = handles[*at] else { continue };
                    let page = getting.get(&**store, handle, key(round, *at), times);
                    if page.is_none_or(|page| page != pages.page(*at)) {
                        figures.wrong += 1;
                    }
                }
                Ok(())
            }
            turns::Who::Lz4 => bare.decompress(block, times),
            turns::Who::Copy => bare.copy_out(pages, block, times),
        })?;
    }
    figures.get.end_round(gets);

    let mut frees = Round::default();
    for at in &order {
        if let Some(handle) = handles[*at] {
            let started = Instant::now();
            store.free(&[handle]);
            frees.add(started, 1);
        }
    }
    figures.free.merge(frees);
    look_after(&**store);
    Ok(())
}

/// Has the store do its background work, for a thousand calls at most.
fn look_after(store: &dyn Store) -> Maintained {
    let mut all = Maintained::default();
    for _ in 0..1000 {
        let done = store.maintain(Budget::UNLIMITED);
        all.moved_bytes = all.moved_bytes.saturating_add(done.moved_bytes);
        all.released_bytes = all.released_bytes.saturating_add(done.released_bytes);
        if !done.more {
            break;
        }
    }
    all
}
