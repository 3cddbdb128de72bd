//! Which region is mapped where: what the gate protects.

use crate::core::{PageIndex, Piece, Shard};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use userswap_uffd::{Span, page_size};

/// One region object. It outlives its mapping while work on it is in flight.
pub struct Region {
    shard: Mutex<Shard>,
}

impl Region {
    /// Wraps a shard.
    pub fn new(shard: Shard) -> Arc<Self> {
        Arc::new(Self { shard: Mutex::new(shard) })
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
    epoch: u64,
    closed: bool,
    /// In the order they were landed on.
    overdue: Vec<Overdue>,
    /// Ranges that were moved away from: registered and nobody's until the kernel says that they are unmapped, which is at
    /// once unless its doer asked for the old mapping to stay.
    left: Vec<Span>,
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
    /// Counts events applied; an order given under an older epoch is void.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Notes that an event was applied.
    pub fn bump_epoch(&mut self) {
        self.epoch += 1;
    }

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
        let left = self.take_left(span);
        self.overdue.extend(left.into_iter().map(|span| Overdue { span, part: None }));
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

    /// All events there were have been read: what is overdue went without one.
    pub fn nothing_overdue(&mut self) -> impl Iterator<Item = Part> + use<> {
        std::mem::take(&mut self.overdue).into_iter().filter_map(|overdue| overdue.part)
    }

    /// Takes out what is nobody's in `span`.
    pub fn take_left(&mut self, span: Span) -> Vec<Span> {
        let taken = self.left.iter().filter_map(|left| left.intersection(&span)).collect();
        self.left = without(&self.left, span);
        taken
    }

    /// The directory of a child: what is nobody's is so there, too.
    pub fn for_child(&self) -> Self {
        Self { left: self.left.clone(), ..Self::default() }
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
fn without(spans: &[Span], other: Span) -> Vec<Span> {
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
