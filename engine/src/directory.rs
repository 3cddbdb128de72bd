//! Which region is mapped where: what the gate protects.

mod kept;

use crate::core::{PageIndex, Piece, Shard};
use crate::ledger::Home;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use userswap_uffd::{Span, page_size};

/// One region object. It outlives its mapping while work on it is in flight.
pub struct Region {
    shard: Mutex<Shard>,
    /// Its number in the ledger of its address space, if there is one.
    number: Option<u32>,
}

impl Region {
    /// Wraps a shard.
    pub fn new(shard: Shard) -> Arc<Self> {
        let number = shard.table().home().map(Home::index);
        Arc::new(Self { shard: Mutex::new(shard), number })
    }

    /// Locks the region's state, for a decision or a record, never over a system call or a store call.
    pub fn lock(&self) -> parking_lot::MutexGuard<'_, Shard> {
        self.shard.lock()
    }
}

/// The regions of one address space by address. Looked up with the gate shared, changed with it exclusive.
#[derive(Default)]
pub struct Directory {
    /// By start address; never overlapping.
    mapped: BTreeMap<u64, Extent>,
    closed: bool,
    /// In the order they were landed on.
    overdue: Vec<Overdue>,
    /// Ranges that were moved away from: registered and nobody's until the kernel says that they are unmapped, which is at
    /// once unless its doer asked for the old mapping to stay.
    left: Vec<Span>,
    /// What of `left` was unregistered after the move and before it was told: whoever unmaps it won't be told of.
    unwatched: Vec<Span>,
    /// Ranges of nobody's that were removed, perhaps not all the way yet.
    removed: Vec<Span>,
}

/// Something else has landed on it, and its own event, which says whether it moved or went, is still to come.
///
/// Events queue up after the change is made, so two threads' may arrive the wrong way round: "C moved to A" before "A moved to
/// B" or "A is unmapped", whose place it took.
///
/// Two cases aren't told apart from others, since the kernel doesn't say which mapping an event is about: a third thread moves
/// or unmaps C from A before the first has queued its event; and A, registered with nothing of it out, is unmapped, and said so
/// after C, of which something is out, has landed there. Both need a thread to lose its CPU between two instructions of
/// the kernel for as long as another takes for a system call.
struct Overdue {
    span: Span,
    /// `None`: a range that is registered still and nobody's.
    part: Option<Part>,
}

/// What an event about a range is about.
#[derive(Default)]
pub struct Explained {
    /// These parts.
    pub parts: Vec<Part>,
    /// These ranges, which were nobody's.
    pub left: Vec<Span>,
}

#[derive(Clone)]
struct Extent {
    end: u64,
    region: Arc<Region>,
    first: PageIndex,
}

/// A part of a region found in a range of addresses.
#[derive(Clone)]
pub struct Part {
    /// The region.
    pub region: Arc<Region>,
    /// Which of its pages, and where.
    pub piece: Piece,
}

impl Part {
    /// Its range of addresses.
    pub fn span(&self) -> Option<Span> {
        Span::new(self.piece.addr, bytes_of(self.piece.pages)).ok()
    }

    /// What of it lies at `span`, which it holds.
    fn within(&self, span: Span) -> Self {
        let first = self.piece.first.plus(pages_in(span.start() - self.piece.addr));
        let piece = Piece { first, pages: pages_in(span.len()), addr: span.start() };
        Self { region: Arc::clone(&self.region), piece }
    }
}

impl Directory {
    /// Whether the address space is gone or being given up.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Notes that it is.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The region and page at `addr`.
    pub fn find(&self, addr: u64) -> Option<(&Arc<Region>, PageIndex)> {
        let (start, extent) = self.mapped.range(..=addr).next_back()?;
        (addr < extent.end).then(|| (&extent.region, extent.first.plus(pages_in(addr - start))))
    }

    /// Whether any region has a page in `span`.
    pub fn overlaps(&self, span: Span) -> bool {
        self.mapped.range(..span.end()).next_back().is_some_and(|(_, extent)| extent.end > span.start())
    }

