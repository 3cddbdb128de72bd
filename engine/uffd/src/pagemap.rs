//! What is present where: /proc/PID/pagemap, decoded, and the PAGEMAP_SCAN request on it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use bitflags::bitflags;

use crate::abi::{self, PageRegion, ScanArg};
use crate::span::to_usize;
use crate::{Error, Span};

/// A process's pagemap, open.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

/// One page's word in the pagemap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagemapEntry(u64);

bitflags! {
    /// What PAGEMAP_SCAN can tell of a page, bit for bit the kernel's `PAGE_IS_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Categories: u64 {
        /// Its mapping is registered for asynchronous write-protection.
        const WP_ALLOWED = 1 << 0;
        /// Written since it was last write-protected.
        const WRITTEN = 1 << 1;
        /// Of a file, or shared.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// In the kernel's swap.
        const SWAPPED = 1 << 4;
        /// The shared zero page.
        const ZERO = 1 << 5;
        /// Part of a huge page.
        const HUGE = 1 << 6;
        /// Soft-dirty.
        const SOFT_DIRTY = 1 << 7;
        /// A guard page (Linux 6.15 and later).
        const GUARD = 1 << 8;
    }
}

/// What a scan looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanRequest {
    /// Pages must have all of these (after `inverted`).
    pub all_of: Categories,
    /// And at least one of these, if any is given.
    pub any_of: Categories,
    /// These bits count as set when they aren't.
    pub inverted: Categories,
    /// Which bits to report; neighbours that agree in them come as one range.
    pub report: Categories,
    /// Write-protect the matching pages in the same step, and refuse mappings that aren't registered for it.
    pub write_protect: bool,
    /// Stop after this many pages; 0 is no limit.
    pub max_pages: u64,
}

/// A range of pages that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanRange {
    /// Where.
    pub span: Span,
    /// What they are, of what was to be reported.
    pub categories: Categories,
}

const OPENING: &str = "opening a pagemap";

impl Pagemap {
    /// Of the process that has this number now.
    pub fn open(pid: u32) -> Result<Pagemap, Error> {
        let file = File::open(format!("/proc/{pid}/pagemap"));
        file.map(Pagemap::from_file).map_err(|e| Error::gone_or(pid, OPENING, e))
    }

    /// Of this process.
    pub fn this() -> Result<Pagemap, Error> {
        File::open("/proc/self/pagemap").map(Pagemap::from_file).map_err(|e| Error::system(OPENING, e))
    }

    /// Takes an open pagemap, such as one passed by someone with more privilege.
    pub fn from_file(file: File) -> Pagemap {
        Pagemap { file }
    }

    /// The words of the pages of `span`, one a page, in place of what `entries` held.
    ///
    /// A process that has exited reads as [`Error::WrongSize`], 0 bytes found.
    pub fn entries(&self, span: Span, entries: &mut Vec<PagemapEntry>) -> Result<(), Error> {
        let mut bytes = vec![0u8; to_usize(span.pages()) * ENTRY];
        let offset = (span.start() >> crate::page_shift()) * ENTRY as u64;
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::range("reading the pagemap of", span, e)),
            }
        }
        PagemapEntry::decode(&bytes[..filled], span.pages(), entries)
    }

    /// Walks `span` and appends the ranges that match to `found`, which are in order and don't touch where they're alike.
    ///
    /// Where the walk ended: the end of `span`, or where `max_pages` were found. `ENOTTY` (as an error): kernel before 6.7.
    pub fn scan(&self, span: Span, request: &ScanRequest, found: &mut Vec<ScanRange>) -> Result<u64, Error> {
        let mut regions = [PageRegion::default(); 128];
        let mut at = span.start();
        let mut left = request.max_pages;
        while at < span.end() {
            let mut argument = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: if request.write_protect { WP_MATCHING | CHECK_WP_ASYNC } else { 0 },
                start: at,
                end: span.end(),
                vec: regions.as_mut_ptr().addr() as u64,
                vec_len: regions.len() as u64,
                max_pages: left,
                category_inverted: request.inverted.bits(),
                category_mask: request.all_of.bits(),
                category_anyof_mask: request.any_of.bits(),
                return_mask: request.report.bits(),
                walk_end: 0,
            };
            // SAFETY: PAGEMAP_SCAN takes a pm_scan_arg, which ScanArg mirrors, and writes at most vec_len page_regions to vec, which PageRegion
            // mirrors and which is exclusively ours. Write-protecting changes no contents.
            let filled = unsafe { abi::ioctl(self, abi::PAGEMAP_SCAN, &mut argument) }
                .map_err(|e| Error::range("scanning the pagemap of", span, e))?;
            let filled = usize::try_from(filled).unwrap_or(0).min(regions.len());
            for region in &regions[..filled] {
                append(found, region)?;
                left = left.saturating_sub((region.end - region.start) >> crate::page_shift());
            }
            // A walk that doesn't advance would never end.
            if argument.walk_end <= at {
                break;
            }
            at = argument.walk_end;
            if request.max_pages != 0 && left == 0 {
                break;
            }
        }
        Ok(at)
    }
}

