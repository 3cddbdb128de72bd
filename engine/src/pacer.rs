//! Holding an address space under a limit: what goes out is chosen by [`Victims`], from what came in and when.

use crate::evict::{EvictError, EvictWork, Keep, Lot, MovedOut};
use crate::sampler::{BLOCK, Buffers, Seen, blocks, lot, name, there};
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
    buffers: Buffers,
    /// What goes by one order.
    together: Vec<(Victim, Lot)>,
    /// When memory nobody told of is looked for again.
    look_at: Option<Instant>,
    trials: Trials,
}

/// How many blocks may be tried.
#[derive(Default)]
struct Trials {
    /// What may be spent on them, at the moment said.
    left: Duration,
    at: Option<Instant>,
}

/// Memory nobody told of is looked for no oftener by who isn't in need of it ...
const LOOK: Duration = Duration::from_millis(20);

/// ... nor for more than this part of a CPU's time.
const LOOKING: u32 = 100;

/// What it costs to try a block, where it is used: a page is moved out, and comes back by a fault.
const TRIAL: Duration = Duration::from_micros(25);

/// Trials that can be had at once: of a gigabyte of memory that nobody tried.
const TRIALS: u32 = 4096;

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
        self.victims.may_try(self.trials.allowed(Instant::now()));
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
            let remain = if total.pinned > 0 { there(space, victim, &mut self.buffers) } else { 0 };
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
            let present = &mut self.buffers.present;
            space.memory().resident(span, present)?;
            let regions = present.chunks_exact(pages.max(1) as usize).zip(0..);
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
        self.victims.hear(&mut Seen { space, spans: &[], buffers: &mut self.buffers })
    }

    /// Looks for memory that is there and that nobody told of: in blocks that were never in hand, or in all.
    fn look(&mut self, space: &Space, everywhere: bool) -> Result<(), EvictError> {
        let before = thread_time();
        let spans = space.spans();
        self.forget(&spans);
        self.victims.look(&mut Seen { space, spans: &spans, buffers: &mut self.buffers }, everywhere)?;
        let took = thread_time().saturating_sub(before);
        space.probes().looked(took);
        self.look_at = Some(Instant::now() + until_next_look(took));
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
            let tried = self.victims.take_tried();
            self.trials.had(tried);
            space.probes().tried(tried);
            let moved = space.move_out_lots(work, lots, keep).inspect_err(|_| {
                for (victim, _) in &self.together {
                    self.victims.left(*victim, 0, victim.pages);
                }
            })?;
            for ((victim, _), went) in self.together.iter().zip(work.moved_of()) {
                let went = u32::try_from(*went).unwrap_or(u32::MAX);
                let all = moved.pinned == 0 || went >= victim.pages.count_ones();
                let remain = if all { 0 } else { there(space, *victim, &mut self.buffers) };
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

impl Trials {
    /// So many may be had now, as they cost a hundredth of a CPU in the long run.
    fn allowed(&mut self, now: Instant) -> u64 {
        let most = TRIAL * TRIALS;
        let passed = self.at.replace(now).map_or(most, |at| now.saturating_duration_since(at) / LOOKING);
        self.left = (self.left + passed).min(most);
        u64::try_from(self.left.as_nanos() / TRIAL.as_nanos()).unwrap_or(0)
    }

    fn had(&mut self, tried: u64) {
        let spent = TRIAL.saturating_mul(u32::try_from(tried).unwrap_or(u32::MAX));
        self.left = self.left.saturating_sub(spent);
    }
}

/// How long after a look that took so much of a CPU's time the next one is due.
fn until_next_look(took: Duration) -> Duration {
    LOOK.max(took * LOOKING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_takes_a_hundredth_of_a_cpu_at_most_in_the_long_run() {
        let (mut trials, start) = (Trials::default(), Instant::now());
        let at_once = trials.allowed(start);
        assert_eq!(at_once, TRIALS.into());
        let mut had = 0;
        for ms in 0..20_000 {
            let tried = trials.allowed(start + Duration::from_millis(ms)).min(100);
            trials.had(tried);
            had += tried;
        }
        assert!((had - at_once).abs_diff(20_000 * 10 / 25) < 5, "{had}");
        // What wasn't had is there later, up to as much as at the start.
        assert_eq!(trials.allowed(start + Duration::from_secs(1_000)), TRIALS.into());
    }

    #[test]
    fn looking_takes_a_hundredth_of_a_cpu_at_most() {
        for took_us in [0, 1, 150, 200, 201, 3_000, 1_000_000] {
            let took = Duration::from_micros(took_us);
            assert!(took <= until_next_look(took) / 100, "{took:?}");
            assert!(until_next_look(took) >= LOOK);
        }
    }
}
