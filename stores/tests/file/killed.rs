//! A process that is killed at any instant leaves a file, a book and a key that another goes on with.

use std::fs::File as StdFile;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, OwnerId, Page, PageKey, Store};
use userswap_stores::file::File;
use userswap_stores::spec::FileSpec;

use crate::support::{figure, temporary};

const PAGE: usize = 4096;
const KILLS: u32 = 20;
const PAGES: usize = 300;

fn spec() -> FileSpec {
    // Cleaned all the time.
    crate::support::spec(&format!("{}?size=1M&reserve=0", temporary()))
}

/// Bytes that follow from the key alone, of very different lengths when compressed; a few repeat a word. Those of an odd generation are those of the one before.
fn page(key: PageKey) -> Vec<u8> {
    let mut state = key.page << 32 | u64::from(key.generation / 2);
    let mut step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()[0]
    };
    let random = usize::from(step()) * 8;
    (0..PAGE).map(|at| if at < random { step() } else { 5 }).collect()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What the killed process does: replaces pages, has them leave as they came and move, saying now and then how far it is.
#[test]
fn child() {
    let Ok(at_least) = std::env::var("USERSWAP_TEST_CHILD") else { return };
    let keys = memory();
    let (store, _) = File::open_kept(&spec(), PAGE, None, keys.as_fd(), 0).unwrap();
    let [book, file] = store.descriptors().unwrap();
    println!("\nleft {} {} {} {}", std::process::id(), book.as_raw_fd(), file.as_raw_fd(), keys.as_raw_fd());
    work(&store, &mut vec![None; PAGES], 0, |generation| {
        if generation.to_string() == at_least {
            println!("\nready");
            std::io::stdout().flush().unwrap();
        }
        true
    });
}

/// Replaces one page after the other, and has each third leave again as it came.
fn work(
    store: &File,
    held: &mut [Option<(userswap_store::Handle, PageKey)>],
    from: u32,
    mut goes_on: impl FnMut(u32) -> bool,
) {
    let put = |key: PageKey, bytes: &[u8]| {
        let mut handle = [None];
        // Full while what was freed isn't cleaned yet.
        while store.put(&[Page { key, bytes }], &mut handle).is_err() {
            store.maintain(Budget::UNLIMITED);
        }
        handle[0].unwrap()
    };
    for generation in from.. {
        let at = generation.wrapping_mul(2_654_435_761) as usize % held.len();
        let page_of = |generation| PageKey { owner: OwnerId(1), page: at as u64, generation };
        let mut key = page_of(generation * 2);
        let mut bytes = page(key);
        if let Some((old, before)) = held[at].take() {
            // What came back is freed, and leaves under a new generation.
            if generation % 3 == 0 && before.generation % 2 == 0 {
                bytes = fetch_and_wait(store, old, before).unwrap();
                key = page_of(before.generation + 1);
            }
            store.free(&[old]);
        }
        held[at] = Some((put(key, &bytes), key));
        if generation % 64 == 0 {
            store.maintain(Budget::UNLIMITED);
        }
        if !goes_on(generation) {
            return;
        }
    }
}

fn memory() -> OwnedFd {
    let memory = rustix::fs::memfd_create("keys", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 4096).unwrap();
    memory
}

/// Starts a child, kills it some time after it has put so many pages, and answers what it had open: book, file and keys.
fn killed(after: u32) -> [OwnedFd; 3] {
    let mut child = Killed(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child", "--nocapture"])
            .env("USERSWAP_TEST_CHILD", after.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut left: Vec<OwnedFd> = Vec::new();
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if let Some(numbers) = line.strip_prefix("left ") {
            let mut numbers = numbers.split(' ').map(|number| number.parse::<i32>().unwrap());
            let pidfd = pidfd_open(Pid::from_raw(numbers.next().unwrap()).unwrap(), PidfdFlags::empty());
            let pidfd = pidfd.unwrap();
            left = numbers
                .map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).unwrap())
                .collect();
        }
        if line == "ready" {
            drop(child);
            return left.try_into().unwrap();
        }
    }
    panic!("the child ended");
}

#[test]
fn a_successor_finds_every_page_of_a_file() {
    for kill in 0..KILLS {
        let [book, file, keys] = killed(1500 + kill * 37);
        let left = Some([book.as_fd(), file.as_fd()]);
        let (store, found) = File::open_kept(&spec(), PAGE, left, keys.as_fd(), 0).unwrap();
        // Of each page the last generation, and perhaps one that was about to go.
        let mut pages: Vec<u64> = found.iter().map(|(key, _)| key.page).collect();
        pages.sort_unstable();
        pages.dedup();
        assert!(
            pages.len() >= PAGES - 1 && found.len() <= pages.len() + 1,
            "{} {}",
            pages.len(),
            found.len()
        );
        for (key, handle) in &found {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), page(*key), "{key}");
        }
        // It goes on as if nothing had happened: everything is replaced, several times over.
        let mut held = vec![None; PAGES];
        for (key, handle) in found {
            let at = usize::try_from(key.page).unwrap();
            if let Some((old, _)) = held[at].replace((handle, key)) {
                store.free(&[old]);
            }
        }
        let end = 1_000_000 + 2000;
        work(&store, &mut held, 1_000_000, |generation| generation < end);
        assert!(figure(&store, "unchanged_pages") > 100 && figure(&store, "cleaned_bytes") > 0);
        for (handle, key) in held.iter().flatten() {
            assert_eq!(fetch_and_wait(&store, *handle, *key).unwrap(), page(*key), "{key}");
        }
        let handles: Vec<_> = held.iter().flatten().map(|(handle, _)| *handle).collect();
        store.free(&handles);
        store.maintain(Budget::UNLIMITED);
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0));
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_left_as_it_is() {
    let keys = memory();
    let (store, _) = File::open_kept(&spec(), PAGE, None, keys.as_fd(), 0).unwrap();
    let key = PageKey { owner: OwnerId(1), page: 7, generation: 9 };
    let mut handle = [None];
    store.put(&[Page { key, bytes: &page(key) }], &mut handle).unwrap();
    let [book, file] = store.descriptors().unwrap().map(|fd| fd.try_clone_to_owned().unwrap());
    // As after a death.
    std::mem::forget(store);
    let null = StdFile::open("/dev/null").unwrap();
    let again = |spec: &FileSpec, left| File::open_kept(spec, PAGE, Some(left), keys.as_fd(), 0);
    assert!(again(&spec(), [null.as_fd(), file.as_fd()]).is_err());
    let mut other = spec();
    other.size = Some(Some(2 << 20));
    assert!(again(&other, [book.as_fd(), file.as_fd()]).is_err());
    let (store, found) = again(&spec(), [book.as_fd(), file.as_fd()]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(fetch_and_wait(&store, found[0].1, key).unwrap(), page(key));
    // Without its key nothing of it can be read, and nothing is taken for anything else.
    let [book, file] = store.descriptors().unwrap().map(|fd| fd.try_clone_to_owned().unwrap());
    std::mem::forget(store);
    let others = memory();
    let (store, found) =
        File::open_kept(&spec(), PAGE, Some([book.as_fd(), file.as_fd()]), others.as_fd(), 0).unwrap();
    assert!(fetch_and_wait(&store, found[0].1, key).is_err());
}
