//! Whether what a client answers can be true.

use userswap_uffd::{Span, SpanError, page_bytes};

use crate::contract::MemoryRegion;
use crate::extension::{MoveRange, MoveReply, MoveStop};
use crate::superpages::SUPERPAGE;

/// The superpages in order, if they are ranges of pages, apart from each other and from the swap area, and no more than were
/// asked for.
pub(crate) fn check_superpages(
    regions: &[MemoryRegion],
    most: Option<u32>,
    swap_area: Option<&Span>,
) -> Result<Vec<Span>, &'static str> {
    let mut spans = regions
        .iter()
        .map(|region| Span::new(region.address, region.length))
        .collect::<Result<Vec<_>, SpanError>>()
        .map_err(|_| "a superpage that is no range of pages")?;
    spans.sort_unstable();
    if spans.windows(2).any(|pair| matches!(pair, [one, next] if one.overlaps(next))) {
        return Err("superpages that overlap");
    }
    if spans.iter().any(|span| swap_area.is_some_and(|swap_area| span.overlaps(swap_area))) {
        return Err("a superpage in the swap area");
    }
    let bytes = spans.iter().fold(0_u64, |sum, span| sum.saturating_add(span.len()));
    match most {
        Some(most) if bytes > u64::from(most) * SUPERPAGE => Err("more superpages than were asked for"),
        _ => Ok(spans),
    }
}

/// The reply has one possible result for each range.
pub(crate) fn check_moved(reply: &MoveReply, moves: &[MoveRange]) -> Result<(), &'static str> {
    if reply.results.len() != moves.len() {
        return Err("not one result a range");
    }
    for (result, range) in reply.results.iter().zip(moves) {
        if result.moved > range.len || !result.moved.is_multiple_of(page_bytes()) {
            return Err("more moved than was to be, or no whole pages");
        }
        if (result.moved == range.len) != (result.stop == MoveStop::None) {
            return Err("a reason to stop that doesn't go with what was moved");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extension::MoveResult;

    #[test]
    fn superpages_that_cannot_be_are_refused() {
        let swap = Span::new(0x1000_0000, 0x1000_0000).unwrap();
        let check = |regions: &[(u64, u64)], most| {
            let regions: Vec<_> = regions.iter().map(|&(at, len)| MemoryRegion::new(at, len)).collect();
            check_superpages(&regions, most, Some(&swap))
        };
        assert_eq!(check(&[(0x40_0000, 0x20_0000), (0x20_0000, 0x20_0000)], Some(2)).unwrap().len(), 2);
        assert!(check(&[(0x20_0000, 0x20_1000)], Some(1)).is_err(), "more than asked for");
        assert!(check(&[(0x20_0000, 0x20_1000)], None).is_ok());
        assert!(check(&[(0x20_0000, 0x2000), (0x20_1000, 0x2000)], None).is_err(), "overlap");
        assert!(check(&[(0x1fff_f000, 0x1000)], None).is_err(), "in the swap area");
        assert!(check(&[(0x20_0001, 0x1000)], None).is_err(), "misaligned");
        assert!(check(&[(0x20_0000, 0)], None).is_err(), "empty");
    }

    #[test]
    fn results_must_go_with_the_order() {
        let moves = [MoveRange { src: 0, len: 0x2000, dest: 0 }];
        let check = |results: &[(u64, MoveStop)]| {
            let results = results.iter().map(|&(moved, stop)| MoveResult { moved, stop }).collect();
            check_moved(&MoveReply { results }, &moves)
        };
        assert!(check(&[(0x2000, MoveStop::None)]).is_ok());
        assert!(check(&[(0x1000, MoveStop::Pinned)]).is_ok());
        assert!(check(&[]).is_err());
        assert!(check(&[(0x3000, MoveStop::None)]).is_err());
        assert!(check(&[(0x1000, MoveStop::None)]).is_err());
        assert!(check(&[(0x2000, MoveStop::Pinned)]).is_err());
        assert!(check(&[(0x800, MoveStop::Pinned)]).is_err());
    }
}