    /// The parts of regions in `span`, by address.
    pub fn parts(&self, span: Span) -> Vec<Part> {
        let from = self.mapped.range(..=span.start()).next_back().map_or(span.start(), |(start, _)| *start);
        self.mapped
            .range(from..span.end())
            .filter_map(|(&start, extent)| {
                let (lo, hi) = (start.max(span.start()), extent.end.min(span.end()));
                (lo < hi).then(|| Part {
                    region: Arc::clone(&extent.region),
                    piece: Piece {
                        first: extent.first.plus(pages_in(lo - start)),
                        pages: pages_in(hi - lo),
                        addr: lo,
                    },
                })
            })
            .collect()
    }

    /// Every part of every region.
    pub fn all(&self) -> Vec<Part> {
        self.mapped
            .iter()
            .map(|(&start, extent)| Part {
                region: Arc::clone(&extent.region),
                piece: Piece { first: extent.first, pages: pages_in(extent.end - start), addr: start },
            })
            .collect()
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Vec<Part> {
        let mut parts = self.all();
        parts.extend(self.nothing_overdue());
        self.left.clear();
        self.unwatched.clear();
        self.mapped.clear();
        parts
    }

    /// Whether any page of any region is out.
    pub fn any_out(&self) -> bool {
        let overdue = self.overdue.iter().filter_map(|overdue| Some(&overdue.part.as_ref()?.region));
        self.mapped.values().map(|extent| &extent.region).chain(overdue).any(|region| region.lock().out() > 0)
    }

    // ---- events that come late ----

    /// Takes out what an event is about that says that `span` moved or is unmapped: what it is overdue for, else what
    /// stands there.
    pub fn explain(&mut self, span: Span) -> Explained {
        let mut about = Explained::default();
        let mut rest = vec![span];
        for old in std::mem::take(&mut self.overdue) {
            let found: Vec<Span> = rest.iter().filter_map(|span| span.intersection(&old.span)).collect();
            let mut kept = vec![old.span];
            for piece in found {
                match &old.part {
                    Some(part) => about.parts.push(part.within(piece)),
                    None => about.left.push(piece),
                }
                rest = without(&rest, piece);
                kept = without(&kept, piece);
            }
            for span in kept {
                self.overdue.push(Overdue { span, part: old.part.as_ref().map(|part| part.within(span)) });
            }
        }
        for span in rest {
            about.parts.append(&mut self.take(span));
            about.left.append(&mut self.take_left(span));
        }
        about
    }

    /// Something lands on `span`. Pages that are out there are registered, so they have an event of their own, which is
    /// awaited. The other parts are returned: they are gone, and nothing with them, whether or not an event will say so.
    pub fn land_on(&mut self, span: Span) -> Vec<Part> {
        self.replace_left(span);
        let mut gone = Vec::new();
        for part in self.take(span) {
            let region = Arc::clone(&part.region);
            let mut shard = region.lock();
            for piece in shard.by_whereabouts(part.piece) {
                let is_out = shard.state(piece.first).is_out();
                let part = Part { piece, region: Arc::clone(&region) };
                match part.span() {
                    Some(span) if is_out => {
                        shard.displace(piece.first, piece.pages);
                        self.overdue.push(Overdue { span, part: Some(part) });
                    }
                    _ => gone.push(part),
                }
            }
        }
        gone
    }

    /// Something is mapped in the place of what is nobody's in `span`, whose own event may be still to come. Whether there was anything; it may be just that, and watched still.
    pub fn replace_left(&mut self, span: Span) -> bool {
        let left = self.take_left(span);
        self.overdue.extend(left.iter().map(|span| Overdue { span: *span, part: None }));
        !left.is_empty()
    }

    /// A range was moved away from, or came along as nobody's. Where something else stands already it is overdue.
    pub fn leave(&mut self, span: Span) {
        let mut free = vec![span];
        for standing in self.parts(span).iter().filter_map(Part::span) {
            free = without(&free, standing);
            self.overdue.push(Overdue { span: standing, part: None });
        }
        for span in free {
            self.take_left(span);
            self.left.push(span);
        }
    }

    /// What is nobody's in `span` was unregistered meanwhile.
    pub fn leave_unwatched(&mut self, span: Span) {
        self.unwatched.extend(self.left.iter().filter_map(|left| left.intersection(&span)));
    }

    /// Whether [`nothing_overdue`](Self::nothing_overdue) would change anything.
    pub fn is_anything_overdue(&self) -> bool {
        !self.overdue.is_empty() || !self.unwatched.is_empty()
    }

    /// All events there were have been read: what is overdue went without one. So will what is left and not registered: a move's own
    /// unmapping would have been told by now, so its old mapping stayed.
    pub fn nothing_overdue(&mut self) -> impl Iterator<Item = Part> + use<> {
        for span in std::mem::take(&mut self.unwatched) {
            self.left = without(&self.left, span);
        }
        std::mem::take(&mut self.overdue).into_iter().filter_map(|overdue| overdue.part)
    }

    /// Ranges that were moved away from.
    #[cfg(test)]
    pub(crate) fn left(&self) -> &[Span] {
        &self.left
    }

    /// Takes out what is nobody's in `span`.
    pub fn take_left(&mut self, span: Span) -> Vec<Span> {
        if self.left.is_empty() {
            return Vec::new();
        }
        let taken = self.left.iter().filter_map(|left| left.intersection(&span)).collect();
        self.left = without(&self.left, span);
        self.unwatched = without(&self.unwatched, span);
        taken
    }

    /// A range was removed. Where nobody has it that's noted, for whoever takes it into care before the removal is done.
    pub fn note_removed(&mut self, span: Span) {
        let mut outside = vec![span];
        for inside in self.parts(span).iter().filter_map(Part::span) {
            outside = without(&outside, inside);
        }
        for span in outside {
            self.take_removed(span);
            self.removed.push(span);
        }
    }

    /// Takes out what was removed in `span` while nobody had it.
    pub fn take_removed(&mut self, span: Span) -> Vec<Span> {
        if self.removed.is_empty() {
            return Vec::new();
        }
        let taken = self.removed.iter().filter_map(|removed| removed.intersection(&span)).collect();
        self.removed = without(&self.removed, span);
        taken
    }

    /// The directory of a child: what is nobody's is so there, too.
    pub fn for_child(&self) -> Self {
        Self { left: self.left.clone(), unwatched: self.unwatched.clone(), ..Self::default() }
    }

    /// Enters a part. Its range must be free.
    pub fn insert(&mut self, part: &Part) {
        let end = part.piece.addr + bytes_of(part.piece.pages);
        self.mapped.insert(
            part.piece.addr,
            Extent { end, region: Arc::clone(&part.region), first: part.piece.first },
        );
    }

    /// Takes everything in `span` out and returns it.
    pub fn take(&mut self, span: Span) -> Vec<Part> {
        let parts = self.parts(span);
        for part in &parts {
            let Some((&start, _)) = self.mapped.range(..=part.piece.addr).next_back() else { continue };
            let Some(extent) = self.mapped.remove(&start) else { continue };
            let (lo, hi) = (part.piece.addr, part.piece.addr + bytes_of(part.piece.pages));
            if start < lo {
                self.mapped.insert(start, Extent { end: lo, ..extent.clone() });
            }
            if hi < extent.end {
                let first = extent.first.plus(pages_in(hi - start));
                self.mapped.insert(hi, Extent { first, ..extent });
            }
        }
        parts
    }
}

/// The ranges without what they have in common with `other`.
pub(crate) fn without(spans: &[Span], other: Span) -> Vec<Span> {
    let minus = |span: &Span| {
        let (before, after) = span.subtract(&other);
        before.into_iter().chain(after)
    };
    spans.iter().flat_map(minus).collect()
}

/// Pages in a length that is a multiple of the page size. A region has fewer than 2³².
#[allow(clippy::cast_possible_truncation)]
pub fn pages_in(bytes: u64) -> u32 {
    (bytes / page_size() as u64) as u32
}

/// Bytes in `pages` pages.
pub fn bytes_of(pages: u32) -> u64 {
    u64::from(pages) * page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Counts, Generation, Lost, RegionId, SlotId, SlotPage};
    use std::collections::BTreeMap;

