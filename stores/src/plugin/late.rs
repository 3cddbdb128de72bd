//! Threads that wait, for stores whose `get` does.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, unbounded};
use userswap_store::{Handle, PageKey, StoreError, Waiter};

use super::Shared;

/// How many gets wait at once.
const THREADS: usize = 8;

/// Gets pages on threads of its own, in the order they are asked for. Whoever was told to wait is answered, also when this is dropped.
pub(super) struct Late {
    /// `None` once it is being dropped.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

struct Job {
    handle: Handle,
    key: PageKey,
    waiter: Waiter,
}

impl Late {
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let (jobs, queue) = unbounded::<Job>();
        let mut late = Self { jobs: Some(jobs), threads: Vec::with_capacity(THREADS) };
        for _ in 0..THREADS {
            let (queue, shared) = (queue.clone(), Arc::clone(shared));
            let work = move || {
                let mut page = vec![0; shared.page_size];
                for Job { handle, key, waiter } in queue {
                    match shared.get(handle, key, &mut page) {
                        Ok(()) => waiter.complete(Ok(&page)),
                        Err(error) => waiter.complete(Err(error)),
                    }
                }
            };
            let thread = std::thread::Builder::new().name("userswap-plugin".into()).spawn(work);
            let thread = thread.map_err(|source| StoreError::Io { doing: "starting a thread", source })?;
            late.threads.push(thread);
        }
        Ok(late)
    }

    /// Has a page got.
    pub(super) fn get(&self, handle: Handle, key: PageKey, waiter: Waiter) -> Result<(), StoreError> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { handle, key, waiter }));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(StoreError::Closed) }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Whoever is answered may be the last to have had the store.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
