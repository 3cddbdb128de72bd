//! What goes wrong with files and devices: a clear error, the right page, nothing else touched.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Completion, Fetch, Handle, Store, StoreError, Waiter, Wanted};
use userswap_stores::file::File;
use userswap_stores::spec::SpecError;

use crate::support::{Place, assert_page, figure, key, page, post, put, settle, spec, troubled};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// An error with its reasons.
fn told(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", told(source)))
}

/// Puts until it isn't taken any more, and says why not.
fn fill(store: &File, from: u64) -> (Vec<(u64, Handle)>, StoreError) {
    let mut taken = Vec::new();
    for number in from.. {
        match put(store, number) {
            Ok(handle) => taken.push((number, handle)),
            Err(error) => return (taken, error),
        }
    }
    unreachable!()
}

fn assert_pages(store: &File, pages: &[(u64, Handle)]) {
    pages.iter().for_each(|(number, handle)| assert_page(store, *handle, *number));
}

/// A device that is full keeps what it was given in memory, takes no more, and goes on when there is room.
#[test]
fn no_space_loses_nothing_and_is_got_over() {
    let (trouble, store) = troubled("&size=8M");
    let mut pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    trouble.writes_fail(ENOSPC);
    let (more, error) = fill(&store, 400);
    assert!(error.is_retryable(), "{error}");
    assert_eq!(told(&error), "writing a segment of pages failed: No space left on device (os error 28)");
    assert!(!more.is_empty() && more.len() < 700);
    pages.extend(more);
    assert_pages(&store, &pages);
    let again = put(&store, 9000).unwrap_err();
    assert!(again.is_retryable(), "{again}");
    assert_eq!(store.stats().pages, pages.len() as u64);
    trouble.none();
    let handle = put(&store, 9001).unwrap();
    settle(&store);
    pages.push((9001, handle));
    assert_pages(&store, &pages);
    assert!(figure(&store, "write_errors") > 0);
}

/// What is freed of a segment that couldn't be written makes room as well.
#[test]
fn freeing_unwritten_pages_makes_room() {
    let (trouble, store) = troubled("&size=8M");
    trouble.writes_fail(ENOSPC);
    let (pages, _) = fill(&store, 0);
    pages.iter().for_each(|(_, handle)| store.free(&[*handle]));
    settle(&store);
    let stats = store.stats();
    assert_eq!((stats.pages, stats.stored_bytes), (0, 0));
    let (again, _) = fill(&store, 10_000);
    assert_eq!(again.len(), pages.len());
}

/// A place that can't be written isn't used again; its pages go elsewhere.
#[test]
fn a_bad_place_is_gone_round() {
    let (trouble, store) = troubled("&size=8M");
    trouble.bad_place(4096);
    let pages: Vec<_> = (0..600).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    settle(&store);
    assert!(figure(&store, "write_errors") > 0);
    assert!(figure(&store, "unwritten_segments") <= 1);
    assert_pages(&store, &pages);
}

#[test]
fn a_read_that_fails_says_so_and_the_others_come() {
    let (trouble, store) = troubled("&size=8M");
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    trouble.reads_fail(EIO);
    let error = fetch_and_wait(&store, pages[0].1, key(0)).unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(told(&error), "reading pages from the store's file failed: Input/output error (os error 5)");
    trouble.none();
    assert_pages(&store, &pages);
}

#[test]
fn short_reads_and_writes_are_gone_on_with() {
    let (trouble, store) = troubled("&size=8M");
    trouble.in_pieces();
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    assert_pages(&store, &pages);
    assert!(figure(&store, "reads") > 0);
}

/// The ring dies under a read, and under a write: both are done by the next.
#[test]
fn a_dying_ring_is_made_anew() {
    let (trouble, store) = troubled("&size=8M");
    let mut pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    assert_pages(&store, &pages[..1]);
    trouble.ring_dies(1);
    assert_pages(&store, &pages);
    assert_eq!(figure(&store, "ring_restarts"), 1);
    trouble.ring_dies(1);
    pages.extend((400..900).map(|number| (number, put(&store, number).unwrap())));
    settle(&store);
    assert_pages(&store, &pages);
}