    const BASE: u64 = 0x10_0000_0000;
    const PAGES: u32 = 64;

    fn span(first: u32, pages: u32) -> Span {
        Span::new(BASE + bytes_of(first), bytes_of(pages)).unwrap()
    }

    fn part(first: u32, pages: u32) -> Part {
        let addr = span(first, pages).start();
        let shard = Shard::new(RegionId(first), pages, bytes_of(1), addr, Counts::default());
        Part { region: Region::new(shard), piece: Piece { first: PageIndex(0), pages, addr } }
    }

    /// A part all of which stands in a slot.
    fn part_out(first: u32, pages: u32) -> Part {
        let part = part(first, pages);
        {
            let mut shard = part.region.lock();
            shard.plan_move(
                PageIndex(0),
                PageIndex(pages),
                pages,
                SlotPage { slot: SlotId(0), offset: 0 },
                &|_| true,
            );
            shard.moved(PageIndex(0), pages, Generation::default, &mut Lost::default());
        }
        part
    }

    fn same(parts: &[Part], expected: &[(&Part, u32, u32, u32)]) {
        let got: Vec<_> = parts.iter().map(|part| (Arc::as_ptr(&part.region), part.piece)).collect();
        let wanted: Vec<_> = expected
            .iter()
            .map(|(part, first, pages, at)| {
                let piece = Piece { first: PageIndex(*first), pages: *pages, addr: BASE + bytes_of(*at) };
                (Arc::as_ptr(&part.region), piece)
            })
            .collect();
        assert_eq!(got, wanted);
    }

