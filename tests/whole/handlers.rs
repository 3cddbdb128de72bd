//! Several handler threads, each with a fault of its own in hand at the same moment.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use userswap_store::StoreError;
use userswap_tests::own::Own;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::{LONG, Watchdog};

/// A fetch goes on only once another is in it, too.
#[derive(Default)]
struct Pairs {
    /// Fetches that came so far.
    came: Mutex<u64>,
    changed: Condvar,
}

impl Pairs {
    /// Comes, and waits for the next one to, unless it is the second of a pair. Whether that came.
    fn meet(&self) -> bool {
        let mut came = self.came.lock();
        *came += 1;
        let awaited = *came + *came % 2;
        drop(came);
        self.changed.notify_all();
        self.have_come(awaited)
    }

    /// Waits until so many have come. Whether they did.
    fn have_come(&self, many: u64) -> bool {
        let mut came = self.came.lock();
        !self.changed.wait_while_for(&mut came, |came| *came < many, LONG / 4).timed_out()
    }
}

/// Two threads touch pages; the store gives none of them before both have been asked for. The second touches its page when
/// the first one's is being fetched: had both faults been there before, one handler would have read the two.
fn two_at_once(name: &'static str, regions: usize) {
    let _watch = Watchdog::new(name);
    let pairs = Arc::new(Pairs::default());
    let meeting = Arc::clone(&pairs);
    let store = Arc::new(ScriptedStore::new(move |_| {
        if meeting.meet() { Answer::Ready } else { Answer::Fail(StoreError::Closed) }
    }));
    let settings = || Own::settings(64, Arc::clone(&store) as _).handlers(2).around(1);
    let Some(first) = settings().build(name) else { return };
    let second = if regions == 2 { settings().engine(&first.engine).build(name) } else { None };
    let [one, other] = match &second {
        Some(second) => [first.pages.part(0, 32), second.pages.part(0, 32)],
        None => [first.pages.part(0, 32), first.pages.part(32, 32)],
    };
    for half in [one, other] {
        half.fill_all(|page| page + 1);
    }
    for own in [Some(&first), second.as_ref()].into_iter().flatten() {
        own.evict();
    }
    for page in 0..32 {
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| one.read(page));
            assert!(pairs.have_come(page * 2 + 1), "page {page}");
            // A fetch that waited alone would poison its page, and this process with it.
            assert_eq!(other.read(page), Ok(page + 1));
            assert_eq!(toucher.join().unwrap(), Ok(page + 1));
        });
    }
    assert_eq!(*pairs.came.lock(), 64);
}

#[test]
fn two_handlers_serve_two_regions_at_once() {
    two_at_once("two_handlers_serve_two_regions_at_once", 2);
}

#[test]
fn two_handlers_serve_one_region_at_once() {
    two_at_once("two_handlers_serve_one_region_at_once", 1);
}
