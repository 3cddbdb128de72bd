//! A working set: which pages are in memory, and bringing such pages in before anybody asks for them.

use crate::core::PageIndex;
use crate::directory::Part;
use crate::evict::ON_THE_WAY;
use crate::fault::{FaultWork, Why};
use crate::memory::MemoryError;
use crate::space::Space;
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap_policy::working_set::Run;
use userswap_uffd::{Span, page_bytes};

/// While threads wait for pages of their own, one window is brought in each so often: a hundredth of the time, about. So demand comes
/// first, and what was asked for comes in the end.
const YIELD: Duration = Duration::from_millis(10);

/// How long a window is waited for that the store gives later.
const LATE: Duration = Duration::from_secs(1);

/// Pages looked at in one hold of a region's lock.
const LOOKED_AT: usize = 1024;

impl Space {
    /// The pages in care that are in memory now, by their addresses.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn in_memory(&self) -> Result<Vec<Run>, MemoryError> {
        let (mut runs, mut present): (Vec<Run>, _) = (Vec::new(), Vec::new());
        let mut spans = self.spans();
        spans.sort_unstable_by_key(|span| span.start());
        for span in spans {
            self.memory().resident(span, &mut present)?;
            let first = span.start() / page_bytes();
            for (page, _) in (first..).zip(&present).filter(|(_, present)| **present) {
                match runs.last_mut() {
                    Some((at, pages)) if *at + *pages == page => *pages += 1,
                    _ => runs.push((page, 1)),
                }
            }
        }
        Ok(runs)
    }

    /// Brings in what is out of these pages, a window of `around` pages at a time, and gives way to threads that wait for pages of theirs. Ends early
    /// where memory comes faster than it goes. Returns how many were asked for; what isn't in care, or is in memory, is passed over.
    pub fn bring_early(self: &Arc<Self>, runs: &[Run], around: u32) -> u64 {
        let around = around.max(1);
        let mut work = FaultWork::new(around);
        let mut brought = 0;
        let mut seen = self.asked_for();
        for (first, pages) in runs {
            let Some(span) = span_of(*first, *pages) else { continue };
            for part in self.live_parts(span) {
                let mut at = 0;
                while let Some((page, pages)) = next_out(&part, at, around) {
                    if self.is_slowed() || self.memory().is_gone() {
                        return brought;
                    }
                    if self.asked_for() != seen {
                        std::thread::sleep(YIELD);
                        seen = self.asked_for();
                    }
                    // The lock is let go before the work, which takes it.
                    let mapped = part.region.lock().address(page);
                    if let Some((addr, _)) = mapped {
                        work.bring(self, addr, Why::All(pages));
                        brought += u64::from(pages);
                        // One window at a time also where the store takes its time: a thread's own page would queue behind all of them.
                        await_window(&part, page, pages);
                    }
                    at = page.since(part.piece.first) + pages;
                }
            }
        }
        brought
    }

    /// Faults so far that pages were brought in for.
    fn asked_for(&self) -> u64 {
        self.service().count()
    }
}

/// Waits for pages that are on their way, not for ever.
fn await_window(part: &Part, first: PageIndex, pages: u32) {
    let until = Instant::now() + LATE;
    let on_the_way = || {
        let shard = part.region.lock();
        (0..pages).any(|n| shard.is_on_its_way(first.plus(n)))
    };
    while on_the_way() && Instant::now() < until {
        std::thread::sleep(ON_THE_WAY);
    }
}

fn span_of(first: u64, pages: u64) -> Option<Span> {
    Span::new(first.checked_mul(page_bytes())?, pages.checked_mul(page_bytes())?).ok()
}

/// The next pages in a row of a part that are out, from its page `at` on, `most` at most. The region's lock is let go every so often: threads wait for it with
/// their faults.
fn next_out(part: &Part, at: u32, most: u32) -> Option<(PageIndex, u32)> {
    (at..part.piece.pages).step_by(LOOKED_AT).find_map(|start| {
        let shard = part.region.lock();
        let is_away = |n: &u32| shard.state(part.piece.first.plus(*n)).is_away();
        let first = (start..part.piece.pages).take(LOOKED_AT).find(is_away)?;
        let end = first.saturating_add(most).min(part.piece.pages);
        let pages = (first..end).find(|n| !is_away(n)).unwrap_or(end) - first;
        Some((part.piece.first.plus(first), pages))
    })
}
