//! What it costs to know of writes: asking which pages of a region were written (`PAGEMAP_SCAN`), protecting them again in the same step, and the first write to a page after that, which the kernel sees
//! to by itself (asynchronous write protection). Nanoseconds a page, medians of rounds, beside a write to a page that isn't protected.
//!
//! `written [PAGES] [ROUNDS]`

use std::time::Instant;
use userswap_uffd::{
    Categories, Features, Mapping, OpenMode, Pagemap, Protection, RegisterMode, ScanRequest, Uffd, page_size,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let pages: usize = words.next().map_or(Ok(16_384), |word| word.parse())?;
    let rounds: usize = words.next().map_or(Ok(21), |word| word.parse())?;
    let uffd = Uffd::open(Features::WP_ASYNC | Features::PAGEFAULT_FLAG_WP, OpenMode::UserModeOnly)?;
    let memory = Mapping::new((pages * page_size()) as u64, Protection::READ_WRITE)?;
    let (span, start) = (memory.span(), memory.as_ptr().as_ptr() as usize);
    let write = |value: u8| {
        for page in 0..pages {
            let byte = std::ptr::with_exposed_provenance_mut::<u8>(start + page * page_size());
            // SAFETY: within the mapping, which is this thread's alone.
            unsafe { byte.write_volatile(value) };
        }
    };
    write(1);
    // SAFETY: nothing is missing, and writes to what is protected wait for nobody.
    unsafe { uffd.register(span, RegisterMode::WP) }?;
    let pagemap = Pagemap::this()?;
    let scan = |write_protect| -> Result<usize, userswap_uffd::Error> {
        let all_of = Categories::WRITTEN | Categories::PRESENT;
        let request =
            ScanRequest { all_of, report: Categories::WRITTEN, write_protect, ..ScanRequest::default() };
        let mut found = Vec::new();
        pagemap.scan(span, &request, &mut found)?;
        Ok(found.iter().map(|range| usize::try_from(range.span.pages()).unwrap_or(0)).sum())
    };
    let mut times = [const { Vec::new() }; 4];
    for round in 0..rounds {
        let value = u8::try_from(round % 250)?;
        let mut took = |at: usize, begun: Instant| times[at].push(begun.elapsed().as_nanos() / pages as u128);
        let begun = Instant::now();
        let protected = scan(true)?;
        took(0, begun);
        assert_eq!(protected, pages);
        let begun = Instant::now();
        assert_eq!(scan(false)?, 0);
        took(1, begun);
        let begun = Instant::now();
        write(value);
        took(2, begun);
        let begun = Instant::now();
        write(value + 1);
        took(3, begun);
    }
    for (name, mut times) in
        ["asking and protecting", "asking", "a write, protected", "a write, not protected"]
            .into_iter()
            .zip(times)
    {
        times.sort_unstable();
        println!(
            "{name:24} {:6} ns a page ({}-{})",
            times[times.len() / 2],
            times[0],
            times[times.len() - 1]
        );
    }
    Ok(())
}
