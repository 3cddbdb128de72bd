//! A program with a region whose faults its threads serve themselves.

use crate::sys::{fork, reap};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use userswap_engine::PagedRegion;
use userswap_store::{PageKey, Store, StoreError};
use userswap_tests::pages::Pages;
use userswap_tests::pages::system_call_on;
use userswap_tests::plain::PlainStore;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_uffd::Span;

const PAGES: u64 = 256;
const LOST: u64 = 37;

pub(crate) fn run(scenario: &str) {
    match scenario {
        "signals" => signals(),
        "fork" => forks(),
        "others" => others(),
        "lost" => lost(),
        "path" => path(),
        other => panic!("no such scenario: {other}"),
    }
}

fn build(store: Arc<dyn Store>, around: u32) -> Option<(PagedRegion, Pages)> {
    let region = match PagedRegion::builder(PAGES * 4096, store).inline().around(around).build() {
        Ok(region) => region,
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    let span = Span::new(region.as_ptr().expose_provenance() as u64, region.len() as u64).unwrap();
    // SAFETY: read-write memory that lives as long as the region, of which nobody makes a slice.
    Some((region, unsafe { Pages::new(span) }))
}

/// Where the handler finds the pages, how often it looked at one, and whether one was wrong.
static SPAN: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static LOOKS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicBool = AtomicBool::new(false);

extern "C" fn look(_: libc::c_int) {
    let span = Span::new(SPAN[0].load(Ordering::Relaxed), SPAN[1].load(Ordering::Relaxed)).unwrap();
    // SAFETY: the region lives as long as the signal comes.
    let pages = unsafe { Pages::new(span) };
    let looks = LOOKS.fetch_add(1, Ordering::Relaxed);
    for n in 0..4 {
        let page = (looks * 4 + n) * 89 % PAGES;
        if pages.peek(page) != page + 1 {
            WRONG.store(true, Ordering::Relaxed);
        }
    }
}

fn signals() {
    let store = userswap_stores::open("ram:lz4", 4096).unwrap();
    let Some((region, pages)) = build(store, 8) else { return };
    pages.fill_all(|page| page + 1);
    SPAN[0].store(pages.span().start(), Ordering::Relaxed);
    SPAN[1].store(pages.span().len(), Ordering::Relaxed);
    on_signal(libc::SIGUSR1, look);
    // SAFETY: needed because the C library has no safe form; it is this thread's own name.
    let thread = unsafe { libc::pthread_self() } as usize;
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = &end;
        let sender = scope.spawn(move || {
            while !end.load(Ordering::Relaxed) {
                // SAFETY: the thread lives: it waits for this one.
                unsafe { libc::pthread_kill(thread as libc::pthread_t, libc::SIGUSR1) };
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        let mover = scope.spawn({
            let region = &region;
            move || {
                while !end.load(Ordering::Relaxed) {
                    region.evict(..).unwrap();
                }
            }
        });
        let mut round = 0u64;
        while LOOKS.load(Ordering::Relaxed) < 2000 {
            round += 1;
            // Within malloc, within the region's own calls, and within faults.
            let held: Vec<Vec<u8>> = (0..64).map(|n| vec![1; 16 << (n % 12)]).collect();
            drop(std::hint::black_box(held));
            region.evict(..(round % PAGES) as usize * 4096).unwrap();
            region.bring_in((round % 7) as usize * 4096..).unwrap();
            pages.assert_all(|page| page + 1);
        }
        end.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        mover.join().unwrap();
    });
    assert!(!WRONG.load(Ordering::Relaxed), "a handler read something else than was written");
    println!("done");
}

fn on_signal(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: needed because the C library has no safe form. The handler reads memory and atomics, nothing else.
    unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
}

fn forks() {
    let store = Arc::new(PlainStore::default());
    let Some((region, pages)) = build(Arc::clone(&store) as _, 8) else { return };
    pages.fill_all(|page| page + 1);
    region.evict(..100 * 4096).unwrap();
    let mut region = Some(region);
    let address = pages.address(0);
    let child = fork(|| {
        // Nothing is mapped there, neither for a system call nor for the region's own calls, and dropping it disturbs nobody.
        let unmapped = system_call_on(address) == libc::EFAULT;
        let refused = region.as_ref().is_some_and(|region| region.evict(..).is_err());
        drop(region.take());
        unmapped && refused
    });
    assert!(reap(child));
    let region = region.take().unwrap();
    pages.assert_all(|page| page + 1);
    region.evict(..).unwrap();
    pages.assert_all(|page| page + 1);
    drop(region);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
    println!("done");
}

static OTHERS: AtomicU64 = AtomicU64::new(0);
static FILE: AtomicU64 = AtomicU64::new(0);

/// As a program does that maps files: makes the file long enough and goes on.
extern "C" fn lengthen(_: libc::c_int) {
    OTHERS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: ftruncate takes no lock and no memory.
    unsafe { libc::ftruncate(FILE.load(Ordering::Relaxed) as libc::c_int, 4096) };
}

fn others() {
    let file =
        std::fs::File::from(rustix::fs::memfd_create("part", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    FILE.store(file.as_raw_fd().cast_unsigned().into(), Ordering::Relaxed);
    on_signal(libc::SIGBUS, lengthen);
    let Some((region, pages)) = build(Arc::new(PlainStore::default()), 8) else { return };
    pages.fill_all(|page| page + 1);
    region.evict(..).unwrap();
    // SAFETY: needed because a file that is too short is what raises the signal. A mapping of its own, of which nobody else knows.
    let mapped = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    pages.assert_all(|page| page + 1);
    assert_eq!(OTHERS.load(Ordering::Relaxed), 0);
    // SAFETY: the handler makes it readable.
    assert_eq!(unsafe { mapped.cast::<u8>().read_volatile() }, 0);
    assert_eq!(OTHERS.load(Ordering::Relaxed), 1);
    // Sent by somebody, it is nothing to do with memory.
    // SAFETY: needed because the C library has no safe form.
    unsafe { libc::raise(libc::SIGBUS) };
    assert_eq!(OTHERS.load(Ordering::Relaxed), 2);
    region.evict(..).unwrap();
    pages.assert_all(|page| page + 1);
    println!("done");
}

fn lost() {
    // A key's page number is an address in pages: the region's first page isn't known before it is mapped.
    let first = Arc::new(AtomicU64::new(0));
    let base = Arc::clone(&first);
    let store =
        Arc::new(ScriptedStore::new(move |key: PageKey| match key.page - base.load(Ordering::Relaxed) {
            LOST => Answer::Late(Some(StoreError::Corrupt { key, what: "checksum" })),
            _ => Answer::Ready,
        }));
    let Some((region, pages)) = build(Arc::new(Arc::into_inner(store).unwrap().late(1)), 8) else { return };
    first.store(pages.span().start() / 4096, Ordering::Relaxed);
    pages.fill_all(|page| page + 1);
    assert_eq!(region.evict(..).unwrap().stored, PAGES);
    for page in (0..PAGES).filter(|page| *page != LOST) {
        assert_eq!(pages.read(page), Ok(page + 1));
    }
    assert_eq!(system_call_on(pages.address(LOST)), libc::EFAULT);
    assert!(region.bring_in(..).is_err());
    println!("all others are fine");
    let found = pages.read(LOST);
    println!("read {found:?} from a page that is lost");
}

fn path() {
    let store = userswap_stores::open("ram:lz4", 4096).unwrap();
    let Some((region, pages)) = build(store, 1) else { return };
    pages.fill_all(|page| page + 1);
    assert_eq!(region.evict(..).unwrap().stored, PAGES);
    println!("ready");
    for line in std::io::stdin().lines() {
        assert_eq!(line.unwrap(), "touch");
        for page in 0..PAGES {
            assert_eq!(pages.peek(page), page + 1);
        }
        println!("touched");
    }
}
