//! Several handler threads, each with a fault of its own in hand at the same moment.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
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
    /// Waits for the next one, unless this is the one another waits for. Whether it came.
    fn meet(&self) -> bool {
        let mut came = self.came.lock();
        *came += 1;
        self.changed.notify_all();
        let awaited = *came + *came % 2;
        !self.changed.wait_while_for(&mut came, |came| *came < awaited, LONG / 4).timed_out()
    }
}

/// Two threads touch pages; the store gives none of them before both have been asked for.
fn two_at_once(name: &'static str, regions: usize) {
    let _watch = Watchdog::new(name);
    let pairs = Arc::new(Pairs::default());
    let meeting = Arc::clone(&pairs);
    let store = Arc::new(ScriptedStore::new(move |_| {
        if meeting.meet() { Answer::Ready } else { Answer::Fail(userswap_store::StoreError::Closed) }
    }));
    let settings = || Own::settings(64, Arc::clone(&store) as _).handlers(2).around(1);
    let Some(first) = settings().build(name) else { return };
    let second = if regions == 2 { settings().engine(&first.engine).build(name) } else { None };
    let halves = match &second {
        Some(second) => [first.pages.part(0, 32), second.pages.part(0, 32)],
        None => [first.pages.part(0, 32), first.pages.part(32, 32)],
    };
    for half in halves {
        half.fill_all(|page| page + 1);
    }
    for own in [Some(&first), second.as_ref()].into_iter().flatten() {
        own.evict();
    }
    std::thread::scope(|scope| {
        for half in halves {
            scope.spawn(move || {
                // A fetch that waited alone would have poisoned its page, and this process with it.
                half.assert_all(|page| page + 1);
            });
        }
    });
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
