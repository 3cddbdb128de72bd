//! What a library that is wrong about one page costs: that page, or that put.

use std::sync::Arc;

use userswap_store::testkit::fetch_and_wait;
use userswap_store::{Budget, Handle, OwnerId, Page, PageKey, Store, StoreError};

use crate::support::{Library, compile};

const PAGES: u64 = 40;
/// The page it is wrong about.
const ITS: u64 = 13;

fn key(page: u64) -> PageKey {
    PageKey { owner: OwnerId(3), page, generation: 1 }
}

fn page(seed: u64) -> Vec<u8> {
    format!("page {seed} of a test; ").bytes().cycle().take(4096).collect()
}

fn put(store: &dyn Store, number: u64) -> Result<Handle, StoreError> {
    let mut handles = [None];
    store.put(&[Page { key: key(number), bytes: &page(number) }], &mut handles)?;
    Ok(handles[0].unwrap())
}

fn nonsense(test: &str) -> Option<Library> {
    compile(test, "tests/plugin/nonsense.c", &[])
}

/// All pages that were put come back but this one; then they go, and nothing is left.
fn all_come_back_but(store: &Arc<dyn Store>, handles: &[(u64, Handle)], lost: Option<u64>) {
    for (number, handle) in handles {
        match fetch_and_wait(&**store, *handle, key(*number)) {
            Ok(found) => assert!(found == page(*number) && lost != Some(*number), "page {number}"),
            Err(error) => assert_eq!(lost, Some(*number), "page {number}: {error}"),
        }
    }
    store.free(&handles.iter().map(|(_, handle)| *handle).collect::<Vec<_>>());
    assert_eq!((store.stats().pages, store.stats().stored_bytes, store.stats().bad_frees), (0, 0, 0));
}

/// Everything is put; page 13 doesn't come back, with this error, and the others do.
fn costs_the_page(library: &Library, wrong: &str, expected: impl Fn(&StoreError) -> bool) {
    let store = library.open(&format!("wrong={wrong}")).unwrap();
    let handles: Vec<_> = (0..PAGES).map(|number| (number, put(&*store, number).unwrap())).collect();
    let its = handles[usize::try_from(ITS).unwrap()].1;
    for _ in 0..2 {
        let error = fetch_and_wait(&*store, its, key(ITS)).unwrap_err();
        assert!(expected(&error), "{wrong}: {error}");
    }
    all_come_back_but(&store, &handles, Some(ITS));
    assert_eq!(store.stats().fetch_errors, 3);
}

/// Page 13 isn't taken, with this error, alone or among others; the others are.
fn costs_the_put(library: &Library, wrong: &str, expected: impl Fn(&StoreError) -> bool) {
    let store = library.open(&format!("wrong={wrong}")).unwrap();
    let mut handles = Vec::new();
    for number in 0..PAGES {
        match put(&*store, number) {
            Ok(handle) => handles.push((number, handle)),
            Err(error) => assert!(number == ITS && expected(&error), "{wrong}: {error}"),
        }
    }
    assert_eq!(handles.len() as u64, PAGES - 1, "{wrong}");
    let bytes: Vec<_> = (10..20).map(page).collect();
    let batch: Vec<_> = (10..20).zip(&bytes).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
    let mut answers = vec![Some(Handle::MIN); batch.len()];
    let error = store.put(&batch, &mut answers).unwrap_err();
    assert!(expected(&error) && answers.iter().all(Option::is_none), "{wrong}: {error}");
    assert_eq!(store.stats().pages, PAGES - 1);
    all_come_back_but(&store, &handles, None);
}

fn source(error: &StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

#[test]
fn pages_that_are_not_what_was_put_are_lost_alone() {
    let Some(library) = nonsense("pages_that_are_not_what_was_put_are_lost_alone") else { return };
    for wrong in ["other", "nothing", "flipped"] {
        costs_the_page(&library, wrong, |error| {
            matches!(error, StoreError::Corrupt { what: "checksum", .. })
        });
    }
}

#[test]
fn wrong_lengths_lose_the_page_alone() {
    let Some(library) = nonsense("wrong_lengths_lose_the_page_alone") else { return };
    for wrong in ["short", "long"] {
        costs_the_page(&library, wrong, |error| matches!(error, StoreError::Corrupt { what: "length", .. }));
    }
}

#[test]
fn numbers_that_do_not_exist_or_make_no_sense() {
    let Some(library) = nonsense("numbers_that_do_not_exist_or_make_no_sense") else { return };
    let says = |what: &'static str| {
        move |error: &StoreError| {
            matches!(error, StoreError::Io { .. }) && !error.is_retryable() && source(error) == what
        }
    };
    costs_the_page(&library, "get_number", says("the answer -2147483648, which there isn't"));
    costs_the_page(&library, "get_full", says("it doesn't say why"));
    costs_the_page(&library, "get_damaged", |error| matches!(error, StoreError::Corrupt { .. }));
    costs_the_page(&library, "get_closed", |error| matches!(error, StoreError::Closed));
    costs_the_page(&library, "get_again", StoreError::is_retryable);
    costs_the_put(&library, "put_number", says("the answer 77, which there isn't"));
    costs_the_put(&library, "put_damaged", says("it doesn't say why"));
    costs_the_put(&library, "put_closed", |error| matches!(error, StoreError::Closed));
    costs_the_put(&library, "put_again", StoreError::is_retryable);
}

