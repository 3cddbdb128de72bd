//! The directory as words: what a successor finds it as.
//!
//! ```text
//! counts:   extents | overdue | left | unwatched | removed | leftover
//! extent:   start | end | region's number | first page
//! overdue:  start | end | region's number + 1, or 0 | first page
//! others:   start | end
//! ```

use super::{Directory, Extent, Overdue, Part, Region, bytes_of, pages_in};
use crate::core::{PageIndex, Piece};
use std::collections::HashMap;
use std::sync::Arc;
use userswap_uffd::Span;

impl Directory {
    /// Everything it says, and `leftover`, as words. `None` if a region has no number.
    pub(crate) fn to_words(&self, leftover: &[Span]) -> Option<Vec<u64>> {
        let spans = [&self.left, &self.unwatched, &self.removed, leftover];
        let counts = [self.mapped.len(), self.overdue.len()];
        let counts = counts.into_iter().chain(spans.iter().map(|spans| spans.len()));
        let mut words: Vec<u64> = counts.map(|count| count as u64).collect();
        for (&start, extent) in &self.mapped {
            words.extend([start, extent.end, number_of(&extent.region)?, extent.first.0.into()]);
        }
        for overdue in &self.overdue {
            let (region, first) = match &overdue.part {
                Some(part) => (number_of(&part.region)? + 1, part.piece.first.0),
                None => (0, 0),
            };
            words.extend([overdue.span.start(), overdue.span.end(), region, first.into()]);
        }
        for spans in spans {
            words.extend(spans.iter().flat_map(|span| [span.start(), span.end()]));
        }
        Some(words)
    }

    /// The directory that words say, and what was left over. `region` is asked once for each number; parts of regions that aren't there any
    /// more are left out. `None` if these can't be the words of one.
    pub(crate) fn from_words(
        mut word: impl Iterator<Item = u64>,
        mut region: impl FnMut(u32, &[Piece]) -> Option<Arc<Region>>,
    ) -> Option<(Self, Vec<Span>)> {
        let mut next = || word.next();
        let counts = [next()?, next()?, next()?, next()?, next()?, next()?];
        let mut four = |count: u64| -> Option<Vec<[u64; 4]>> {
            (0..count).map(|_| Some([next()?, next()?, next()?, next()?])).collect()
        };
        let (extents, overdue) = (four(counts[0])?, four(counts[1])?);
        let mut spans = |count: u64| -> Option<Vec<Span>> {
            (0..count).map(|_| Span::between(next()?, next()?).ok()).collect()
        };
        let (left, unwatched) = (spans(counts[2])?, spans(counts[3])?);
        let (removed, leftover) = (spans(counts[4])?, spans(counts[5])?);

        let mut pieces: HashMap<u32, Vec<Piece>> = HashMap::new();
        for &[start, end, number, first] in &extents {
            let (number, piece) = (u32::try_from(number).ok()?, piece(start, end, first)?);
            pieces.entry(number).or_default().push(piece);
        }
        for [.., number, _] in &overdue {
            if let Some(number) = number.checked_sub(1) {
                pieces.entry(u32::try_from(number).ok()?).or_default();
            }
        }
        let mut regions: HashMap<u32, Arc<Region>> = HashMap::new();
        for (number, mut mapped) in pieces {
            mapped.sort_unstable_by_key(|piece| piece.first);
            if let Some(region) = region(number, &mapped) {
                regions.insert(number, region);
            }
        }
        let find = |number: u64| regions.get(&u32::try_from(number).ok()?).cloned();
        let mut directory = Self { left, unwatched, removed, ..Self::default() };
        for [start, end, number, first] in extents {
            if let Some(region) = find(number) {
                let first = PageIndex(u32::try_from(first).ok()?);
                directory.mapped.insert(start, Extent { end, region, first });
            }
        }
        for [start, end, number, first] in overdue {
            let span = Span::between(start, end).ok()?;
            match number.checked_sub(1) {
                None => directory.overdue.push(Overdue { span, part: None }),
                Some(number) => {
                    if let Some(region) = find(number) {
                        let part = Part { region, piece: piece(start, end, first)? };
                        directory.overdue.push(Overdue { span, part: Some(part) });
                    }
                }
            }
        }
        Some((directory, leftover))
    }

    /// Every part of every region, also of those whose place isn't known for the moment.
    pub(crate) fn all_and_overdue(&self) -> Vec<Part> {
        let overdue = self.overdue.iter().filter_map(|overdue| overdue.part.clone());
        self.all().into_iter().chain(overdue).collect()
    }
}

fn number_of(region: &Region) -> Option<u64> {
    region.number.map(u64::from)
}

fn piece(start: u64, end: u64, first: u64) -> Option<Piece> {
    let span = Span::between(start, end).ok()?;
    let (first, pages) = (PageIndex(u32::try_from(first).ok()?), pages_in(span.len()));
    (bytes_of(pages) == span.len()).then_some(Piece { first, pages, addr: start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Counts, RegionId, Shard};
    use crate::ledger::{Ledger, Roster};

    #[test]
    fn what_is_written_is_what_is_read() {
        let ledger = Ledger::create(&Roster::create().unwrap()).unwrap();
        let at = |page: u32| 0x10_0000_0000 + bytes_of(page);
        let span = |first: u32, pages: u32| Span::new(at(first), bytes_of(pages)).unwrap();
        let part = |first: u32, pages: u32| {
            let piece = Piece { first: PageIndex(0), pages, addr: at(first) };
            let table = ledger.new_table(RegionId(first), pages, 0);
            let shard = Shard::over(RegionId(first), table, vec![piece], bytes_of(1), Counts::default());
            Part { region: Region::new(shard), piece }
        };
        let mut directory = Directory::default();
        for part in [part(0, 8), part(20, 2), part(30, 3)] {
            directory.insert(&part);
        }
        // A hole in the first, the second moved away from, the third displaced.
        directory.take(span(3, 2));
        directory.leave(span(10, 4));
        directory.note_removed(span(50, 1));
        let displaced = directory.take(span(30, 3)).remove(0);
        directory.overdue.push(Overdue { span: span(30, 3), part: Some(displaced) });
        directory.overdue.push(Overdue { span: span(40, 1), part: None });
        let words = directory.to_words(&[span(60, 1)]).unwrap();
        ledger.write_directory(&words, 0);

        let kept: Vec<u64> = words.clone();
        let mut pieces_of = HashMap::new();
        let read = Directory::from_words(kept.into_iter(), |number, pieces| {
            pieces_of.insert(number, pieces.to_vec());
            let (record, table) = ledger.found_region(number)?;
            let shard = Shard::over(record.id, table, pieces.to_vec(), bytes_of(1), Counts::default());
            Some(Region::new(shard))
        });
        let (read, leftover) = read.unwrap();
        assert_eq!(leftover, [span(60, 1)]);
        assert_eq!(read.to_words(&leftover).unwrap(), words);
        assert_eq!(pieces_of[&0].len(), 2);
        assert_eq!(pieces_of[&2].len(), 0, "it is nowhere for the moment");
        assert!(Directory::from_words(words[..9].iter().copied(), |_, _| None).is_none());
        // Both say that the regions are theirs.
        std::mem::forget(directory);
    }
}
