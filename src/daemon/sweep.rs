//! What a client touched, found out by moving everything out again and again.

use std::collections::HashSet;
use userswap_engine::{EvictError, Keep, Space};
use userswap_uffd::page_bytes;

/// What was touched between two sweeps, by page number: address by page size.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// What had been out, in the order it came back.
    pub touched: Vec<u64>,
    /// What hadn't been there or wasn't known of, in the order of its addresses. The order in which it was touched isn't known.
    pub found: Vec<u64>,
    /// There was more than could be remembered in order; it is in `found`.
    pub overflown: bool,
}

/// Sweeps one address space.
#[derive(Default)]
pub(super) struct Sweeper {
    /// Pages that stayed when all went, so that they don't seem touched for ever.
    stayed: HashSet<u64>,
    /// Swept before: what came back since is known.
    begun: bool,
    arrivals: Vec<(u64, u64)>,
}

impl Sweeper {
    /// Tells what was touched, and moves it out.
    ///
    /// What comes back while a sweep is under way is told by the next one, though it may have gone once more by then.
    pub(super) fn sweep(&mut self, space: &Space) -> Result<Swept, EvictError> {
        // In this order: what comes back in between is among the arrivals alone, and so told once.
        let present = present(space)?;
        let all_told = space.take_arrivals(&mut self.arrivals) || !self.begun;
        self.begun = true;
        let page = page_bytes();
        let touched: Vec<u64> =
            self.arrivals.iter().flat_map(|&(from, to)| from / page..to.div_ceil(page)).collect();
        let known: HashSet<u64> = touched.iter().copied().collect();
        let found =
            present.into_iter().filter(|page| !known.contains(page) && !self.stayed.contains(page)).collect();
        for span in space.spans() {
            space.move_out(span, u64::MAX, Keep::Stored)?;
        }
        // What came back meanwhile is here too, and among the next arrivals, where it counts.
        self.stayed = self::present(space)?.into_iter().collect();
        Ok(Swept { touched, found, overflown: !all_told })
    }
}

/// The pages in care that are in memory.
fn present(space: &Space) -> Result<Vec<u64>, EvictError> {
    let (mut pages, mut present) = (Vec::new(), Vec::new());
    for span in space.spans() {
        space.memory().resident(span, &mut present)?;
        let numbers = span.start() / page_bytes()..;
        pages.extend(numbers.zip(&present).filter(|(_, present)| **present).map(|(number, _)| number));
    }
    pages.sort_unstable();
    Ok(pages)
}
