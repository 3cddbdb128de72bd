//! The store's housekeeping: dictionaries, denser pages, space that moving in and out left scattered, pages that go down a tier.
//!
//! On a thread of its own, since it may train for a tenth of a second or wait for a disk. Of the normal class: in the idle class it could
//! be left standing with a lock that a fault waits for.

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_store::{Budget, Store};

/// The thread. Dropping it ends the thread and waits for it.
pub(super) struct Upkeep {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Called no oftener.
const PAUSE: Duration = Duration::from_secs(1);

/// How much the store may do at a time, in bytes.
const BUDGET: u64 = 16 << 20;

/// It rests so many times as long as it has worked.
const REST: u32 = 10;

impl Upkeep {
    /// Begins to look after `store`, if that wants it.
    pub(super) fn start(store: Arc<dyn Store>) -> io::Result<Self> {
        if !store.capabilities().maintains {
            return Ok(Self { stop: None, thread: None });
        }
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("userswap-upkeep".into()).spawn(move || {
            let mut pause = PAUSE;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let began = Instant::now();
                store.maintain(Budget::bytes(BUDGET));
                pause = PAUSE.max(began.elapsed() * REST);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
