//! Holding an address space under a limit: what goes out is chosen by [`Victims`], from what came in and when.

use crate::evict::{EvictError, EvictWork, Keep, Lot, MovedOut};
use crate::space::Space;
use crate::turns::thread_time;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use userswap_policy::{Victim, Victims};
use userswap_uffd::{Span, page_bytes};

/// Chooses what of one address space goes out, and moves it.
#[derive(Default)]
pub struct Pacer {
    victims: Victims,
    work: Option<EvictWork>,
    arrivals: Vec<(u64, u64)>,
    present: Vec<bool>,
    /// What goes by one order.
    together: Vec<(Victim, Lot)>,
    /// When memory nobody told of is looked for again.
    look_at: Option<Instant>,
}

/// Pages chosen together: what a slot holds, where it is of the usual size. Aligned, so that a fault's block is all in one of them.
const BLOCK: u64 = 64;

/// Memory nobody told of is looked for no oftener by who isn't in need of it ...
const LOOK: Duration = Duration::from_millis(20);

/// ... nor for more than this part of a CPU's time.
const LOOKING: u32 = 100;

/// Blocks that may be remembered in vain.
const FORGOTTEN: usize = 1024;

impl Pacer {
    /// One that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves out `pages` pages and perhaps the rest of a block, or all there is.
    ///
    /// # Errors
    /// As [`Space::move_out`].
    pub fn move_out(&mut self, space: &Space, pages: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        self.move_some_out(space, pages, keep, false)
    }

    /// As [`move_out`](Self::move_out), but fewer pages rather than any of what is known to be used.
    ///
    /// # Errors
    /// As [`Space::move_out`].
    pub fn move_cold_out(&mut self, space: &Space, pages: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        self.move_some_out(space, pages, keep, true)
    }

    fn move_some_out(
        &mut self,
        space: &Space,
        pages: u64,
        keep: Keep,
        spare: bool,
    ) -> Result<MovedOut, EvictError> {
        space.spent().on(|| self.choose_and_move(space, pages, keep, spare))
    }

    fn choose_and_move(
        &mut self,
        space: &Space,
        pages: u64,
        keep: Keep,
        spare: bool,
    ) -> Result<MovedOut, EvictError> {
        let mut total = MovedOut::default();
        let told = self.hear(space);
        let all = !spare && pages >= self.victims.pages();
        let unsure = !told || all;
        if unsure || self.look_at.is_none_or(|at| at <= Instant::now()) {
            self.look(space, unsure)?;
        }
        if !spare && pages >= self.victims.pages() {
            return self.move_all_out(space, keep);
        }
        // What is used is spared; then what nobody told of is looked for, too; then nothing is spared.
        let mut cold = self.victims.cold();
        let mut which = |victims: &mut Victims| match spare {
            true => victims.choose_cold(&mut cold),
            false => victims.choose(),
        };
        let mut done = self.go(space, pages, &mut which, keep, &mut total);
        if done.is_ok() && total.moved < pages && !spare {
            let looked = self.look(space, true);
            done = looked.and_then(|()| self.go(space, pages, &mut which, keep, &mut total));
        }
        if done.is_ok() && total.moved < pages && !spare {
            done = self.go(space, pages, &mut Victims::choose_any, keep, &mut total);
        }
        if let Some(work) = &mut self.work {
            total.stored += space.write_all(work)?;
        }
        done?;
        space.reclaim_slots()?;
        Ok(total)
    }

    /// Moves out all there is, in pieces as large as can be: there is nothing to choose, and each piece costs the client an order.
    fn move_all_out(&mut self, space: &Space, keep: Keep) -> Result<MovedOut, EvictError> {
        let mut total = MovedOut::default();
        for span in space.spans() {
            total += space.move_out(span, u64::MAX, keep)?;
        }
        for _ in 0..self.victims.len() {
            let Some(victim) = self.victims.choose_any() else { break };
            let remain = if total.pinned > 0 { there(space, victim, &mut self.present) } else { 0 };
            self.victims.left(victim, (victim.pages & !remain).count_ones(), remain);
        }
        Ok(total)
    }