/// One that can't live is given up: what is in memory is still there, nothing hangs.
#[test]
fn a_ring_that_cant_live_closes_the_store() {
    let (trouble, store) = troubled("&size=8M");
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    trouble.ring_dies(u64::MAX);
    let error = fetch_and_wait(&store, pages[0].1, key(0)).unwrap_err();
    assert!(matches!(error, StoreError::Closed), "{error}");
    // From then on whoever asks is told at once: an answer on the asking thread could find its locks taken.
    let (waiter, arrived) = post();
    let asked = store.fetch(pages[1].1, key(1), &mut [0; 4096], &waiter);
    drop(waiter);
    assert!(matches!(asked, Err(StoreError::Closed)) && arrived.iter().count() == 0);
    let (in_memory, error) = fill(&store, 1000);
    assert!(matches!(error, StoreError::Closed), "{error}");
    assert_pages(&store, &in_memory);
    settle(&store);
}

#[test]
fn a_truncated_file_is_noticed() {
    let place = Place::new();
    let path = place.at("store");
    let store = File::open(&spec(&format!("{path}?size=8M&reserve=0&compress=off")), 4096).unwrap();
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096 + 100_000).unwrap();
    let (kept, lost): (Vec<_>, Vec<_>) =
        pages.iter().partition(|(number, handle)| fetch_and_wait(&store, *handle, key(*number)).is_ok());
    assert!(kept.len() >= 20 && lost.len() > 100, "{} kept", kept.len());
    assert_pages(&store, &kept);
    let (number, handle) = lost[0];
    let error = fetch_and_wait(&store, handle, key(number)).unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(told(&error), "reading pages from the store's file failed: the file ends before that");
}

/// Every page whose record has a flipped bit is corrupt; no other is.
#[test]
fn flipped_bits_are_noticed() {
    for kind in ["", "&encrypt=off"] {
        let place = Place::new();
        let path = place.at("store");
        let options = format!("{path}?size=8M&reserve=0&compress=off{kind}");
        let store = File::open(&spec(&options), 4096).unwrap();
        let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
        settle(&store);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for record in [0, 5, 9] {
            let at = 4096 + record * 4128 + 77;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
        for (number, handle) in pages {
            match fetch_and_wait(&store, handle, key(number)) {
                Err(StoreError::Corrupt { what: "seal", .. }) if [0, 5, 9].contains(&number) => {}
                Ok(_) if ![0, 5, 9].contains(&number) => {}
                other => panic!("page {number}: {:?}", other.map(|_| ())),
            }
        }
        assert_eq!(store.stats().fetch_errors, 3);
    }
}

/// Two records of the same length changed places: neither is taken for the other.
#[test]
fn swapped_records_are_noticed() {
    let place = Place::new();
    let path = place.at("store");
    let store = File::open(&spec(&format!("{path}?size=8M&reserve=0&compress=off")), 4096).unwrap();
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (mut one, mut other) = ([0; 4128], [0; 4128]);
    file.read_exact_at(&mut one, 4096).unwrap();
    file.read_exact_at(&mut other, 4096 + 4128).unwrap();
    file.write_all_at(&other, 4096).unwrap();
    file.write_all_at(&one, 4096 + 4128).unwrap();
    for (number, handle) in &pages[..2] {
        let found = fetch_and_wait(&store, *handle, key(*number));
        assert!(matches!(found, Err(StoreError::Corrupt { .. })), "page {number}");
    }
    assert_pages(&store, &pages[2..]);
}

#[test]
fn a_lost_key_is_told_of() {
    let (_, store) = troubled("&size=8M");
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    store.forget_key();
    for (number, handle) in [pages[0], pages[399]] {
        let error = fetch_and_wait(&store, handle, key(number)).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "its key is lost", .. }), "{error}");
    }
    assert!(matches!(put(&store, 9000), Err(StoreError::Closed)));
}

