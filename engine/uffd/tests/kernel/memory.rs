//! This process's own memory: mappings, the pagemap, and what may be moved by the kernel's own account.

use userswap_uffd::maps::{self, Vma};
use userswap_uffd::{
    Advice, Categories, Error, Mapping, Movable, MoveLimits, Pagemap, Protection, ScanRequest, Span, own,
    page_bytes,
};

use crate::support::{Turn, peek, poke};

fn mapping(pages: u64) -> Mapping {
    Mapping::new(pages * page_bytes(), Protection::READ_WRITE).unwrap()
}

/// A swap area: inaccessible, at a random page above 4 GiB; "taken" is tried again with other bits, anything else isn't.
#[test]
fn a_swap_area_retries_only_what_is_taken() {
    let taken = mapping(16);
    let taken_bits = (taken.span().start() - (1 << 32)) >> userswap_uffd::page_shift();
    let mut calls = 0u64;
    let mut random = || {
        calls += 1;
        if calls < 4 { taken_bits } else { 0x1234_5678 + calls * 0x1_0000 }
    };
    let area = Mapping::at_random_noreplace(16 * page_bytes(), Protection::NONE, &mut random).unwrap();
    assert_eq!(calls, 4);
    assert!(
        area.span().start() >= 1 << 32 && area.span().end() < 1 << 47 && !area.span().overlaps(&taken.span())
    );
    let mut always = || taken_bits;
    let error = Mapping::at_random_noreplace(16 * page_bytes(), Protection::NONE, &mut always).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EEXIST));
    let mut none = || unreachable!("a bad length needs no address");
    assert!(matches!(Mapping::at_random_noreplace(3, Protection::NONE, &mut none), Err(Error::Span(_))));
    poke(taken.span().start(), 1);
}

#[test]
fn mincore_tells_touched_pages() {
    let memory = mapping(5);
    poke(memory.span().page_addr(1).unwrap(), 1);
    poke(memory.span().page_addr(4).unwrap(), 1);
    let mut resident = vec![true; 9];
    own::mincore(memory.span(), &mut resident).unwrap();
    assert_eq!(resident, [false, true, false, false, true]);
    let hole = Span::from_pages(0x10_0000, 1).unwrap();
    assert_eq!(own::mincore(hole, &mut resident).unwrap_err().errno(), Some(libc::ENOMEM));
}

#[test]
fn pagemap_tells_present_pages_from_the_middle_of_a_range() {
    let memory = mapping(8);
    let pagemap = Pagemap::this().unwrap();
    for page in [2, 3, 6] {
        poke(memory.span().page_addr(page).unwrap(), 1);
    }
    let mut entries = Vec::new();
    let mut present = |first: u64, count: u64| -> Vec<bool> {
        let span = Span::from_pages(memory.span().page_addr(first).unwrap(), count).unwrap();
        pagemap.entries(span, &mut entries).unwrap();
        entries.iter().map(|e| e.present() && !e.swapped() && !e.file_or_shared()).collect()
    };
    assert_eq!(present(0, 8), [false, false, true, true, false, false, true, false]);
    assert_eq!(present(3, 4), [true, false, false, true]);
    assert_eq!(present(7, 1), [false]);
    pagemap.entries(memory.span(), &mut entries).unwrap();
    assert!(entries[2].exclusive());
}

/// A scan gives ranges and not pages, stops where told, and resumes.
#[test]
fn scan_gives_ranges() {
    let memory = mapping(400);
    let page = |index: u64| memory.span().page_addr(index).unwrap();
    let pagemap = Pagemap::this().unwrap();
    // More ranges than one call has room for.
    for index in (0..400).step_by(2) {
        poke(page(index), 1);
    }
    let request =
        ScanRequest { all_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanRequest::default() };
    let mut found = Vec::new();
    match pagemap.scan(memory.span(), &request, &mut found) {
        Ok(end) => assert_eq!(end, memory.span().end()),
        Err(e) => {
            println!("SKIPPED scan_gives_ranges: {e}: {:?}", e.errno());
            return;
        }
    }
    assert_eq!(found.len(), 200);
    assert!(found.iter().all(|range| range.span.pages() == 1 && range.categories == Categories::PRESENT));
    for index in (1..400).step_by(2) {
        poke(page(index), 1);
    }
    found.clear();
    let limited = ScanRequest { max_pages: 150, ..request };
    let end = pagemap.scan(memory.span(), &limited, &mut found).unwrap();
    assert_eq!((end, found.len(), found[0].span.pages()), (page(150), 1, 150));
    let absent = ScanRequest { inverted: Categories::PRESENT, ..request };
    found.clear();
    pagemap.scan(memory.span(), &absent, &mut found).unwrap();
    assert!(found.is_empty());
}

