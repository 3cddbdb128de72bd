//! The measured memory, and threads that touch it. The one module with unsafe code here: what is measured is what
//! happens when a pointer is followed.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::image::checksum;
use crate::stats::Pass;
use serde::{Deserialize, Serialize};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use userswap_engine::PagedRegion;
use userswap_engine::core::Transition;
use userswap_uffd::own::madvise;
use userswap_uffd::pagemap::Pagemap;
use userswap_uffd::{Advice, Mapping, Protection, RegisterMode, Span, Uffd, cpu, page_size};

/// Memory that holds an image. Once it is loaded nobody writes to it but passes, and those to the first byte of a page alone.
pub(crate) struct Arena {
    owner: Owner,
    span: Span,
    /// After so many pages there is one that isn't part of it.
    part: usize,
    /// Of each page without its first byte.
    sums: Vec<u64>,
    /// Each page's first byte: its mark.
    marks: Vec<u8>,
    /// What the last pass wrote.
    mark: u8,
}

/// How a pass touches pages.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manner {
    /// Each thread stays on a CPU of its own, as far as there are enough.
    pub(crate) pin: bool,
    /// Of a hundred touches of a thread so many write.
    pub(crate) writes: u8,
}

impl Manner {
    /// Whether a thread's touch of this number writes: spread evenly, and the same every time.
    fn is_write(self, touch: usize) -> bool {
        touch % 100 * 61 % 100 < usize::from(self.writes)
    }
}

enum Owner {
    Mapping(Mapping),
    Region(PagedRegion),
}

impl Arena {
    /// The image in an ordinary mapping.
    pub(crate) fn in_mapping(image: &[u8]) -> Result<Self, Error> {
        Self::in_parts(image, 1)
    }

    /// The image in an ordinary mapping, in so many parts (or fewer, if it has too few pages) with a page that nobody uses between them.
    pub(crate) fn in_parts(image: &[u8], parts: usize) -> Result<Self, Error> {
        let pages = image.len() / page_size();
        let part = pages.div_ceil(parts.max(1)).max(1);
        let holes = pages / part * page_size();
        let mapping = Mapping::new((image.len() + holes) as u64, Protection::READ_WRITE)?;
        let span = mapping.span();
        Self::load(Owner::Mapping(mapping), span, part, image)
    }

    /// The image in a region that pages itself, and is as large.
    pub(crate) fn in_region(region: PagedRegion, image: &[u8]) -> Result<Self, Error> {
        let span = Span::new(region.as_ptr().expose_provenance() as u64, region.len() as u64)
            .map_err(|error| Error::Input(error.to_string()))?;
        Self::load(Owner::Region(region), span, usize::MAX, image)
    }

    fn load(owner: Owner, span: Span, part: usize, image: &[u8]) -> Result<Self, Error> {
        // Huge pages would be split by whoever moves them out first, and measured by nobody.
        // SAFETY: needed because advice can destroy memory; this one doesn't.
        unsafe { madvise(span, Advice::NoHugePage)? };
        let (sums, marks) =
            image.chunks_exact(page_size()).map(|page| marked_sum(&mut page.to_vec())).unzip();
        let arena = Self { owner, span, part, sums, marks, mark: 0 };
        for (at, page) in image.chunks_exact(page_size()).enumerate() {
            // SAFETY: needed because the memory is reached by its address. It is mapped, writable, a page long there, no reference
            // to it exists, and no other thread knows of it yet.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), arena.pointer(at), page.len()) };
        }
        Ok(arena)
    }

    /// Where it is.
    pub(crate) fn span(&self) -> Span {
        self.span
    }

