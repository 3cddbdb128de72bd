//! UFFDIO_MOVE: pages change place without being copied.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use userswap_uffd::{
    Advice, CopyMode, Features, Mapping, MoveMode, Outcome, Pagemap, Protection, Span, Stop, own, page_bytes,
};

use crate::support::{Rig, assert_quiet, next_fault, peek, poke, reader};

const PLAIN: MoveMode = MoveMode { dont_wake: false, allow_src_holes: false };

fn staging(pages: u64) -> Mapping {
    Mapping::new(pages * page_bytes(), Protection::READ_WRITE).unwrap()
}

/// Out to a staging area the destination of which is registered, and back on a fault.
#[test]
fn out_and_back() {
    let Some(rig) = Rig::new("out_and_back", Features::MOVE, 8) else { return };
    let staged = staging(8);
    let away = staged.span().start();
    for page in 0..8u8 {
        poke(rig.addr(page.into()), page + 1);
    }
    // The staging area must be the registered side on the way out, the memory itself on the way back.
    rig.register(staged.span());
    rig.register(rig.span());
    // SAFETY: the pages are this test's, which finds them in the staging area.
    let out = unsafe { rig.uffd.move_pages(away, rig.addr(0), rig.span().len(), PLAIN) };
    assert_eq!(out, Outcome { done: rig.span().len(), stop: None });
    rig.uffd.unregister(staged.span()).unwrap();
    assert_eq!(peek(away + 7 * page_bytes()), 8);
    let thread = reader(rig.addr(5));
    assert_eq!(next_fault(&rig.uffd).addr, rig.addr(5));
    // SAFETY: as above, back.
    let back = unsafe { rig.uffd.move_pages(rig.addr(5), away + 5 * page_bytes(), page_bytes(), PLAIN) };
    assert!(back.is_complete());
    assert_eq!(thread.join().unwrap(), 6);
    assert_eq!(peek(away + 5 * page_bytes()), 0, "the staging page is a hole");
    assert_quiet(&rig.uffd);
}

/// A move that doesn't wake leaves its waiter asleep.
#[test]
fn move_without_wake() {
    let Some(rig) = Rig::new("move_without_wake", Features::MOVE, 1) else { return };
    let staged = staging(1);
    poke(staged.span().start(), 3);
    rig.register(rig.span());
    let thread = reader(rig.addr(0));
    next_fault(&rig.uffd);
    let mode = MoveMode { dont_wake: true, ..PLAIN };
    // SAFETY: the staging page is this test's.
    let moved = unsafe { rig.uffd.move_pages(rig.addr(0), staged.span().start(), page_bytes(), mode) };
    assert!(moved.is_complete());
    assert_eq!(crate::support::waiting(&rig.uffd), (0, 1));
    rig.uffd.wake(rig.span()).unwrap();
    assert_eq!(thread.join().unwrap(), 3);
}

/// A hole at the source ends a move, or is skipped and counted where allowed; a page at the destination ends it always.
#[test]
fn holes_and_pages_in_the_way() {
    let Some(rig) = Rig::new("holes_and_pages_in_the_way", Features::MOVE, 8) else { return };
    let staged = staging(8);
    let from = staged.span().start();
    rig.register(rig.span());
    for page in [0, 2, 3] {
        poke(from + page * page_bytes(), 7);
    }
    let moving = |page: u64, count: u64, allow_src_holes| {
        let mode = MoveMode { allow_src_holes, ..PLAIN };
        let (to, from) = (rig.addr(page), from + page * page_bytes());
        // SAFETY: the staging pages are this test's.
        unsafe { rig.uffd.move_pages(to, from, count * page_bytes(), mode) }
    };
    assert_eq!(moving(1, 1, false), Outcome { done: 0, stop: Some(Stop::Hole) });
    assert_eq!(moving(0, 4, false), Outcome { done: page_bytes(), stop: Some(Stop::Busy) });
    assert_eq!(moving(1, 2, true), Outcome { done: 2 * page_bytes(), stop: None });
    assert!(moving(3, 1, false).is_complete());
    assert_eq!([0, 2, 3].map(|page| peek(rig.addr(page))), [7, 7, 7]);
    poke(from, 8);
    assert_eq!(moving(0, 1, false), Outcome { done: 0, stop: Some(Stop::Present) });
    assert_eq!(peek(from), 8, "a refused page stays where it was");
}

