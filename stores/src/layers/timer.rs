//! A thread that does things later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use userswap_store::StoreError;

type Task = Box<dyn FnOnce() + Send>;

/// Does each task once, when its time has come, or at once when it is dropped.
pub(super) struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// By time, and in the order they came.
    tasks: BTreeMap<(Instant, u64), Task>,
    taken: u64,
    closed: bool,
}

impl Timer {
    pub(super) fn start() -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("userswap-chaos".into()).spawn(move || its.run());
        let thread = thread.map_err(|source| StoreError::Io { doing: "starting a thread", source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn after(&self, wait: Duration, task: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.taken += 1;
        let at = (Instant::now() + wait, queue.taken);
        queue.tasks.insert(at, Box::new(task));
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            // A task may hold what holds this.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            let next = queue.tasks.first_key_value().map(|((at, _), _)| *at);
            match next {
                Some(at) if queue.closed || at <= Instant::now() => {
                    let Some((_, task)) = queue.tasks.pop_first() else { continue };
                    drop(queue);
                    task();
                    queue = self.queue.lock();
                }
                None if queue.closed => return,
                Some(at) => drop(self.changed.wait_until(&mut queue, at)),
                None => self.changed.wait(&mut queue),
            }
        }
    }
}