#[test]
fn what_is_in_a_file_already_is_not_written_over() {
    let place = Place::new();
    let path = place.at("thesis");
    std::fs::write(&path, b"three years of work").unwrap();
    let refused = |options: &str| match userswap_stores::open(&format!("file:{path}{options}"), 4096) {
        Err(error @ SpecError::Open { .. }) => told(&error),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    };
    let said = refused("");
    assert!(said.ends_with("there is something in it already; overwrite=on writes over it"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), b"three years of work");
    let store = userswap_stores::open(&format!("file:{path}?overwrite=on"), 4096).unwrap();
    assert!(refused("?overwrite=on").ends_with("another store uses it"));
    drop(store);
    // What was a store's is nobody's.
    drop(userswap_stores::open(&format!("file:{path}"), 4096).unwrap());
    let said = match userswap_stores::open("file:/dev/null", 4096) {
        Err(error) => told(&error),
        Ok(_) => panic!("it was opened"),
    };
    assert!(said.contains("anything but a directory, a file or a block device"), "{said}");
    let said = match userswap_stores::open(&format!("file:{}", place.at("no/such")), 4096) {
        Err(error) => told(&error),
        Ok(_) => panic!("it was opened"),
    };
    assert!(said.contains("making the store's file failed: No such file"), "{said}");
    assert!(std::fs::read_dir(place.path()).unwrap().count() == 1);
}

/// With less free than is to be left free, nothing more is taken.
#[test]
fn the_reserve_is_left_free() {
    let place = Place::new();
    let text = format!("{}?size=0&compress=off&reserve=1000T", place.at(""));
    let store = File::open(&spec(&text), 4096).unwrap();
    let error = put(&store, 1).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.stats().device_bytes, 0);
}

/// Pages that are on their way when the store goes are delivered all the same.
#[test]
fn what_is_pending_comes_when_the_store_goes() {
    let (_, store) = troubled("&size=8M");
    let pages: Vec<_> = (0..400).map(|number| (number, put(&store, number).unwrap())).collect();
    settle(&store);
    let (waiter, arrived) = post();
    let mut out = [0; 4096];
    for (number, handle) in &pages[..50] {
        assert_eq!(store.fetch(*handle, key(*number), &mut out, &waiter).unwrap(), Fetch::Pending);
    }
    drop((store, waiter));
    assert_eq!(arrived.iter().filter(|(_, ok)| *ok).count(), 50);
}

/// Runs of so many pages that another thread than the ring's hands them over: each page is its token's, also when the last who has the store gives it up as
/// it gets one, and when the ring dies over them.
#[test]
fn long_runs_come_whole_and_may_end_the_store() {
    struct Last {
        store: Mutex<Option<Arc<File>>>,
        to: Sender<(u64, bool)>,
    }
    impl Completion for Last {
        fn complete(&self, token: u64, bytes: Result<&[u8], StoreError>) {
            drop(self.store.lock().unwrap().take());
            self.to.send((token, bytes.is_ok_and(|bytes| bytes == page(token)))).unwrap();
        }
    }
    for deaths in [0, 1] {
        let (trouble, store) = troubled("&size=8M");
        let wanted: Vec<_> = (0..400)
            .map(|number| Wanted { handle: put(&store, number).unwrap(), key: key(number) })
            .collect();
        settle(&store);
        trouble.ring_dies(deaths);
        let (to, from) = channel();
        let store = Arc::new(store);
        let last = Last { store: Mutex::new(Some(Arc::clone(&store))), to };
        let waiter = Waiter::new(Arc::new(last), 0);
        let mut out = vec![0; 4096 * 100];
        let mut results: Vec<_> = (0..100).map(|_| Ok(Fetch::Ready)).collect();
        store.fetch_run(&wanted[..100], &mut out, &mut results, &waiter).unwrap();
        assert!(results.iter().all(|result| matches!(result, Ok(Fetch::Pending))));
        drop((store, waiter));
        let mut arrived: Vec<_> = from.iter().collect();
        arrived.sort_unstable();
        assert_eq!(arrived, (0..100).map(|token| (token, true)).collect::<Vec<_>>());
    }
}