    /// Those of the parts in care, cut into regions of so many pages, of which every page is in memory.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn whole_regions(&mut self, space: &Space, pages: u32) -> Result<Vec<Span>, EvictError> {
        let bytes = u64::from(pages.max(1)) * page_bytes();
        let mut whole = Vec::new();
        for span in space.spans() {
            space.memory().resident(span, &mut self.present)?;
            let regions = self.present.chunks_exact(pages.max(1) as usize).zip(0..);
            let present = regions.filter(|(present, _)| present.iter().all(|page| *page));
            whole.extend(
                present.filter_map(|(_, at): (_, u64)| Span::new(span.start() + at * bytes, bytes).ok()),
            );
        }
        Ok(whole)
    }

    /// Moves these regions out, one after the other. What of each went is told in the same order, as far as it came.
    ///
    /// # Errors
    /// As [`Space::move_out`]; `went` then tells of those before.
    pub fn move_regions_out(
        &mut self,
        space: &Space,
        regions: &[Span],
        keep: Keep,
        went: &mut Vec<u64>,
    ) -> Result<MovedOut, EvictError> {
        let work = self.work.get_or_insert_with(|| EvictWork::new(space.slots().slot_pages()));
        let mut total = MovedOut::default();
        went.clear();
        let done = regions.iter().try_for_each(|region| {
            let moved = space.move_out_by(work, *region, u64::MAX, keep)?;
            went.push(moved.moved);
            total += moved;
            space.reclaim_many()
        });
        total.stored += space.write_all(work)?;
        done?;
        space.reclaim_slots()?;
        Ok(total)
    }

    /// Takes note of what came in.
    fn hear(&mut self, space: &Space) -> bool {
        let told = space.arrivals().take(&mut self.arrivals);
        for &(from, to) in &self.arrivals {
            let Ok(span) = Span::between(from, to) else { continue };
            for piece in blocks(span) {
                self.victims.arrived(name(piece), mask(piece));
            }
        }
        told
    }

    /// Looks for memory that is there and that nobody told of: in blocks that were never in hand, or in all.
    fn look(&mut self, space: &Space, everywhere: bool) -> Result<(), EvictError> {
        let before = thread_time();
        let spans = space.spans();
        self.forget(&spans);
        for span in spans {
            let victims = &self.victims;
            for run in runs(span, |block| everywhere || !victims.is_known(block)) {
                space.memory().resident(run, &mut self.present)?;
                let mut present = self.present.iter();
                for piece in blocks(run) {
                    let first = index(piece.start());
                    let there = present.by_ref().take(pages_of(piece.len()) as usize).zip(first..);
                    let pages = there.fold(0, |pages, (is, at)| pages | u64::from(*is) << at);
                    self.victims.found(name(piece), pages);
                }
            }
        }
        self.look_at = Some(Instant::now() + until_next_look(thread_time().saturating_sub(before)));
        Ok(())
    }

    /// Forgets what isn't in care any more, if that is much of what is remembered.
    fn forget(&mut self, spans: &[Span]) {
        let in_care: usize = spans.iter().map(|span| blocks(*span).count()).sum();
        if self.victims.known() > in_care * 2 + FORGOTTEN {
            let known: HashSet<u64> = spans.iter().flat_map(|span| blocks(*span)).map(name).collect();
            self.victims.retain(|block| known.contains(&block));
        }
    }

    /// Moves out what is chosen, until it is `pages`.
    fn go(
        &mut self,
        space: &Space,
        pages: u64,
        which: &mut dyn FnMut(&mut Victims) -> Option<Victim>,
        keep: Keep,
        total: &mut MovedOut,
    ) -> Result<(), EvictError> {
        let work = self.work.get_or_insert_with(|| EvictWork::new(space.slots().slot_pages()));
        // Each has its turn once: what can't move joins again.
        let mut turns = self.victims.len();
        while turns > 0 && total.moved < pages {
            // As much together as a slot holds, for each order costs the client as much as moving dozens of pages; but no more, whatever block comes last: the
            // rest would take another.
            let fits = u64::from(space.slots().slot_pages()).saturating_sub(BLOCK - 1).max(1);
            let most = (pages - total.moved).min(fits);
            let mut chosen = 0;
            self.together.clear();
            while turns > 0 && chosen < most {
                let Some(victim) = which(&mut self.victims) else {
                    turns = 0;
                    break;
                };
                turns -= 1;
                match lot(victim) {
                    Some(lot) => self.together.push((victim, lot)),
                    None => self.victims.left(victim, 0, 0),
                }
                chosen += u64::from(victim.known);
            }
            let lots = self.together.iter().map(|(_, lot)| *lot);
            let moved = space.move_out_lots(work, lots, keep).inspect_err(|_| {
                for (victim, _) in &self.together {
                    self.victims.left(*victim, 0, victim.pages);
                }
            })?;
            for ((victim, _), went) in self.together.iter().zip(work.moved_of()) {
                let went = u32::try_from(*went).unwrap_or(u32::MAX);
                let all = moved.pinned == 0 || went >= victim.pages.count_ones();
                let remain = if all { 0 } else { there(space, *victim, &mut self.present) };
                self.victims.left(*victim, went, remain);
            }
            *total += moved;
            space.reclaim_many()?;
        }
        Ok(())
    }

    /// Pages of managed regions that are resident now.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn resident(space: &Space) -> Result<u64, EvictError> {
        let mut present = Vec::new();
        let mut count = 0;
        for span in space.spans() {
            space.memory().resident(span, &mut present)?;
            count += present.iter().filter(|page| **page).count() as u64;
        }
        Ok(count)
    }

    /// Moves out what is over `limit` pages. Returns what that took.
    ///
    /// # Errors
    /// As [`Space::move_out`].
    pub fn hold(&mut self, space: &Space, limit: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        let over = Self::resident(space)?.saturating_sub(limit);
        if over == 0 { Ok(MovedOut::default()) } else { self.move_out(space, over, keep) }
    }
}

