//! All page arithmetic: the page size, page-aligned ranges and what can be done with two of them.

use std::fmt;
use std::sync::OnceLock;

/// A page-aligned, non-empty range of user addresses.
///
/// It says nothing of whether anything is mapped there, nor in which process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    start: u64,
    len: u64,
}

/// Why two numbers aren't a [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// The start is not a multiple of the page size.
    #[error("start {0:#x} is not page-aligned")]
    UnalignedStart(u64),
    /// The length is not a multiple of the page size.
    #[error("length {0:#x} is not a whole number of pages")]
    UnalignedLength(u64),
    /// The length is zero.
    #[error("an empty range at {0:#x}")]
    Empty(u64),
    /// It ends beyond the user half of the address space, or wraps.
    #[error("{start:#x}+{len:#x} does not end within user space")]
    OutOfUserSpace {
        /// Where it was to start.
        start: u64,
        /// How long it was to be, in bytes.
        len: u64,
    },
}

impl Span {
    /// The range of `len` bytes from `start`; both page-aligned, not empty, wholly in user space.
    pub fn new(start: u64, len: u64) -> Result<Span, SpanError> {
        if len == 0 {
            return Err(SpanError::Empty(start));
        }
        if !is_page_aligned(start) {
            return Err(SpanError::UnalignedStart(start));
        }
        if !is_page_aligned(len) {
            return Err(SpanError::UnalignedLength(len));
        }
        match start.checked_add(len) {
            Some(end) if end <= user_end() => Ok(Span { start, len }),
            _ => Err(SpanError::OutOfUserSpace { start, len }),
        }
    }

    /// The range of `pages` pages from `start`.
    pub fn from_pages(start: u64, pages: u64) -> Result<Span, SpanError> {
        let len =
            pages.checked_mul(page_bytes()).ok_or(SpanError::OutOfUserSpace { start, len: u64::MAX })?;
        Span::new(start, len)
    }

    /// The range from `start` up to, not including, `end`.
    pub fn between(start: u64, end: u64) -> Result<Span, SpanError> {
        Span::new(start, end.saturating_sub(start))
    }

    /// The one page that holds `addr`.
    pub fn page_of(addr: u64) -> Result<Span, SpanError> {
        Span::new(page_floor(addr), page_bytes())
    }

    /// All addresses that a program can have memory at, from `lowest` on, which begins a page.
    pub(crate) fn from_lowest(lowest: u64) -> Span {
        Span { start: lowest, len: user_end() - lowest }
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes, never 0.
    #[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Length in bytes as a `usize`.
    pub const fn bytes(self) -> usize {
        to_usize(self.len)
    }

    /// The address after the last.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Number of pages, never 0.
    pub fn pages(self) -> u64 {
        self.len >> page_shift()
    }

    /// Whether `addr` lies within.
    pub const fn contains(self, addr: u64) -> bool {
        self.start <= addr && addr < self.end()
    }

    /// Whether all of `other` lies within.
    pub const fn contains_span(self, other: &Span) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two have a byte in common. Touching is not overlapping.
    pub const fn overlaps(self, other: &Span) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// What the two have in common.
    pub fn intersection(self, other: &Span) -> Option<Span> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Span { start, len: end - start })
    }

    /// What is left of this one without `other`: the part before it and the part after it.
    pub fn subtract(self, other: &Span) -> (Option<Span>, Option<Span>) {
        let before_end = self.end().min(other.start);
        let after_start = self.start.max(other.end());
        let before =
            (self.start < before_end).then(|| Span { start: self.start, len: before_end - self.start });
        let after =
            (after_start < self.end()).then(|| Span { start: after_start, len: self.end() - after_start });
        (before, after)
    }

    /// Address of page `index`, if there is one.
    pub fn page_addr(self, index: u64) -> Option<u64> {
        (index < self.pages()).then(|| self.start + (index << page_shift()))
    }

    /// Number, from 0, of the page that holds `addr`, if it lies within.
    pub fn page_index(self, addr: u64) -> Option<u64> {
        self.contains(addr).then(|| (addr - self.start) >> page_shift())
    }

    /// The parts before and from `addr`, which must be page-aligned and strictly inside.
    pub fn split_at(self, addr: u64) -> Option<(Span, Span)> {
        (self.start < addr && addr < self.end() && is_page_aligned(addr)).then(|| {
            (Span { start: self.start, len: addr - self.start }, Span { start: addr, len: self.end() - addr })
        })
    }

    /// The same length at `start`: where a moved range arrives.
    pub fn moved_to(self, start: u64) -> Result<Span, SpanError> {
        Span::new(start, self.len)
    }

    /// Consecutive pieces of `bytes` bytes (whole pages, at least one), the last one shorter where it doesn't divide.
    pub fn pieces(self, bytes: u64) -> impl Iterator<Item = Span> + use<> {
        let step = page_floor(bytes).max(page_bytes());
        (0..self.len.div_ceil(step)).map(move |i| {
            let start = self.start + i * step;
            Span { start, len: step.min(self.end() - start) }
        })
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start, self.len)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Bytes in a base page of this machine.
pub fn page_size() -> usize {
    1 << page_shift()
}

/// [`page_size`] as a `u64`, which addresses and lengths are.
pub fn page_bytes() -> u64 {
    1 << page_shift()
}

