//! The measured memory, and threads that touch it. The one module with unsafe code here: what is measured is what
//! happens when a pointer is followed.
#![allow(unsafe_code)]

use crate::error::Error;
use crate::image::checksum;
use crate::stats::Pass;
use std::sync::Barrier;
use std::time::Instant;
use userswap_engine::PagedRegion;
use userswap_engine::core::Transition;
use userswap_uffd::own::madvise;
use userswap_uffd::pagemap::Pagemap;
use userswap_uffd::{Advice, Mapping, Protection, RegisterMode, Span, Uffd, cpu, page_size};

/// Memory that holds an image. Nobody writes to it once it is loaded.
pub(crate) struct Arena {
    owner: Owner,
    span: Span,
    sums: Vec<u64>,
}

enum Owner {
    Mapping(Mapping),
    Region(PagedRegion),
}

impl Arena {
    /// The image in an ordinary mapping.
    pub(crate) fn in_mapping(image: &[u8]) -> Result<Self, Error> {
        let mapping = Mapping::new(image.len() as u64, Protection::READ_WRITE)?;
        let span = mapping.span();
        Self::load(Owner::Mapping(mapping), span, image)
    }

    /// The image in a region that pages itself, and is as large.
    pub(crate) fn in_region(region: PagedRegion, image: &[u8]) -> Result<Self, Error> {
        let span = Span::new(region.as_ptr().expose_provenance() as u64, region.len() as u64)
            .map_err(|error| Error::Input(error.to_string()))?;
        Self::load(Owner::Region(region), span, image)
    }

    fn load(owner: Owner, span: Span, image: &[u8]) -> Result<Self, Error> {
        // Huge pages would be split by whoever moves them out first, and measured by nobody.
        // SAFETY: needed because advice can destroy memory; this one doesn't.
        unsafe { madvise(span, Advice::NoHugePage)? };
        let sums = image.chunks_exact(page_size()).map(checksum).collect();
        let arena = Self { owner, span, sums };
        let bytes = image.len().min(span.bytes());
        // SAFETY: needed because the memory is reached by its address. It is mapped, writable, `span.bytes()` long, no reference
        // to it exists, and no other thread knows of it yet.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), arena.pointer(0), bytes) };
        Ok(arena)
    }

    /// Where it is.
    pub(crate) fn span(&self) -> Span {
        self.span
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

    /// Reads every page; how many differ from the image.
    pub(crate) fn wrong_pages(&self) -> usize {
        let mut page = vec![0u8; page_size()];
        (0..self.pages())
            .filter(|&at| {
                self.read(at, &mut page);
                checksum(&page) != self.sums[at]
            })
            .count()
    }

    /// Reads a page, or the beginning of it if `bytes` is shorter.
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) {
        let len = bytes.len().min(page_size());
        // SAFETY: needed because pages come and go behind the address. A page of the mapping, which lives as long as
        // `self`; nobody writes to it.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(at), bytes.as_mut_ptr(), len) };
    }

    /// Reads one byte of a page.
    fn touch(&self, page: usize) {
        // SAFETY: needed because this very load is what is measured; volatile, so that it happens between the two looks at the
        // clock. `pointer` stays within the mapping.
        unsafe { self.pointer(page).read_volatile() };
    }

    fn pointer(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages(), "a page beyond the arena");
        let base = match &self.owner {
            Owner::Mapping(mapping) => mapping.as_ptr().as_ptr(),
            Owner::Region(region) => region.as_ptr(),
        };
        // SAFETY: needed to get from the first page to another; in bounds as just checked, there being a sum for each page mapped.
        unsafe { base.add(page * page_size()) }
    }

    /// Touches pages, a thread an order, all at once. With `pin` each thread stays on a CPU of its own, as far as there are
    /// enough.
    pub(crate) fn pass(&self, orders: &[Vec<u32>], pin: bool) -> Result<Pass, Error> {
        let cpus = cpu::allowed(None)?;
        let start = Barrier::new(orders.len());
        let before = self.served_by_itself();
        let threads: Vec<Result<Timed, Error>> = std::thread::scope(|scope| {
            let running: Vec<_> = orders
                .iter()
                .enumerate()
                .map(|(number, order)| {
                    let (start, on) = (&start, pin.then(|| cpus[number % cpus.len()]));
                    scope.spawn(move || self.touch_all(order, start, on))
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

    fn touch_all(&self, order: &[u32], start: &Barrier, on: Option<usize>) -> Result<Timed, Error> {
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
        for (touch, &page) in touches.iter_mut().zip(order) {
            let from = Instant::now();
            self.touch(page as usize);
            *touch = nanos(from).saturating_sub(clock);
        }
        let ended = Instant::now();
        let faults = usize::try_from(faults_so_far()?.saturating_sub(before)).unwrap_or(usize::MAX);
        Ok(Timed { touches, faults, began, ended })
    }
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
    fn other_bytes_are_wrong_pages() {
        let mut arena = Arena::in_mapping(&image(4)).unwrap();
        arena.sums[2] ^= 1;
        assert_eq!(arena.wrong_pages(), 1);
    }

    #[test]
    fn faults_are_told_from_hits() {
        let arena = Arena::in_mapping(&image(256)).unwrap();
        let orders = vec![(0..128).collect::<Vec<u32>>(), (128..256).collect()];
        let present = arena.pass(&orders, false).unwrap();
        assert_eq!(present.touches, 256);
        assert!(present.faults < 32, "{} faults on pages that are there", present.faults);
        // SAFETY: nobody relies on what is there any more.
        unsafe { madvise(arena.span, Advice::DontNeed).unwrap() };
        let gone = arena.pass(&orders, true).unwrap();
        assert!(gone.faults >= 256, "{} faults on pages that aren't", gone.faults);
    }
}