impl AsFd for Pagemap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PagemapEntry {
    /// The kernel's word.
    pub const fn from_bits(bits: u64) -> PagemapEntry {
        PagemapEntry(bits)
    }

    /// The words in `bytes`, which must be `pages` of them exactly, in place of what `entries` held.
    pub fn decode(bytes: &[u8], pages: u64, entries: &mut Vec<PagemapEntry>) -> Result<(), Error> {
        let expected = to_usize(pages) * ENTRY;
        if bytes.len() != expected {
            return Err(Error::WrongSize { what: "pagemap entries", found: bytes.len(), expected });
        }
        entries.clear();
        entries.extend(bytes.chunks_exact(ENTRY).map(|chunk| {
            let mut word = [0; ENTRY];
            word.copy_from_slice(chunk);
            PagemapEntry(u64::from_ne_bytes(word))
        }));
        Ok(())
    }

    /// In memory.
    pub const fn present(self) -> bool {
        self.0 & (1 << 63) != 0
    }

    /// In the kernel's swap. Not [present](Self::present).
    pub const fn swapped(self) -> bool {
        self.0 & (1 << 62) != 0
    }

    /// Of a file, or shared anonymous.
    pub const fn file_or_shared(self) -> bool {
        self.0 & (1 << 61) != 0
    }

    /// A guard page (Linux 6.15 and later).
    pub const fn guard(self) -> bool {
        self.0 & (1 << 58) != 0
    }

    /// Write-protected through a userfaultfd.
    pub const fn uffd_wp(self) -> bool {
        self.0 & (1 << 57) != 0
    }

    /// Mapped by this process alone.
    pub const fn exclusive(self) -> bool {
        self.0 & (1 << 56) != 0
    }

    /// Written since the soft-dirty bits were cleared.
    pub const fn soft_dirty(self) -> bool {
        self.0 & (1 << 55) != 0
    }

    /// Number of the page frame, for readers with CAP_SYS_ADMIN; others get 0.
    pub const fn frame(self) -> Option<u64> {
        if self.present() { Some(self.0 & ((1 << 55) - 1)) } else { None }
    }
}

const ENTRY: usize = 8;
const WP_MATCHING: u64 = 1 << 0;
const CHECK_WP_ASYNC: u64 = 1 << 1;

/// Adds a range, as a continuation of the last where it is one: a full vector cuts ranges in two.
fn append(found: &mut Vec<ScanRange>, region: &PageRegion) -> Result<(), Error> {
    let span = Span::between(region.start, region.end)?;
    let categories = Categories::from_bits_retain(region.categories);
    match found.last_mut() {
        Some(last) if last.span.end() == span.start() && last.categories == categories => {
            last.span = Span::between(last.span.start(), span.end())?;
        }
        _ => found.push(ScanRange { span, categories }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_decode() {
        let bits = |n: u32| PagemapEntry::from_bits(1 << n);
        assert!(bits(63).present() && !bits(63).swapped());
        assert!(bits(62).swapped() && !bits(62).present());
        assert!(bits(61).file_or_shared());
        assert!(bits(58).guard());
        assert!(bits(57).uffd_wp());
        assert!(bits(56).exclusive());
        assert!(bits(55).soft_dirty());
        assert_eq!(PagemapEntry::from_bits(1 << 63 | 0x1234).frame(), Some(0x1234));
        assert_eq!(bits(3).frame(), None);
        let none = PagemapEntry::default();
        assert!(!none.present() && !none.swapped() && !none.exclusive() && !none.guard() && !none.uffd_wp());
    }

    #[test]
    fn a_wrong_sized_buffer_is_named() {
        let mut entries = vec![PagemapEntry::default()];
        for size in [0, 7, 15, 17, 24] {
            let error = PagemapEntry::decode(&vec![0; size], 2, &mut entries).unwrap_err();
            assert!(
                matches!(error, Error::WrongSize { found, expected: 16, .. } if found == size),
                "{error}"
            );
        }
        PagemapEntry::decode(&[0xff; 16], 2, &mut entries).unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries[1].present());
    }

    #[test]
    fn ranges_cut_by_a_full_vector_are_joined() {
        let mut found = Vec::new();
        let page = crate::page_bytes();
        for (start, end, categories) in [(4, 6, 8), (6, 7, 8), (7, 8, 12), (9, 10, 12)] {
            append(&mut found, &PageRegion { start: start * page, end: end * page, categories }).unwrap();
        }
        let got: Vec<_> =
            found.iter().map(|r| (r.span.start() / page, r.span.pages(), r.categories.bits())).collect();
        assert_eq!(got, [(4, 3, 8), (7, 1, 12), (9, 1, 12)]);
    }
}
