//! The thread that does what handlers can't, or needn't: it asks stores that have to be waited for, frees objects, and brings in early what comes next in a stream.

use super::Inline;
use super::serve::Means;
use super::state::{FREED, WANTED};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_uffd::Blocked;

/// The helper of one region. Sleeps while there is nothing to do. Joined when dropped.
pub(crate) struct Helper {
    region: Arc<Inline>,
    thread: Option<JoinHandle<()>>,
}

/// Objects wait so long to be freed, until there are many of them.
const LINGER: Duration = Duration::from_secs(1);

impl Helper {
    pub(crate) fn start(region: &Arc<Inline>) -> io::Result<Self> {
        let region = Arc::clone(region);
        let helped = Arc::clone(&region);
        let thread =
            std::thread::Builder::new().name("userswap-inline".into()).spawn(move || help(&helped))?;
        Ok(Self { region, thread: Some(thread) })
    }
}

fn help(region: &Inline) {
    // For good: this thread runs no signal handlers of the program's.
    let blocked = Blocked::now();
    let mut wanted = Vec::with_capacity(WANTED);
    let mut freed = Vec::with_capacity(FREED);
    let mut since = None;
    loop {
        let seen = region.errands.now();
        if region.is_ending() {
            return;
        }
        let (waiting, ahead) = {
            let mut state = region.state.lock(&blocked);
            wanted.extend_from_slice(&state.wanted);
            state.wanted.clear();
            let ahead = state.ahead.take();
            (state.freed.len(), ahead.filter(|page| state.shard.state(*page).is_away()))
        };
        // First: without room for what becomes free nothing can be served.
        let due = since.is_some_and(|since: Instant| since.elapsed() >= LINGER);
        if waiting >= FREED / 8 || due {
            region.free_what_came_back(&blocked, &mut freed);
            since = None;
        } else if waiting > 0 {
            since.get_or_insert_with(Instant::now);
        }
        for page in wanted.drain(..) {
            region.serve(page, false, Means::Thread { all: None }, &blocked);
        }
        if let Some(page) = ahead {
            region.serve(page, false, Means::Ahead, &blocked);
        }
        region.errands.wait(seen, since.map(|_| LINGER));
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.region.ending.store(true, Ordering::Release);
        self.region.errands.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
