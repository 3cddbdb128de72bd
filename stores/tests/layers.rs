//! Layers: they keep the laws, and do what they are for.
#![cfg(feature = "ram-lz4")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use userswap_store::testkit::{Ask, Reference, fetch_and_wait};
use userswap_store::{Handle, Integrity, OwnerId, Page, PageKey, Store, StoreError};
use userswap_stores::layers::{Chaos, Checked, Metered, Mischief};

fn ram(ask: &Ask) -> Arc<dyn Store> {
    let capacity = ask.capacity.map(|bytes| format!("?capacity={bytes}")).unwrap_or_default();
    userswap_stores::open(&format!("ram:lz4{capacity}"), 4096).unwrap()
}

fn late(ask: &Ask) -> Arc<dyn Store> {
    Arc::new(Reference::new(ask, None).answering_late())
}

mod checked {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> { Arc::new(Checked::new(late(ask))) });
}

mod metered {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> { Arc::new(Metered::new(ram(ask))) });
}

mod chaos_that_is_only_late {
    use super::*;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> {
        let latency = Some(std::time::Duration::from_micros(20));
        let mut mischief = Mischief::default();
        mischief.latency = latency;
        Arc::new(Chaos::new(late(ask), mischief).unwrap())
    });
}

#[cfg(feature = "seal")]
mod sealed {
    use super::*;
    use userswap_stores::layers::Sealed;

    userswap_store::conformance!(|ask: &Ask| -> Arc<dyn Store> { Arc::new(Sealed::new(late(ask)).unwrap()) });

    /// What comes back is what was put, and what is inside isn't.
    #[test]
    fn inside_nothing_can_be_read() {
        let inside = ram(&Ask::default());
        let sealed = Sealed::new(Arc::clone(&inside)).unwrap();
        let handle = put(&sealed, 1);
        let at_once = fetch_and_wait(&sealed, handle, key(1)).unwrap();
        assert_eq!(at_once, page(1));
        assert_eq!(inside.stats().incompressible_pages, 1, "a page of one sentence came as it is");
        assert!(sealed.capabilities().encrypts);
        sealed.forget_key();
        assert!(matches!(fetch_and_wait(&sealed, handle, key(1)), Err(StoreError::Corrupt { .. })));
        let mut handles = [None];
        let more = sealed.put(&[Page { key: key(2), bytes: &page(2) }], &mut handles);
        assert!(matches!(more, Err(StoreError::Closed)) && handles == [None]);
    }
}

fn key(page: u64) -> PageKey {
    PageKey { owner: OwnerId(3), page, generation: 1 }
}

fn page(seed: u64) -> Vec<u8> {
    format!("page {seed} of a test; ").bytes().cycle().take(4096).collect()
}

fn put(store: &dyn Store, number: u64) -> Handle {
    let mut handles = [None];
    store.put(&[Page { key: key(number), bytes: &page(number) }], &mut handles).unwrap();
    handles[0].unwrap()
}

fn mischief(change: impl FnOnce(&mut Mischief)) -> Mischief {
    let mut mischief = Mischief::default();
    change(&mut mischief);
    mischief
}

#[test]
fn checked_finds_every_flipped_bit() {
    for inside in [ram(&Ask::default()), late(&Ask::default())] {
        let chaos = Chaos::new(inside, mischief(|mischief| mischief.corruption = 0.3)).unwrap();
        assert_eq!(chaos.capabilities().integrity, Integrity::None);
        let checked = Checked::new(Arc::new(chaos));
        assert_eq!(checked.capabilities().integrity, Integrity::Checksum);
        let handles: Vec<_> = (0..400).map(|number| put(&checked, number)).collect();
        let mut damaged = 0;
        for (number, handle) in (0..).zip(handles) {
            match fetch_and_wait(&checked, handle, key(number)) {
                Ok(found) => assert!(found == page(number), "page {number}"),
                Err(StoreError::Corrupt { .. }) => damaged += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!((80..160).contains(&damaged), "{damaged}");
        assert_eq!(checked.stats().fetch_errors, damaged);
        let mut told = 0;
        checked.figures(&mut |name, figure| told += if name == "damaged" { figure } else { 0 });
        assert_eq!(told, damaged);
    }
}

#[test]
fn failures_of_chaos_can_be_told_apart_and_harm_nothing() {
    let inside = ram(&Ask::default());
    let told = mischief(|mischief| (mischief.fetch_errors, mischief.put_errors) = (0.5, 0.5));
    let chaos = Chaos::new(Arc::clone(&inside), told).unwrap();
    let mut stored = Vec::new();
    for number in 0..100 {
        let mut handles = [None];
        match chaos.put(&[Page { key: key(number), bytes: &page(number) }], &mut handles) {
            Ok(()) => stored.push((number, handles[0].unwrap())),
            Err(error) => assert!(error.is_retryable() && handles == [None], "{error}"),
        }
    }
    assert!((30..70).contains(&stored.len()) && inside.stats().pages == stored.len() as u64);
    for (number, handle) in stored {
        let until_it_works = (0..50).find_map(|_| match fetch_and_wait(&chaos, handle, key(number)) {
            Ok(found) => Some(found),
            Err(error) if error.is_retryable() => None,
            Err(error) => panic!("{error}"),
        });
        assert_eq!(until_it_works, Some(page(number)));
    }
}

#[test]
fn after_its_countdown_nothing_works() {
    let chaos = Chaos::new(ram(&Ask::default()), mischief(|mischief| mischief.countdown = Some(3))).unwrap();
    let (one, two) = (put(&chaos, 1), put(&chaos, 2));
    assert_eq!(fetch_and_wait(&chaos, one, key(1)).unwrap(), page(1));
    for handle in [one, two] {
        assert!(matches!(fetch_and_wait(&chaos, handle, key(1)), Err(StoreError::Closed)));
    }
    let mut handles = [None];
    let put = chaos.put(&[Page { key: key(4), bytes: &page(4) }], &mut handles);
    assert!(matches!(put, Err(StoreError::Closed)));
}

/// Whoever waits is answered, however long it would have taken.
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
    let hours = Some(std::time::Duration::from_secs(36_000));
    let chaos = Chaos::new(ram(&Ask::default()), mischief(|mischief| mischief.latency = hours)).unwrap();
    let handle = put(&chaos, 1);
    let (to, from) = mpsc::channel();
    let waiter = Waiter::new(Arc::new(Post(to)), 7);
    let mut out = [0; 4096];
    assert_eq!(chaos.fetch(handle, key(1), &mut out, &waiter).unwrap(), Fetch::Pending);
    drop(waiter);
    drop(chaos);
    assert_eq!(from.iter().collect::<Vec<_>>(), [(7, true)]);
}

#[test]
fn metered_counts_what_it_passes_on() {
    let metered = Metered::new(late(&Ask::default()));
    let handles: Vec<_> = (0..20).map(|number| put(&metered, number)).collect();
    for (number, handle) in (0..).zip(handles) {
        fetch_and_wait(&metered, handle, key(number)).unwrap();
    }
    let mut figures = Vec::new();
    metered.figures(&mut |name, figure| figures.push((name.to_owned(), figure)));
    let figure = |wanted: &str| figures.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert!(figure("put_p50_ns") > 0 && figure("put_p50_ns") <= figure("put_max_ns"));
    assert!(figure("fetch_p50_ns") > 0 && figure("late_p50_ns") > 0);
    assert_eq!(figure("maintain_max_ns"), 0);
}