/// Binary logarithm of the page size.
pub fn page_shift() -> u32 {
    static SHIFT: OnceLock<u32> = OnceLock::new();
    *SHIFT.get_or_init(|| rustix::param::page_size().trailing_zeros())
}

/// The start of the page that holds `addr`.
pub fn page_floor(addr: u64) -> u64 {
    addr & !(page_bytes() - 1)
}

/// Whether `value` is a multiple of the page size.
pub fn is_page_aligned(value: u64) -> bool {
    value & (page_bytes() - 1) == 0
}

/// A length in memory. Userfaultfd's features wanted here exist on 64-bit kernels only, where this loses nothing.
pub(crate) const fn to_usize(value: u64) -> usize {
    const { assert!(size_of::<usize>() == 8, "userswap needs a 64-bit target") };
    #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits wide, asserted above")]
    {
        value as usize
    }
}

/// End of what a mapping can cover without asking for a wider address space. On x86-64 the page before it is never mapped.
fn user_end() -> u64 {
    if cfg!(target_arch = "x86_64") { (1 << 47) - page_bytes() } else { 1 << 48 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x10_0000_0000;

    fn pages(first: u64, count: u64) -> Span {
        Span::from_pages(BASE + first * page_bytes(), count).unwrap()
    }

    #[test]
    fn bad_numbers_are_named() {
        let page = page_bytes();
        assert_eq!(Span::new(BASE, 0), Err(SpanError::Empty(BASE)));
        assert_eq!(Span::new(BASE + 1, page), Err(SpanError::UnalignedStart(BASE + 1)));
        assert_eq!(Span::new(BASE, page + 1), Err(SpanError::UnalignedLength(page + 1)));
        assert_eq!(
            Span::new(u64::MAX - page + 1, page),
            Err(SpanError::OutOfUserSpace { start: u64::MAX - page + 1, len: page })
        );
        assert!(matches!(Span::new(1 << 48, page), Err(SpanError::OutOfUserSpace { .. })));
        assert!(matches!(Span::from_pages(BASE, u64::MAX), Err(SpanError::OutOfUserSpace { .. })));
        assert_eq!(Span::between(BASE + page, BASE), Err(SpanError::Empty(BASE + page)));
        assert!(Span::new(user_end() - page, page).is_ok());
        assert!(Span::new(user_end() - page, 2 * page).is_err());
    }

    #[test]
    fn overlap_none_before_and_touching_before() {
        let region = pages(10, 10);
        for other in [pages(0, 5), pages(0, 10)] {
            assert!(!region.overlaps(&other) && !other.overlaps(&region));
            assert_eq!(region.intersection(&other), None);
            assert_eq!(region.subtract(&other), (None, Some(region)));
        }
    }

    #[test]
    fn overlap_none_after_and_touching_after() {
        let region = pages(10, 10);
        for other in [pages(25, 5), pages(20, 10)] {
            assert!(!region.overlaps(&other) && !other.overlaps(&region));
            assert_eq!(region.subtract(&other), (Some(region), None));
        }
    }

    #[test]
    fn overlap_full() {
        let region = pages(10, 10);
        for other in [pages(10, 10), pages(0, 30)] {
            assert_eq!(region.intersection(&other), Some(region));
            assert_eq!(region.subtract(&other), (None, None));
        }
    }

    #[test]
    fn overlap_end_remains() {
        let (region, other) = (pages(10, 10), pages(5, 10));
        assert_eq!(region.intersection(&other), Some(pages(10, 5)));
        assert_eq!(region.subtract(&other), (None, Some(pages(15, 5))));
    }

    #[test]
    fn overlap_start_remains() {
        let (region, other) = (pages(10, 10), pages(15, 10));
        assert_eq!(region.intersection(&other), Some(pages(15, 5)));
        assert_eq!(region.subtract(&other), (Some(pages(10, 5)), None));
    }

    #[test]
    fn overlap_within() {
        let (region, other) = (pages(10, 10), pages(12, 3));
        assert_eq!(region.intersection(&other), Some(other));
        assert_eq!(region.subtract(&other), (Some(pages(10, 2)), Some(pages(15, 5))));
    }

    #[test]
    fn pages_addresses_and_splits() {
        let region = pages(0, 4);
        assert_eq!(region.page_addr(3), Some(BASE + 3 * page_bytes()));
        assert_eq!(region.page_addr(4), None);
        assert_eq!(region.page_index(BASE + 3 * page_bytes() + 17), Some(3));
        assert_eq!(region.page_index(region.end()), None);
        assert!(region.contains(BASE) && !region.contains(region.end()));
        assert_eq!(region.split_at(BASE + page_bytes()), Some((pages(0, 1), pages(1, 3))));
        assert_eq!(region.split_at(BASE), None);
        assert_eq!(region.split_at(BASE + 1), None);
        assert_eq!(region.split_at(region.end()), None);
        assert_eq!(region.pieces(3 * page_bytes()).collect::<Vec<_>>(), [pages(0, 3), pages(3, 1)]);
        assert_eq!(region.pieces(0).count(), 4);
        assert_eq!(format!("{region:?}"), format!("{BASE:#x}+{:#x}", 4 * page_bytes()));
    }
}
