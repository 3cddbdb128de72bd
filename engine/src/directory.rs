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
    /// What moved or went and whose own event is still to come.
    overdue: Overdue,
}

/// Events queue up after the change is made, so two threads' may arrive the wrong way round: "C moved to A" before "A moved to
/// B" or "A was unmapped", whose place it took. Whatever such an event is still owed for is kept here.
#[derive(Default)]
struct Overdue {
    /// Parts something else has landed on; their own event says whether they moved or went.
    displaced: Vec<Part>,
    /// What was moved away from; the kernel says that it's unmapped, too, and by then something else may stand there.
    left: Vec<Span>,
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
        parts.append(&mut self.overdue.displaced);
        self.overdue.left.clear();
        self.mapped.clear();
        parts
    }

    /// Whether any page of any region is out.
    pub fn any_out(&self) -> bool {
        let displaced = self.overdue.displaced.iter().map(|part| &part.region);
        self.mapped.values().map(|extent| &extent.region).chain(displaced).any(|region| region.lock().out() > 0)
    }

    // ---- events that come late ----

    /// Something landed on a part whose own event is still to come.
    pub fn displace(&mut self, part: Part) {
        self.overdue.displaced.push(part);
    }

    /// A range was moved away from: that it is unmapped will be said, too.
    pub fn expect_unmapped(&mut self, span: Span) {
        if !self.overdue.left.contains(&span) {
            self.overdue.left.push(span);
        }
    }

    /// The parts that an event about `span` is overdue for, if any, and what of `span` it says something new about. `unmapped`:
    /// it says that the range is unmapped.
    pub fn explain(&mut self, span: Span, unmapped: bool) -> (Vec<Part>, Vec<Span>) {
        if self.overdue.displaced.is_empty() && (!unmapped || self.overdue.left.is_empty()) {
            return (Vec::new(), vec![span]);
        }
        let mut parts = Vec::new();
        let mut rest = vec![span];
        for part in std::mem::take(&mut self.overdue.displaced) {
            let Some(whole) = part.span() else { continue };
            if let Some(piece) = whole.intersection(&span) {
                parts.push(part.within(piece));
                rest = rest.iter().flat_map(|span| minus(*span, piece)).collect();
            }
            self.overdue.displaced.extend(minus(whole, span).map(|piece| part.within(piece)));
        }
        if unmapped {
            for left in std::mem::take(&mut self.overdue.left) {
                if left.overlaps(&span) {
                    rest = rest.iter().flat_map(|span| minus(*span, left)).collect();
                }
                self.overdue.left.extend(minus(left, span));
            }
        }
        (parts, rest)
    }

    /// Nothing in `span` is owed an event any more.
    pub fn forget_overdue(&mut self, span: Span) {
        self.overdue.left.retain(|left| !left.overlaps(&span));
    }

    /// All events there were have been read: what is still displaced went without one.
    pub fn nothing_overdue(&mut self) -> Vec<Part> {
        self.overdue.left.clear();
        std::mem::take(&mut self.overdue.displaced)
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

/// `span` without `other`.
fn minus(span: Span, other: Span) -> impl Iterator<Item = Span> {
    let (before, after) = span.subtract(&other);
    before.into_iter().chain(after)
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