/// A sentence without an end, in no encoding.
#[test]
fn sentences_without_an_end() {
    let Some(library) = nonsense("sentences_without_an_end") else { return };
    costs_the_put(&library, "sentence", |error| source(error).chars().count() == 256);
}

/// The page that had the id was overwritten: it is found out. The put that was given the id again fails, and the other pages are as they were.
#[test]
fn an_id_that_is_in_use_is_no_id() {
    let Some(library) = nonsense("an_id_that_is_in_use_is_no_id") else { return };
    let store = library.open("wrong=twice").unwrap();
    let mut handles = Vec::new();
    for number in 0..PAGES {
        match put(&*store, number) {
            Ok(handle) => handles.push((number, handle)),
            Err(error) => {
                assert_eq!(number, ITS);
                assert!(source(&error).ends_with("which is in use"), "{}", source(&error));
            }
        }
    }
    all_come_back_but(&store, &handles, Some(ITS - 1));
}

#[test]
fn an_id_that_comes_twice_in_a_batch_fails_the_batch() {
    let Some(library) = nonsense("an_id_that_comes_twice_in_a_batch_fails_the_batch") else { return };
    let store = library.open("wrong=batch_twice").unwrap();
    let before = put(&*store, 5).unwrap();
    let bytes: Vec<_> = (13..23).map(page).collect();
    let batch: Vec<_> = (13..23).zip(&bytes).map(|(at, bytes)| Page { key: key(at), bytes }).collect();
    let mut handles = vec![Some(before); batch.len()];
    let error = store.put(&batch, &mut handles).unwrap_err();
    assert!(source(&error).ends_with("which is in use") && handles.iter().all(Option::is_none));
    // Those that nobody has were removed.
    assert_eq!((store.stats().pages, store.stats().stored_bytes), (1, 4096));
    all_come_back_but(&store, &[(5, before)], None);
}

#[test]
fn figures_without_sense_harm_nothing() {
    let Some(library) = nonsense("figures_without_sense_harm_nothing") else { return };
    let store = library.open("wrong=stats").unwrap();
    let handle = put(&*store, 1).unwrap();
    let stats = store.stats();
    assert_eq!((stats.pages, stats.puts, stats.same_filled_pages), (1, 1, 1));
    assert!(stats.memory_bytes >= 1 << 50 && stats.held_bytes() < 1 << 52);
    let done = store.maintain(Budget::UNLIMITED);
    assert!(done.more && done.released_bytes >= 1 << 50);
    assert_eq!(fetch_and_wait(&*store, handle, key(1)).unwrap(), page(1));
    // Those who add to them don't overflow.
    let path = library.path.display();
    let around = userswap_stores::open(&format!("checked+plugin:{path}?wrong=stats"), 4096).unwrap();
    assert!(around.stats().held_bytes() < 1 << 52 && around.maintain(Budget::UNLIMITED).released_bytes > 0);
    assert_eq!(library.open("wrong=max_batch").unwrap().capabilities().max_batch, 4096);
}

/// Gets and frees of the same pages at once: the library ends the program if an object goes under a get.
#[test]
fn objects_do_not_go_under_a_get() {
    let Some(library) = nonsense("objects_do_not_go_under_a_get") else { return };
    let store = library.open("").unwrap();
    let came = std::sync::atomic::AtomicU64::new(0);
    for round in 0..200 {
        let handles: Vec<_> = (0..8).map(|number| (number, put(&*store, number).unwrap())).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for (number, handle) in &handles {
                        match fetch_and_wait(&*store, *handle, key(*number)) {
                            Ok(found) => {
                                assert!(found == page(*number), "round {round}");
                                came.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            }
                            Err(error) => assert!(matches!(error, StoreError::NotFound { .. }), "{error}"),
                        }
                    }
                });
            }
            scope.spawn(|| handles.iter().rev().for_each(|(_, handle)| store.free(&[*handle])));
        });
        assert_eq!((store.stats().pages, store.stats().stored_bytes), (0, 0), "round {round}");
    }
    println!("{} of 3200 came", came.into_inner());
}

/// Whoever was told to wait is answered, by the page, when the store goes.
#[test]
fn what_is_late_comes_when_the_store_goes() {
    use std::sync::mpsc;
    use userswap_store::{Completion, Fetch, Waiter};

    struct Post(mpsc::Sender<(u64, bool)>);
    impl Completion for Post {
        fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
            self.0.send((token, page.is_ok())).unwrap();
        }
    }
    let Some(library) = nonsense("what_is_late_comes_when_the_store_goes") else { return };
    let store = library.open("wrong=late").unwrap();
    let handle = put(&*store, 1).unwrap();
    let (to, from) = mpsc::channel();
    let sink = Arc::new(Post(to));
    for token in 0..100 {
        let waiter = Waiter::new(sink.clone(), token);
        assert_eq!(store.fetch(handle, key(1), &mut [0; 4096], &waiter).unwrap(), Fetch::Pending);
    }
    drop((store, sink));
    let mut came: Vec<_> = from.iter().collect();
    came.sort_unstable();
    assert_eq!(came, (0..100).map(|token| (token, true)).collect::<Vec<_>>());
}
