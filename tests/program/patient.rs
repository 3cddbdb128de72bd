//! A program that takes part in swapping and knows every byte it has: this test program, started once more.

use std::io::BufRead;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use userswap::{Client, Contract};
use userswap_uffd::{Mapping, Protection, page_size};

/// Starts it as a client of the daemon at `socket`.
pub(crate) fn command(socket: &str, contract: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "patient::program", "--nocapture"]);
    command.env("USERSWAP_TEST_PATIENT", format!("{contract} {socket}"));
    command
}

const PAGES: usize = 2048;
/// Pages that nobody writes to after the start, for children to look at.
const FIXED: usize = 512;
const THREADS: usize = 2;

/// What it does: threads look at pages of theirs and change them, another one forks children that look at the pages that stay. Told on standard
/// input it says `stepped` when each of them has done something since, `checked` when all bytes are right.
#[test]
fn program() {
    let Ok(told) = std::env::var("USERSWAP_TEST_PATIENT") else { return };
    let (contract, socket) = told.split_once(' ').unwrap();
    let contract = if contract == "strict" { Contract::Strict } else { Contract::Extended };
    let mapping = Mapping::new(((PAGES + FIXED) * page_size()) as u64, Protection::READ_WRITE).unwrap();
    let patience: Option<u64> =
        std::env::var("USERSWAP_TEST_PATIENCE").ok().map(|seconds| seconds.parse().unwrap());
    // A child that is forked just then ends by SIGBUS when keeper and worker both die.
    let forks = patience.is_none();
    let patience = Duration::from_secs(patience.unwrap_or(60));
    let client = Client::builder(socket).contract(contract).patience(Some(patience)).connect().unwrap();
    client.offer(mapping.span());
    let at = usize::try_from(mapping.leak().start()).unwrap();
    // SAFETY: mapped for good and known to nobody else; the words are atomic, so that threads may share them.
    let words: &'static [AtomicU64] = unsafe {
        std::slice::from_raw_parts(
            std::ptr::with_exposed_provenance(at),
            (PAGES + FIXED) * page_size() / size_of::<AtomicU64>(),
        )
    };
    (0..PAGES + FIXED).for_each(|page| fill(words, page, 0));
    let over = AtomicBool::new(false);
    let steps: Vec<AtomicU64> = (0..THREADS + usize::from(forks)).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (over, steps) = (&over, &steps[thread]);
            scope.spawn(move || change(words, thread, over, steps));
        }
        if let Some(forked) = steps.get(THREADS) {
            let forking = &over;
            scope.spawn(move || {
                while !forking.load(Ordering::Relaxed) {
                    fork(words);
                    forked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        println!("\nready");
        let (mut children, mut crowd) = (Vec::new(), Vec::new());
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            match line.as_str() {
                // Then nobody may be there to serve what the others wait for.
                "fork" => {
                    children.push(fork_to_wait_for(words, &std::env::var("USERSWAP_TEST_GO").unwrap()));
                    println!("forked");
                    continue;
                }
                "child" => {
                    let mut ends: Vec<String> =
                        children.drain(..).map(|child| end_of(child).to_string()).collect();
                    ends.dedup();
                    println!("{}", ends.join(", "));
                    continue;
                }
                // The first of the pages that stay, and what its first word is.
                "where" => {
                    let page = page_of(words, PAGES);
                    println!("{} {}", page.as_ptr().expose_provenance(), pattern(PAGES, 0, 0));
                    continue;
                }
                // Nearly as many mappings as there may be.
                "crowd" => {
                    crowd.push(crowded());
                    println!("crowded");
                    continue;
                }
                "uncrowd" => {
                    crowd.clear();
                    println!("uncrowded");
                    continue;
                }
                _ => {}
            }
            let before: Vec<u64> = steps.iter().map(|steps| steps.load(Ordering::Relaxed)).collect();
            // Two: the first may have been done before.
            while steps.iter().zip(&before).any(|(now, then)| now.load(Ordering::Relaxed) < then + 2) {
                std::thread::yield_now();
            }
            match line.as_str() {
                "step" => println!("steped"),
                _ => {
                    (PAGES..PAGES + FIXED).for_each(|page| assert_eq!(wrong(words, page, 0), None));
                    println!("checked");
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// Looks at pages in no order, each of which must be as it was left, and changes every third.
fn change(words: &[AtomicU64], thread: usize, over: &AtomicBool, steps: &AtomicU64) {
    let mut versions = vec![0_u64; PAGES / THREADS];
    let mut random = thread as u64 + 1;
    while !over.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let own = usize::try_from(random >> 33).unwrap() % versions.len();
        let page = own * THREADS + thread;
        if let Some(word) = wrong(words, page, versions[own]) {
            end(page, word);
        }
        if random >> 20 & 3 == 0 {
            versions[own] += 1;
            fill(words, page, versions[own]);
        }
        steps.fetch_add(1, Ordering::Relaxed);
    }
    for (own, version) in versions.iter().enumerate() {
        if let Some(word) = wrong(words, own * THREADS + thread, *version) {
            end(own * THREADS + thread, word);
        }
    }
}

/// Says what was wrong and ends: other threads may be waiting for each other.
fn end(page: usize, word: u64) -> ! {
    eprintln!("page {page} has {word:#x}");
    std::process::exit(9)
}

/// Has a child look at the pages that stay.
fn fork(words: &[AtomicU64]) {
    // SAFETY: needed because no safe call forks. The child reads memory and ends, and calls nothing that another thread may hold a lock of.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            let bad = (PAGES..PAGES + FIXED).any(|page| wrong(words, page, 0).is_some());
            libc::_exit(i32::from(bad));
        }
        let mut status = 0;
        if child > 0 {
            libc::waitpid(child, &mut status, 0);
        }
        status
    };
    if status != 0 {
        eprintln!("a child found wrong bytes, or ended with {status:#x}");
        std::process::exit(8);
    }
}

/// Mappings, up to a few below what a daemon leaves to a program.
fn crowded() -> Mapping {
    let number = |text: std::io::Result<String>| text.unwrap().trim().parse::<usize>().unwrap();
    let most = number(std::fs::read_to_string("/proc/sys/vm/max_map_count"));
    let have = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let more = (most - most / 16).saturating_sub(have + 8);
    let pages = more + 2;
    let mapping = Mapping::new((pages * page_size()) as u64, Protection::READ_WRITE).unwrap();
    for page in (1..pages).step_by(2) {
        let at = usize::try_from(mapping.span().start()).unwrap() + page * page_size();
        // SAFETY: needed because no safe call changes what a mapping may be used for. It is this function's own, and nobody looks at it.
        let done = unsafe {
            libc::mprotect(std::ptr::with_exposed_provenance_mut(at), page_size(), libc::PROT_READ)
        };
        assert_eq!(done, 0);
    }
    mapping
}

/// A child that looks at the pages that stay once there is a file of this name.
fn fork_to_wait_for(words: &[AtomicU64], file: &str) -> libc::pid_t {
    let file = std::ffi::CString::new(file).unwrap();
    // SAFETY: as in `fork`.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            while libc::access(file.as_ptr(), libc::F_OK) != 0 {
                libc::usleep(10_000);
            }
            let bad = (PAGES..PAGES + FIXED).any(|page| wrong(words, page, 0).is_some());
            libc::_exit(i32::from(bad));
        }
        child
    }
}