/// The destination must be registered, both sides writable, and both whole pages.
#[test]
fn moves_that_make_no_sense() {
    let Some(rig) = Rig::new("moves_that_make_no_sense", Features::MOVE, 2) else { return };
    let staged = staging(1);
    let from = staged.span().start();
    poke(from, 1);
    // SAFETY: refused, so nothing moves.
    let moving = |dst: u64, src: u64, len: u64| unsafe { rig.uffd.move_pages(dst, src, len, PLAIN) }.stop;
    assert_eq!(moving(rig.addr(0), from, page_bytes()), Some(Stop::Invalid));
    rig.register(rig.span());
    assert_eq!(moving(rig.addr(0), 0x10_0000, page_bytes()), Some(Stop::Hole), "nothing mapped there");
    assert_eq!(moving(0x10_0000, from, page_bytes()), Some(Stop::Hole), "on the other side neither");
    assert_eq!(moving(rig.addr(0) + 1, from, page_bytes()), Some(Stop::Invalid));
    assert_eq!(moving(rig.addr(0), from, 0), Some(Stop::Invalid));
    // SAFETY: nobody writes to the page meanwhile.
    unsafe { own::protect(staged.span(), Protection::READ) }.unwrap();
    assert_eq!(moving(rig.addr(0), from, page_bytes()), Some(Stop::Invalid));
    assert_eq!(peek(from), 1);
}

/// A page that I/O is under way to: MOVE refuses. mremap and MADV_DONTNEED don't, and what the I/O brings is lost to the program.
#[test]
fn pinned_pages_are_refused_by_move_alone() {
    let Some(rig) = Rig::new("pinned_pages_are_refused_by_move_alone", Features::MOVE, 3) else { return };
    let staged = staging(3);
    for page in 0..3 {
        poke(rig.addr(page), 5);
    }
    let Some(_ring) = pin(rig.span()) else {
        println!("SKIPPED pinned_pages_are_refused_by_move_alone: no io_uring to pin pages with");
        return;
    };
    rig.register(staged.span());
    let away = staged.span().start();
    // SAFETY: refused, so nothing moves.
    let answer = unsafe { rig.uffd.move_pages(away, rig.addr(0), page_bytes(), PLAIN) };
    assert_eq!(answer, Outcome { done: 0, stop: Some(Stop::Pinned) });
    // SAFETY: the page is this test's.
    unsafe { own::madvise(rig.pages(1, 1), Advice::DontNeed) }.unwrap();
    assert_eq!(peek(rig.addr(1)), 0);
    let area = Mapping::new(page_bytes(), Protection::NONE).unwrap();
    // SAFETY: the page is this test's.
    unsafe { own::mremap_dontunmap(rig.pages(2, 1), area.span().start()) }.unwrap();
    assert_eq!((peek(rig.addr(2)), peek(area.span().start())), (0, 5));
}