    /// Where its parts are.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Span> {
        let page = page_size() as u64;
        (0..self.pages()).step_by(self.part).filter_map(move |first| {
            let start = self.span.start() + self.place(first) as u64 * page;
            Span::new(start, self.part.min(self.pages() - first) as u64 * page).ok()
        })
    }

    /// Where a page is, in pages from the first.
    fn place(&self, page: usize) -> usize {
        page + page / self.part
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.sums.len()
    }

    /// The region that it is, if it is one.
    pub(crate) fn region(&self) -> Option<&PagedRegion> {
        match &self.owner {
            Owner::Mapping(_) => None,
            Owner::Region(region) => Some(region),
        }
    }

    /// Has the kernel swap it out, as far as it will.
    pub(crate) fn page_out(&self) -> Result<(), Error> {
        // SAFETY: needed because advice can destroy memory; this one doesn't.
        unsafe { madvise(self.span, Advice::PageOut) }.map_err(Error::from)
    }

    /// From here on what is missing of it waits for an answer through `uffd`. Nothing is missing yet.
    pub(crate) fn give_to(&self, uffd: &Uffd) -> Result<(), Error> {
        // SAFETY: needed because from now on others fill what is missing here. What they fill in is compared with the image after every pass, no
        // reference to the memory exists, and a thread that is never answered is what the benchmark waits for no longer than it says.
        unsafe { uffd.register(self.span, RegisterMode::MISSING) }?;
        Ok(())
    }

    /// Gives the memory back; its bytes are elsewhere by now.
    pub(crate) fn discard(&self) -> Result<(), Error> {
        // SAFETY: needed because this destroys the contents. No reference to them exists; who reads them again is answered by
        // the handler that the arena was given to, or finds zeros and says so.
        unsafe { madvise(self.span, Advice::DontNeed) }.map_err(Error::from)
    }

    /// How many of its pages are in memory.
    pub(crate) fn present(&self, pagemap: &Pagemap) -> Result<usize, Error> {
        let mut entries = Vec::new();
        pagemap.entries(self.span, &mut entries)?;
        Ok(entries.iter().filter(|entry| entry.present()).count())
    }

    /// Reads every page; how many differ from the image, or from what passes wrote.
    pub(crate) fn wrong_pages(&self) -> usize {
        let mut page = vec![0u8; page_size()];
        (0..self.pages())
            .filter(|&at| {
                self.read(at, &mut page);
                marked_sum(&mut page) != (self.sums[at], self.marks[at])
            })
            .count()
    }

    /// Reads a page, or the beginning of it if `bytes` is shorter.
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) {
        let len = bytes.len().min(page_size());
        // SAFETY: needed because pages come and go behind the address. A page of the mapping, which lives as long as
        // `self`; passes, which write to it, need it for themselves.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(at), bytes.as_mut_ptr(), len) };
    }

    /// Reads one byte of a page.
    fn touch(&self, page: usize) {
        // SAFETY: needed because this very load is what is measured. `pointer` stays within the mapping; threads of a pass may write the byte meanwhile,
        // and nobody has a reference: so the load is an atomic one. It happens, for what is there is used.
        std::hint::black_box(unsafe { AtomicU8::from_ptr(self.pointer(page)) }.load(Ordering::Relaxed));
    }

    fn pointer(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages(), "a page beyond the arena");
        let base = match &self.owner {
            Owner::Mapping(mapping) => mapping.as_ptr().as_ptr(),
            Owner::Region(region) => region.as_ptr(),
        };
        // SAFETY: needed to get from the first page to another; in bounds as just checked, there being a sum for each page mapped, and room for
        // what lies between parts.
        unsafe { base.add(self.place(page) * page_size()) }
    }

    /// Writes a page's first byte.
    fn write(&self, page: usize, mark: u8) {
        // SAFETY: needed because this very store is what is measured. `pointer` stays within the mapping; threads of a pass write
        // the same bytes meanwhile, or read them, and nobody has a reference: so the store is an atomic one.
        unsafe { AtomicU8::from_ptr(self.pointer(page)) }.store(mark, Ordering::Relaxed);
    }

    /// Touches pages, a thread an order, all at once.
    pub(crate) fn pass(&mut self, orders: &[Vec<u32>], manner: Manner) -> Result<Pass, Error> {
        // Another than the last pass wrote, so that a write that gets lost is seen.
        self.mark = self.mark.wrapping_add(1);
        let pass = self.touch_orders(orders, manner);
        for order in orders {
            for (_, &page) in order.iter().enumerate().filter(|(touch, _)| manner.is_write(*touch)) {
                self.marks[page as usize] = self.mark;
            }
        }
        pass
    }

    fn touch_orders(&self, orders: &[Vec<u32>], manner: Manner) -> Result<Pass, Error> {
        let cpus = cpu::allowed(None)?;
        let start = Barrier::new(orders.len());
        let before = self.served_by_itself();
        let threads: Vec<Result<Timed, Error>> = std::thread::scope(|scope| {
            let running: Vec<_> = orders
                .iter()
                .enumerate()
                .map(|(number, order)| {
                    let (start, on) = (&start, manner.pin.then(|| cpus[number % cpus.len()]));
                    scope.spawn(move || self.touch_all(order, start, on, manner))
                })
                .collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let threads = threads.into_iter().collect::<Result<Vec<_>, _>>()?;
        let first = threads.iter().map(|timed| timed.began).min();
        let last = threads.iter().map(|timed| timed.ended).max();
        let wall = first.zip(last).map_or(0.0, |(first, last)| (last - first).as_secs_f64() * 1e9);
        // The kernel doesn't count a fault that ends with a signal.
        let served = self.served_by_itself().zip(before).map(|(after, before)| after.saturating_sub(before));
        let counted = threads.iter().map(|timed| timed.faults).sum();
        let faults = served.and_then(|served| usize::try_from(served).ok()).unwrap_or(counted);
        let touches: Vec<_> = threads.into_iter().map(|timed| timed.touches).collect();
        Ok(Pass::new(&touches, faults, wall))
    }

    /// Faults that an inline region has served, if this is one.
    fn served_by_itself(&self) -> Option<u64> {
        let region = self.region().filter(|region| region.is_inline())?;
        let counted = [Transition::Fetch, Transition::Recall, Transition::FirstTouch];
        Some(counted.into_iter().map(|transition| region.counts().get(transition)).sum())
    }

    fn touch_all(
        &self,
        order: &[u32],
        start: &Barrier,
        on: Option<usize>,
        manner: Manner,
    ) -> Result<Timed, Error> {
        let pinned = on.map_or(Ok(()), |cpu| cpu::pin(None, &[cpu]));
        // Written to now, so that its own first touches aren't measured.
        let mut touches = vec![u32::MAX; order.len()];
        let clock = clock_cost();
        let before = faults_so_far();
        // Waited for also by a thread that has failed, or the others would wait for ever.
        start.wait();
        pinned?;
        let before = before?;
        let began = Instant::now();
        for (number, (touch, &page)) in touches.iter_mut().zip(order).enumerate() {
            let is_write = manner.is_write(number);
            let from = Instant::now();
            if is_write {
                self.write(page as usize, self.mark);
            } else {
                self.touch(page as usize);
            }
            *touch = nanos(from).saturating_sub(clock);
        }
        let ended = Instant::now();
        let faults = usize::try_from(faults_so_far()?.saturating_sub(before)).unwrap_or(usize::MAX);
        Ok(Timed { touches, faults, began, ended })
    }
}

/// The checksum of a page whose first byte is taken out, and that byte.
fn marked_sum(page: &mut [u8]) -> (u64, u8) {
    let mark = page.first_mut().map_or(0, std::mem::take);
    (checksum(page), mark)
}

/// What one thread saw.
struct Timed {
    touches: Vec<u32>,
    faults: usize,
    began: Instant,
    ended: Instant,
}

/// What two looks at the clock cost with nothing between them, in nanoseconds; it is taken off every touch.
fn clock_cost() -> u32 {
    let mut costs = [0; 1001];
    for cost in &mut costs {
        *cost = nanos(Instant::now());
    }
    costs.sort_unstable();
    costs[costs.len() / 2]
}

fn nanos(from: Instant) -> u32 {
    u32::try_from(from.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// Page faults of this thread, minor and major ones.
fn faults_so_far() -> Result<u64, Error> {
    let stat =
        std::fs::read_to_string("/proc/thread-self/stat").map_err(Error::io("reading a thread's stat"))?;
    // The name, in parentheses, may hold anything: fields are counted from behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
    match (field(10), field(12)) {
        (Some(minor), Some(major)) => Ok(minor + major),
        _ => Err(Error::Input(format!("a thread's stat without faults: {stat}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pages: usize) -> Vec<u8> {
        (0u8..=252).flat_map(|byte| [byte; 3]).cycle().take(pages * page_size()).collect()
    }

    #[test]
    fn a_loaded_arena_holds_the_image() {
        let arena = Arena::in_mapping(&image(16)).unwrap();
        assert_eq!((arena.pages(), arena.wrong_pages()), (16, 0));
        assert_eq!(arena.present(&Pagemap::this().unwrap()).unwrap(), 16);
    }

    #[test]
    fn parts_have_a_page_between_them_and_every_page_once() {
        for (pages, parts, expected) in [(16, 4, 4), (17, 4, 4), (5, 100, 5), (7, 1, 1)] {
            let arena = Arena::in_parts(&image(pages), parts).unwrap();
            let spans: Vec<Span> = arena.parts().collect();
            assert_eq!(spans.len(), expected, "{pages} pages in {parts}");
            assert_eq!(spans.iter().map(|span| span.pages()).sum::<u64>(), pages as u64);
            assert!(spans.windows(2).all(|two| two[1].start() == two[0].end() + page_size() as u64));
            assert!(spans.iter().all(|span| span.end() <= arena.span.end()));
            assert_eq!(arena.wrong_pages(), 0);
        }
    }

    #[test]
    fn other_bytes_are_wrong_pages() {
        let mut arena = Arena::in_mapping(&image(4)).unwrap();
        arena.sums[2] ^= 1;
        assert_eq!(arena.wrong_pages(), 1);
    }

    #[test]
    fn a_share_of_the_touches_writes_and_what_they_write_is_looked_for() {
        for (writes, expected) in [(0, 0), (1, 1), (30, 30), (100, 100)] {
            let manner = Manner { pin: false, writes };
            assert_eq!((100..200).filter(|touch| manner.is_write(*touch)).count(), expected);
        }
        let mut arena = Arena::in_mapping(&image(200)).unwrap();
        let everything = Manner { pin: false, writes: 100 };
        arena.pass(&[(0..200).collect()], everything).unwrap();
        assert_eq!((arena.wrong_pages(), arena.marks.iter().filter(|mark| **mark == 1).count()), (0, 200));
        let orders = vec![(0..100).collect::<Vec<u32>>(), (50..200).collect()];
        for _ in 0..2 {
            arena.pass(&orders, Manner { pin: false, writes: 30 }).unwrap();
            assert_eq!(arena.wrong_pages(), 0);
        }
        let written = (0..200).filter(|page| arena.marks[*page] == 3).count();
        assert!((45..80).contains(&written), "{written} pages of 100 and 150 touches");
        // As if the last pass's write had got lost.
        let page = arena.marks.iter().position(|mark| *mark == 3).unwrap();
        arena.write(page, 1);
        assert_eq!(arena.wrong_pages(), 1);
    }

    #[test]
    fn faults_are_told_from_hits() {
        let mut arena = Arena::in_mapping(&image(256)).unwrap();
        let orders = vec![(0..128).collect::<Vec<u32>>(), (128..256).collect()];
        let present = arena.pass(&orders, Manner::default()).unwrap();
        assert_eq!(present.touches, 256);
        assert!(present.faults < 32, "{} faults on pages that are there", present.faults);
        // SAFETY: nobody relies on what is there any more.
        unsafe { madvise(arena.span, Advice::DontNeed).unwrap() };
        let gone = arena.pass(&orders, Manner { pin: true, writes: 0 }).unwrap();
        assert!(gone.faults >= 256, "{} faults on pages that aren't", gone.faults);
    }
}