fn end_of(child: libc::pid_t) -> std::process::ExitStatus {
    let mut status = 0;
    // SAFETY: needed because no safe call waits for a child that was forked. The kernel writes one number.
    unsafe { libc::waitpid(child, &mut status, 0) };
    std::os::unix::process::ExitStatusExt::from_raw(status)
}

fn pattern(page: usize, version: u64, word: usize) -> u64 {
    // Half of a page is the same in all of it.
    let seed = (page as u64) << 32 | version;
    (seed ^ if word.is_multiple_of(2) { 0 } else { word as u64 }).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn page_of(words: &[AtomicU64], page: usize) -> &[AtomicU64] {
    let len = page_size() / size_of::<AtomicU64>();
    &words[page * len..][..len]
}

fn fill(words: &[AtomicU64], page: usize, version: u64) {
    for (at, word) in page_of(words, page).iter().enumerate() {
        word.store(pattern(page, version, at), Ordering::Relaxed);
    }
}

/// A word that isn't what it should be.
fn wrong(words: &[AtomicU64], page: usize, version: u64) -> Option<u64> {
    let words = page_of(words, page).iter().map(|word| word.load(Ordering::Relaxed)).enumerate();
    words.filter(|(at, word)| *word != pattern(page, version, *at)).map(|(_, word)| word).next()
}