/// How long after a look that took so much of a CPU's time the next one is due.
fn until_next_look(took: Duration) -> Duration {
    LOOK.max(took * LOOKING)
}

/// The block that a piece of one is of.
fn name(piece: Span) -> u64 {
    piece.start() / (BLOCK * page_bytes())
}

/// A piece's pages in its block.
fn mask(piece: Span) -> u64 {
    let pages = pages_of(piece.len());
    if u64::from(pages) >= BLOCK { !0 } else { ((1 << pages) - 1) << index(piece.start()) }
}

/// A page's place in its block.
fn index(addr: u64) -> u32 {
    u32::try_from(addr / page_bytes() % BLOCK).unwrap_or(0)
}

/// The ranges of a victim's pages.
fn pieces(victim: Victim) -> impl Iterator<Item = Span> {
    let mut rest = victim.pages;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let count = (rest >> first).trailing_ones();
        rest &= if first + count == u64::BITS { 0 } else { !0 << (first + count) };
        let start = (victim.block * BLOCK + u64::from(first)) * page_bytes();
        Span::new(start, u64::from(count) * page_bytes()).ok()
    })
}

/// The victim's pages, to be moved.
fn lot(victim: Victim) -> Option<Lot> {
    let first = victim.pages.checked_ilog2().map(|_| victim.pages.trailing_zeros())?;
    let pages = victim.pages >> first;
    let start = (victim.block * BLOCK + u64::from(first)) * page_bytes();
    let span = Span::new(start, u64::from(u64::BITS - pages.leading_zeros()) * page_bytes()).ok()?;
    Some(Lot { span, pages })
}

/// The victim's pages that are in memory still; all, if that can't be known.
fn there(space: &Space, victim: Victim, present: &mut Vec<bool>) -> u64 {
    let mut pages = 0;
    for piece in pieces(victim) {
        match space.memory().resident(piece, present) {
            Ok(()) => {
                let found = present.iter().zip(index(piece.start())..);
                pages = found.fold(pages, |pages, (is, at)| pages | u64::from(*is) << at);
            }
            Err(_) => pages |= mask(piece),
        }
    }
    pages
}

fn pages_of(bytes: u64) -> u32 {
    u32::try_from(bytes / page_bytes()).unwrap_or(u32::MAX)
}

/// A range, cut where blocks begin.
fn blocks(span: Span) -> impl Iterator<Item = Span> {
    let bytes = BLOCK * page_bytes();
    (span.start() / bytes..span.end().div_ceil(bytes)).filter_map(move |block| {
        Span::between(span.start().max(block * bytes), span.end().min((block + 1) * bytes)).ok()
    })
}

/// The longest parts of a range whose blocks are all `wanted`.
fn runs(span: Span, wanted: impl Fn(u64) -> bool) -> Vec<Span> {
    let mut runs: Vec<Span> = Vec::new();
    for piece in blocks(span).filter(|piece| wanted(name(*piece))) {
        let joined = runs
            .last()
            .filter(|last| last.end() == piece.start())
            .and_then(|last| Span::between(last.start(), piece.end()).ok());
        match (joined, runs.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => runs.push(piece),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_a_hundredth_of_a_cpu_at_most() {
        for took_us in [0, 1, 150, 200, 201, 3_000, 1_000_000] {
            let took = Duration::from_micros(took_us);
            assert!(took <= until_next_look(took) / 100, "{took:?}");
            assert!(until_next_look(took) >= LOOK);
        }
    }

    #[test]
    fn a_range_is_cut_where_blocks_begin_and_joined_again() {
        let bytes = BLOCK * page_bytes();
        let span = Span::between(bytes * 3 - page_bytes(), bytes * 6 + page_bytes()).unwrap();
        let names: Vec<(u64, u32)> = blocks(span).map(|piece| (name(piece), pages_of(piece.len()))).collect();
        assert_eq!(names, [(2, 1), (3, 64), (4, 64), (5, 64), (6, 1)]);
        let pages = |runs: Vec<Span>| runs.iter().map(|run| pages_of(run.len())).collect::<Vec<_>>();
        assert_eq!(pages(runs(span, |_| true)), [194]);
        assert_eq!(pages(runs(span, |block| block != 4)), [65, 65]);
        assert_eq!(pages(runs(span, |_| false)), [] as [u32; 0]);
    }

    #[test]
    fn pages_of_a_block_are_ranges_and_back() {
        let at = |first: u64, pages: u64| {
            Span::new((7 * BLOCK + first) * page_bytes(), pages * page_bytes()).unwrap()
        };
        for (pages, spans) in [
            (0, vec![]),
            (!0, vec![at(0, 64)]),
            (1 << 63, vec![at(63, 1)]),
            (0b1101, vec![at(0, 1), at(2, 2)]),
            (!1, vec![at(1, 63)]),
        ] {
            let found: Vec<Span> = pieces(Victim { block: 7, pages, known: 0 }).collect();
            assert_eq!(found, spans);
            assert_eq!(found.iter().fold(0, |all, span| all | mask(*span)), pages);
            assert!(found.iter().all(|span| name(*span) == 7));
        }
    }
}
