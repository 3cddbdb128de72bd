//! A process killed at any instant leaves an arena its successor can use.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, OwnerId, Page, PageKey, Store};
use userswap_stores::ram::Ram;

/// A child that doesn't outlive its name.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const PAGE: usize = 4096;
const KILLS: u32 = 20;

/// Bytes that follow from the key alone, of very different lengths when compressed.
fn page(key: PageKey) -> Vec<u8> {
    let mut state = key.page << 32 | u64::from(key.generation);
    let mut step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let random = step() as usize % PAGE;
    (0..PAGE).map(|at| if at < random { step() as u8 } else { 5 }).collect()
}

/// A page of words that the owner's other pages have too.
#[cfg(feature = "ram-zstd")]
fn worded_page(key: PageKey) -> Vec<u8> {
    let mut state = key.page << 32 | u64::from(key.generation);
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    };
    let mut bytes = Vec::with_capacity(PAGE + 32);
    while bytes.len() < PAGE {
        let word = step(&mut state) % 200;
        let mut letters = key.owner.0 << 32 | word;
        bytes.extend((0..20).map(|_| step(&mut letters) as u8));
    }
    bytes.truncate(PAGE);
    bytes
}

/// What the killed process does: replaces and moves pages until it is killed, saying now and then how far it is.
#[test]
fn child() {
    let Ok(at_least) = std::env::var("USERSWAP_TEST_CHILD") else { return };
    let store = Ram::builder().build().unwrap();
    println!("\narena {} of {}", store.arena_file().as_raw_fd(), std::process::id());
    let mut held = vec![None; 300];
    for generation in 0_u32.. {
        let at = generation.wrapping_mul(2_654_435_761) as usize % held.len();
        let key = PageKey { owner: OwnerId(1), page: at as u64, generation };
        let mut handle = [None];
        store.put(&[Page { key, bytes: &page(key) }], &mut handle).unwrap();
        if let Some(old) = held[at].replace(handle[0].unwrap()) {
            store.free(&[old]);
        }
        if generation % 64 == 0 {
            store.maintain(Budget::UNLIMITED);
        }
        if generation.to_string() == at_least {
            println!("\nready");
            std::io::stdout().flush().unwrap();
        }
    }
}

/// The same with owners that come and go, each with a dictionary: it is written, used, pages are compressed again, it is taken away.
#[cfg(feature = "ram-zstd")]
#[test]
fn child_with_dictionaries() {
    let Ok(at_least) = std::env::var("USERSWAP_TEST_CHILD") else { return };
    let store = with_dictionaries().build().unwrap();
    println!("\narena {} of {}", store.arena_file().as_raw_fd(), std::process::id());
    let mut held = vec![None; 150];
    let mut trained = false;
    for generation in 0_u32.. {
        let at = generation.wrapping_mul(2_654_435_761) as usize % held.len();
        let owner = OwnerId(u64::from(1 + generation / 400));
        let key = PageKey { owner, page: at as u64, generation };
        let mut handle = [None];
        store.put(&[Page { key, bytes: &worded_page(key) }], &mut handle).unwrap();
        if let Some(old) = held[at].replace(handle[0].unwrap()) {
            store.free(&[old]);
        }
        if generation % 32 == 0 {
            let before = store.stats().stored_bytes;
            store.maintain(Budget::UNLIMITED);
            trained |= store.stats().stored_bytes != before;
        }
        if generation.to_string() == at_least {
            if !trained {
                return;
            }
            println!("\nready");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[cfg(feature = "ram-zstd")]
fn with_dictionaries() -> userswap_stores::ram::Builder {
    let codec = userswap_stores::ram::Codec::Zstd { level: -1 };
    Ram::with_codec(codec).dictionary(Some(2048)).dictionary_from(40)
}

/// Starts a child, kills it some time after it has put so many pages, and answers its arena.
fn killed(child: &str, after: u32) -> File {
    let mut child = Killed(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--nocapture"])
            .env("USERSWAP_TEST_CHILD", after.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let (mut arena, mut ready): (Option<File>, bool) = (None, false);
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if let Some((fd, pid)) = line.strip_prefix("arena ").and_then(|line| line.split_once(" of ")) {
            arena = File::options().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}")).ok();
        }
        if line == "ready" {
            ready = true;
            break;
        }
    }
    drop(child);
    assert!(ready, "{after} pages were put as they should be");
    arena.unwrap()
}

#[test]
fn a_successor_finds_only_whole_pages() {
    for kill in 0..KILLS {
        let (store, found) = Ram::builder().rebuild(killed("child", 1500 + kill * 37)).unwrap();
        // Of each page the last generation, and perhaps one that was about to go.
        let mut pages: Vec<u64> = found.iter().map(|(key, _)| key.page).collect();
        pages.dedup();
        assert!(pages.len() >= 299 && found.len() <= pages.len() + 1, "{} of {}", pages.len(), found.len());
        for (key, handle) in &found {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), page(*key), "{key}");
        }
        store.free(&found.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        store.maintain(Budget::UNLIMITED);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
    }
}

#[cfg(feature = "ram-zstd")]
#[test]
fn a_successor_finds_the_dictionary_of_every_page() {
    for kill in 0..KILLS {
        let arena = killed("child_with_dictionaries", 900 + kill * 41);
        let (store, found) = with_dictionaries().rebuild(arena).unwrap();
        let mut pages: Vec<u64> = found.iter().map(|(key, _)| key.page).collect();
        pages.sort_unstable();
        pages.dedup();
        assert!(pages.len() >= 149 && found.len() <= pages.len() + 1, "{} of {}", pages.len(), found.len());
        for (key, handle) in &found {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), worded_page(*key), "{key}");
        }
        store.free(&found.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
        store.maintain(Budget::UNLIMITED);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
    }
}