/// A huge page moves whole, in one go.
#[test]
fn a_huge_page_moves_whole() {
    const HUGE: u64 = 2 << 20;
    let name = "a_huge_page_moves_whole";
    let Some(rig) = Rig::new(name, Features::MOVE, 2 * HUGE / page_bytes()) else { return };
    let staged = staging(2 * HUGE / page_bytes());
    let aligned = |span: Span| Span::new(span.start().next_multiple_of(HUGE), HUGE).unwrap();
    let (source, target) = (aligned(rig.span()), aligned(staged.span()));
    // SAFETY: changes no contents.
    if unsafe { own::madvise(source, Advice::HugePage) }.is_err() {
        println!("SKIPPED {name}: no transparent huge pages");
        return;
    }
    poke(source.start(), 1);
    poke(source.end() - 1, 2);
    // SAFETY: changes no contents.
    let collapsed = unsafe { own::madvise(source, Advice::Collapse) };
    if let Err(e) = collapsed {
        println!("SKIPPED {name}: no huge page to be had: {e}");
        return;
    }
    rig.register(target);
    // SAFETY: the pages are this test's.
    let answer = unsafe { rig.uffd.move_pages(target.start(), source.start(), HUGE, PLAIN) };
    assert_eq!(answer, Outcome { done: HUGE, stop: None });
    let mut entries = Vec::new();
    Pagemap::this().unwrap().entries(target, &mut entries).unwrap();
    assert!(entries.iter().all(|entry| entry.present()));
    assert_eq!((peek(target.start()), peek(target.end() - 1)), (1, 2));
}

/// Pins the pages of `span` as an io_uring's fixed buffer, for as long as the ring lives.
fn pin(span: Span) -> Option<OwnedFd> {
    // struct io_uring_params is 120 bytes, all of which may be zero.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel fills the structure, which is ours and large enough.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let number = i32::try_from(ring).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a descriptor the kernel has just made for us.
    let ring = unsafe { OwnedFd::from_raw_fd(number) };
    let start = std::ptr::with_exposed_provenance_mut(usize::try_from(span.start()).unwrap());
    let buffer = libc::iovec { iov_base: start, iov_len: span.bytes() };
    // SAFETY: IORING_REGISTER_BUFFERS (0) reads one iovec; no I/O is ever submitted to the buffer.
    let answer =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), 0, &raw const buffer, 1) };
    (answer == 0).then_some(ring)
}

/// Pages become dirty while they move: a thread writes to them, and MADV_FREE makes them clean before each move. Linux 6.18 moves pages then that
/// it doesn't count, and says that they are in the way; a program whose pages they were read zeros. How often that happens is chance.
#[test]
fn pages_that_become_dirty_while_they_move_all_arrive() {
    const PAGES: u64 = 64;
    const ROUNDS: u32 = 300;
    let name = "pages_that_become_dirty_while_they_move_all_arrive";
    let Some(rig) = Rig::new(name, Features::MOVE, PAGES) else { return };
    let staged = staging(PAGES);
    let (here, there) = (rig.addr(0), staged.span().start());
    rig.register(rig.span());
    rig.register(staged.span());
    (0..PAGES).for_each(|page| {
        assert!(rig.uffd.copy(rig.addr(page), &[7; 4096], CopyMode::default()).is_complete())
    });
    let (over, passes) = (AtomicBool::new(false), AtomicU32::new(0));
    let whole = Outcome { done: rig.span().len(), stop: None };
    let mut wrong = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (0..PAGES).for_each(|page| poke(rig.addr(page), 7));
                passes.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..ROUNDS {
            let before = passes.load(Ordering::Relaxed);
            while passes.load(Ordering::Relaxed) == before {
                std::hint::spin_loop();
            }
            // SAFETY: what the pages hold is written to them again and again.
            unsafe { own::madvise(rig.span(), Advice::Free) }.unwrap();
            // SAFETY: who writes to the pages waits for them to be back.
            let away = unsafe { rig.uffd.move_to_empty(there, here, rig.span().len(), PLAIN) };
            // SAFETY: the staging pages are this test's.
            let back = unsafe { rig.uffd.move_to_empty(here, there, rig.span().len(), PLAIN) };
            if (away, back) != (whole, whole) {
                wrong = Some((away, back));
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        // Whoever waits still finds zeros.
        rig.uffd.unregister(rig.span()).unwrap();
    });
    assert_eq!(wrong, None);
}
