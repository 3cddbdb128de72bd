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

#[test]
fn a_successor_finds_only_whole_pages() {
    for kill in 0..KILLS {
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture"])
                .env("USERSWAP_TEST_CHILD", (1500 + kill * 37).to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut arena: Option<File> = None;
        for line in BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap) {
            if let Some((fd, pid)) = line.strip_prefix("arena ").and_then(|line| line.split_once(" of ")) {
                arena = File::options().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}")).ok();
            }
            if line == "ready" {
                break;
            }
        }
        drop(child);
        let (store, found) = Ram::builder().rebuild(arena.unwrap()).unwrap();
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