    #[test]
    fn a_range_in_the_middle_splits_what_it_is_taken_from() {
        let mut directory = Directory::default();
        let whole = part(4, 8);
        directory.insert(&whole);
        same(&directory.take(span(6, 3)), &[(&whole, 2, 3, 6)]);
        same(&directory.all(), &[(&whole, 0, 2, 4), (&whole, 5, 3, 9)]);
        assert!(directory.find(BASE + bytes_of(6)).is_none());
        assert_eq!(directory.find(BASE + bytes_of(9)).unwrap().1, PageIndex(5));
        assert!(!directory.overlaps(span(6, 3)) && directory.overlaps(span(5, 3)));
    }

    /// Against a map from each page to what is there, for thousands of inserted and taken ranges.
    #[test]
    fn it_is_a_map_from_pages_to_pages_of_regions() {
        let mut seed = 1u64;
        let mut below = |n: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(seed >> 33).unwrap() % n
        };
        let mut directory = Directory::default();
        let mut flat: BTreeMap<u32, (*const Region, PageIndex)> = BTreeMap::new();
        let mut taken: Vec<Part> = Vec::new();
        for _ in 0..20_000 {
            let first = below(PAGES);
            let range = span(first, 1 + below(PAGES - first));
            let (low, high) = (first, first + pages_in(range.len()));
            let flat_there = flat.range(low..high).count();
            assert_eq!(directory.overlaps(range), flat_there > 0);
            let held: u32 = directory.parts(range).iter().map(|part| part.piece.pages).sum();
            assert_eq!(held as usize, flat_there);
            if flat_there == 0 {
                // What was taken comes back somewhere else, as after an mremap, or something new comes.
                let new = match taken.pop() {
                    Some(mut old) if old.piece.pages <= high - low => {
                        old.piece.addr = range.start();
                        old
                    }
                    _ => part(low, high - low),
                };
                directory.insert(&new);
                for at in 0..new.piece.pages {
                    flat.insert(low + at, (Arc::as_ptr(&new.region), new.piece.first.plus(at)));
                }
            } else {
                for part in directory.take(range) {
                    for at in 0..part.piece.pages {
                        let page = pages_in(part.piece.addr - BASE) + at;
                        let there = (Arc::as_ptr(&part.region), part.piece.first.plus(at));
                        assert_eq!(flat.remove(&page), Some(there));
                    }
                    taken.push(part);
                }
                assert_eq!(flat.range(low..high).count(), 0);
            }
            let page = below(PAGES);
            let found =
                directory.find(BASE + bytes_of(page) + 5).map(|(region, at)| (Arc::as_ptr(region), at));
            assert_eq!(found, flat.get(&page).copied());
        }
    }

    #[test]
    fn what_is_out_and_landed_on_is_what_the_next_event_is_about() {
        let mut directory = Directory::default();
        let (old, new) = (part_out(0, 4), part_out(8, 2));
        directory.insert(&old);
        assert!(directory.land_on(span(1, 2)).is_empty());
        let mut landed = new.clone();
        landed.piece.addr = span(1, 2).start();
        directory.insert(&landed);
        assert!(old.region.lock().address(PageIndex(1)).is_none(), "it is nowhere for the moment");
        let about = directory.explain(span(0, 4));
        same(&about.parts, &[(&old, 1, 2, 1), (&old, 0, 1, 0), (&old, 3, 1, 3)]);
        same(&directory.all(), &[(&new, 0, 2, 1)]);
        same(&directory.explain(span(0, 4)).parts, &[(&new, 0, 2, 1)]);
    }

    #[test]
    fn what_is_not_out_is_gone_when_something_lands_on_it() {
        let mut directory = Directory::default();
        let old = part(0, 4);
        directory.insert(&old);
        same(&directory.land_on(span(1, 2)), &[(&old, 1, 2, 1)]);
        same(&directory.explain(span(0, 4)).parts, &[(&old, 0, 1, 0), (&old, 3, 1, 3)]);
    }

    #[test]
    fn the_end_of_an_old_mapping_spares_what_landed_there() {
        let mut directory = Directory::default();
        directory.leave(span(0, 4));
        let new = part_out(8, 2);
        assert!(directory.land_on(span(2, 2)).is_empty());
        let mut landed = new.clone();
        landed.piece.addr = span(2, 2).start();
        directory.insert(&landed);
        let about = directory.explain(span(0, 4));
        assert!(about.parts.is_empty());
        assert_eq!(about.left, [span(2, 2), span(0, 2)]);
        same(&directory.all(), &[(&new, 0, 2, 2)]);
    }

    #[test]
    fn once_nothing_changes_nothing_is_overdue() {
        let mut directory = Directory::default();
        let old = part_out(0, 1);
        directory.insert(&old);
        directory.land_on(span(0, 1));
        let overdue: Vec<Part> = directory.nothing_overdue().collect();
        same(&overdue, &[(&old, 0, 1, 0)]);
        assert!(directory.explain(span(0, 1)).parts.is_empty());
    }

    /// Seed 307980: what landed there later was kept when it was unmapped, since the event was taken for the old mapping's.
    #[test]
    fn what_was_left_and_is_not_watched_is_waited_for_until_nothing_changes() {
        let mut directory = Directory::default();
        directory.leave(span(0, 4));
        directory.leave_unwatched(span(0, 2));
        let _ = directory.nothing_overdue();
        assert_eq!(directory.left(), [span(2, 2)]);
        let new = part_out(0, 4);
        assert!(directory.land_on(span(0, 4)).is_empty());
        directory.insert(&new);
        let about = directory.explain(span(0, 4));
        assert_eq!(about.left, [span(2, 2)]);
        same(&about.parts, &[(&new, 0, 2, 0)]);
    }

    #[test]
    fn what_is_left_anew_is_watched() {
        let mut directory = Directory::default();
        directory.leave(span(0, 2));
        directory.leave_unwatched(span(0, 2));
        directory.leave(span(0, 1));
        let _ = directory.nothing_overdue();
        assert_eq!(directory.left(), [span(0, 1)]);
    }

    #[test]
    fn what_is_displaced_counts_as_out_and_goes_with_everything() {
        let mut directory = Directory::default();
        directory.insert(&part_out(0, 1));
        assert!(directory.any_out());
        directory.land_on(span(0, 1));
        assert!(directory.all().is_empty() && directory.any_out());
        assert_eq!(directory.take_all().len(), 1);
        assert!(!directory.any_out());
    }
}
