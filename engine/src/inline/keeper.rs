//! The thread that holds an inline region under its limit.

use super::Inline;
use super::serve::soft;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use userswap_uffd::Blocked;

/// The keeper of one region. Sleeps until handlers say that there is too much in memory. Joined when dropped.
pub(crate) struct Keeper {
    region: Arc<Inline>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long after a round that moved nothing the next one begins.
const REST: Duration = Duration::from_millis(10);

impl Keeper {
    pub(crate) fn start(region: &Arc<Inline>, limit: u64) -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let (kept, end) = (Arc::clone(region), Arc::clone(&ending));
        let thread = std::thread::Builder::new()
            .name("userswap-keeper".into())
            .spawn(move || keep(&kept, limit, &end))?;
        Ok(Self { region: Arc::clone(region), ending, thread: Some(thread) })
    }
}

fn keep(region: &Inline, limit: u64, ending: &AtomicBool) {
    // For good: this thread runs no signal handlers of the program's.
    let blocked = Blocked::now();
    loop {
        // First: an end that is said after it was looked for rings.
        let seen = region.pressure.now();
        if ending.load(Ordering::Acquire) {
            return;
        }
        let resident = region.state.lock(&blocked).resident;
        if resident < soft(limit) {
            region.pressure.wait(seen, None);
            continue;
        }
        match region.evict_round(resident - (limit - limit / 8).min(resident)) {
            Ok(moved) if moved.moved > 0 => {}
            Ok(_) => region.pressure.wait(seen, Some(REST)),
            Err(error) => {
                tracing::warn!(%error, "holding a region under its limit");
                std::thread::sleep(REST);
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        self.region.pressure.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
