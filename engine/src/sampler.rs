//! What is seen of an address space for the choice of what goes out: what came in, by the faults that were served, and what is there, by the page table.

use crate::evict::{EvictError, Lot};
use crate::space::Space;
use userswap_policy::{Sampler, Victim};
use userswap_uffd::{Span, page_bytes};

/// Pages chosen together: what a slot holds, where it is of the usual size. Aligned, so that a fault's block is all in one of them.
pub(crate) const BLOCK: u64 = 64;

/// Looks at an address space.
pub(crate) struct Seen<'a> {
    pub(crate) space: &'a Space,
    /// What is in care of it, where it is looked for what is there.
    pub(crate) spans: &'a [Span],
    pub(crate) buffers: &'a mut Buffers,
}

/// What looking takes, kept.
#[derive(Default)]
pub(crate) struct Buffers {
    arrivals: Vec<(u64, u64)>,
    pub(crate) present: Vec<bool>,
}

impl Sampler for Seen<'_> {
    type Error = EvictError;

    fn arrivals(&mut self, tell: &mut dyn FnMut(u64, u64)) -> bool {
        let told = self.space.arrivals().take(&mut self.buffers.arrivals);
        for &(from, to) in &self.buffers.arrivals {
            let Ok(span) = Span::between(from, to) else { continue };
            blocks(span).for_each(|piece| tell(name(piece), mask(piece)));
        }
        told
    }

    fn residents(
        &mut self,
        wanted: &dyn Fn(u64) -> bool,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), EvictError> {
        for span in self.spans {
            for run in runs(*span, wanted) {
                self.space.memory().resident(run, &mut self.buffers.present)?;
                let mut present = self.buffers.present.iter();
                for piece in blocks(run) {
                    let first = index(piece.start());
                    let there = present.by_ref().take(pages_of(piece.len()) as usize).zip(first..);
                    tell(name(piece), there.fold(0, |pages, (is, at)| pages | u64::from(*is) << at));
                }
            }
        }
        Ok(())
    }
}

/// The victim's pages, to be moved.
pub(crate) fn lot(victim: Victim) -> Option<Lot> {
    let first = victim.pages.checked_ilog2().map(|_| victim.pages.trailing_zeros())?;
    let pages = victim.pages >> first;
    let start = (victim.block * BLOCK + u64::from(first)) * page_bytes();
    let span = Span::new(start, u64::from(u64::BITS - pages.leading_zeros()) * page_bytes()).ok()?;
    Some(Lot { span, pages })
}

/// The victim's pages that are in memory still; all, if that can't be known.
pub(crate) fn there(space: &Space, victim: Victim, buffers: &mut Buffers) -> u64 {
    let mut pages = 0;
    for piece in pieces(victim) {
        match space.memory().resident(piece, &mut buffers.present) {
            Ok(()) => {
                let found = buffers.present.iter().zip(index(piece.start())..);
                pages = found.fold(pages, |pages, (is, at)| pages | u64::from(*is) << at);
            }
            Err(_) => pages |= mask(piece),
        }
    }
    pages
}

/// The block that a piece of one is of.
pub(crate) fn name(piece: Span) -> u64 {
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

fn pages_of(bytes: u64) -> u32 {
    u32::try_from(bytes / page_bytes()).unwrap_or(u32::MAX)
}

/// A range, cut where blocks begin.
pub(crate) fn blocks(span: Span) -> impl Iterator<Item = Span> {
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