/// MADV_POPULATE_WRITE and DONTNEED do what their names say, and a nonsensical range is an error.
#[test]
fn advice_populates_and_drops() {
    let memory = mapping(3);
    let mut resident = Vec::new();
    // SAFETY: the memory is this test's.
    unsafe { own::madvise(memory.span(), Advice::PopulateWrite) }.unwrap();
    own::mincore(memory.span(), &mut resident).unwrap();
    assert_eq!(resident, [true; 3]);
    poke(memory.span().start(), 1);
    // SAFETY: as above.
    unsafe { own::madvise(memory.span(), Advice::DontNeed) }.unwrap();
    own::mincore(memory.span(), &mut resident).unwrap();
    assert_eq!((resident, peek(memory.span().start())), (vec![false; 3], 0));
    let hole = Span::from_pages(0x10_0000, 1).unwrap();
    // SAFETY: nothing is there.
    assert_eq!(unsafe { own::madvise(hole, Advice::DontNeed) }.unwrap_err().errno(), Some(libc::ENOMEM));
}

/// What the kernel's own account of real mappings makes of each case.
#[test]
fn eligibility_of_real_mappings() {
    let _turn = Turn::shared();
    // A page apart on both sides, or the kernel makes one mapping of neighbours alike.
    let vma = |change: &dyn Fn(Span)| -> Vma {
        let room = Mapping::new(18 * page_bytes(), Protection::NONE).unwrap();
        let span = Span::from_pages(room.span().page_addr(1).unwrap(), 16).unwrap();
        // SAFETY: the room is this test's and empty.
        unsafe { own::map_anonymous_over(span) }.unwrap();
        change(span);
        let vmas = maps::read_smaps(std::process::id()).unwrap();
        vmas.into_iter().find(|vma| vma.span == span).unwrap()
    };
    let advised = |advice| {
        // SAFETY: the memory is this test's and empty.
        vma(&|span| unsafe { own::madvise(span, advice) }.unwrap()).movable(&MoveLimits::default())
    };
    let protected = |protection| {
        // SAFETY: nobody touches the memory.
        vma(&|span| unsafe { own::protect(span, protection) }.unwrap()).movable(&MoveLimits::default())
    };
    assert_eq!(vma(&|_| ()).movable(&MoveLimits::default()), Movable::Yes);
    assert_eq!(advised(Advice::DontFork), Movable::DontFork);
    assert_eq!(advised(Advice::WipeOnFork), Movable::WipeOnFork);
    assert_eq!(advised(Advice::DontDump), Movable::DontDump);
    assert_eq!(protected(Protection::READ), Movable::ReadOnly);
    assert_eq!(protected(Protection::READ_WRITE | Protection::EXEC), Movable::Executable);
    assert_eq!(protected(Protection::WRITE), Movable::WriteOnly);
    let locked = vma(&|span| {
        let at = std::ptr::with_exposed_provenance(usize::try_from(span.start()).unwrap());
        // SAFETY: locks memory of this test's; unmapping unlocks it.
        assert_eq!(unsafe { libc::mlock(at, span.bytes()) }, 0);
    });
    assert_eq!(locked.movable(&MoveLimits::default()), Movable::Locked);
    let here = &raw const locked as usize as u64;
    let vmas = maps::read_smaps(std::process::id()).unwrap();
    let answer_at = |addr: u64, limits: &MoveLimits<'_>| {
        vmas.iter().find(|vma| vma.span.contains(addr)).unwrap().movable(limits)
    };
    let threads = [here];
    let limits = MoveLimits { thread_addresses: &threads, ..MoveLimits::default() };
    assert_eq!(answer_at(here, &limits), Movable::ThreadOwned);
    let code = eligibility_of_real_mappings as *const () as usize as u64;
    assert_eq!(answer_at(code, &MoveLimits::default()), Movable::FileBacked);
    for (name, why) in [("[stack]", Movable::Stack), ("[vdso]", Movable::Special)] {
        if let Some(vma) = vmas.iter().find(|vma| vma.name.as_deref() == Some(name)) {
            assert_eq!(vma.movable(&MoveLimits::default()), why, "{vma}");
        }
    }
}

/// Both files tell the same mappings, but only smaps the flags.
#[test]
fn maps_and_smaps_agree() {
    let memory = mapping(3);
    let find = |vmas: Vec<Vma>| vmas.into_iter().find(|vma| vma.span.contains_span(&memory.span())).unwrap();
    let short = find(maps::read_maps(std::process::id()).unwrap());
    let long = find(maps::read_smaps(std::process::id()).unwrap());
    assert_eq!(short.permissions, long.permissions);
    assert!(short.flags.is_none() && long.flags.is_some());
    assert!(matches!(maps::read_maps(u32::MAX - 1), Err(Error::Gone { .. })));
}
