//! Working sets that are brought in: what ends that.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use userswap_engine::Space;
use userswap_tests::own::Own;
use userswap_tests::script::{Answer, ScriptedStore};
use userswap_tests::watch::Watchdog;

const PAGES: u64 = 1024;
const WINDOW: u32 = 8;

/// What comes to pass while a window is being fetched.
type Meanwhile = Box<dyn Fn(&Arc<Space>) + Send>;

/// Whose window that is, and what then.
type Watched = Mutex<Option<(Arc<Space>, Meanwhile)>>;

#[test]
fn a_bring_in_ends_with_the_window_at_hand_when_it_is_called_off_or_held_back() {
    let _watch = Watchdog::new("a_bring_in_ends_with_the_window_at_hand_when_it_is_called_off_or_held_back");
    let ends: [(&str, bool, Meanwhile); 3] = [
        ("nothing", false, Box::new(|_| {})),
        ("all of a range is moved out", true, Box::new(|space| space.call_off_ahead())),
        (
            "memory comes faster than it goes",
            true,
            Box::new(|space| space.set_brake(Duration::from_millis(1))),
        ),
    ];
    for (what, is_over, meanwhile) in ends {
        let fetched = Arc::new(AtomicU64::new(0));
        let watched: Arc<Watched> = Arc::default();
        let store = {
            let (fetched, watched) = (Arc::clone(&fetched), Arc::clone(&watched));
            ScriptedStore::new(move |_| {
                // In the middle of the third window.
                if fetched.fetch_add(1, Ordering::SeqCst) == u64::from(WINDOW) * 2 + 3
                    && let Some((space, meanwhile)) = watched.lock().take()
                {
                    meanwhile(&space);
                }
                Answer::Ready
            })
        };
        let settings = Own::settings(PAGES, Arc::new(store)).around(WINDOW);
        let Some(own) = settings.build("early") else { return };
        own.pages.fill_all(|page| page + 1);
        let runs = own.space.in_memory().unwrap();
        own.evict();
        *watched.lock() = Some((Arc::clone(&own.space), meanwhile));
        let brought = own.space.bring_early(&runs, WINDOW);
        own.space.set_brake(Duration::ZERO);
        let expected = if is_over { u64::from(WINDOW) * 3 } else { PAGES };
        assert_eq!((brought, fetched.load(Ordering::SeqCst)), (expected, expected), "{what}");
        own.pages.assert_all(|page| page + 1);
    }
}
