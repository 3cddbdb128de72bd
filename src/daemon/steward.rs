//! One thread a client: it moves the client's memory out and back, when asked and when the budget says so.
//!
//! Moving waits for the client, which may be stopped for as long as it likes; a thread of its own keeps that from everybody else.

use super::server::{ClientEntry, Inner, ServerError};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use userswap_engine::{EvictError, Keep, MovedOut, Pacer};
use userswap_ipc::Peer;
use userswap_policy::Demand;
use userswap_uffd::page_bytes;

/// Something for a steward to do.
pub(super) enum Task {
    /// Move out so many bytes, or everything.
    Evict {
        /// How many.
        bytes: Option<u64>,
        /// Who asked.
        answer: Sender<Result<MovedOut, ServerError>>,
    },
    /// Bring everything back.
    Restore {
        /// Who asked.
        answer: Sender<Result<u64, ServerError>>,
    },
    /// Look at the budget again.
    Look,
    /// Stop.
    End,
}

/// The handle of a steward's thread. Dropping it ends the thread and waits for it.
pub(super) struct Steward {
    tasks: Sender<Task>,
    thread: Option<JoinHandle<()>>,
}

/// How often the budget is looked at while there is a limit.
const TICK: Duration = Duration::from_millis(50);

/// Every how many of these a client is asked what it offers.
const OFFERS: u32 = 20;

impl Steward {
    pub(super) fn start(server: Weak<Inner>, client: Arc<ClientEntry>, peer: Peer) -> io::Result<Self> {
        let (tasks, inbox) = unbounded();
        let work = Work { server, client, peer, pacer: Pacer::new(), until_offers: 0 };
        let thread =
            std::thread::Builder::new().name("userswap-steward".into()).spawn(move || work.run(&inbox))?;
        Ok(Self { tasks, thread: Some(thread) })
    }

    pub(super) fn tasks(&self) -> Sender<Task> {
        self.tasks.clone()
    }

    /// Asks it to end, without waiting.
    pub(super) fn end(&self) {
        let _ = self.tasks.send(Task::End);
    }

    /// Whether its thread has ended.
    pub(super) fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

struct Work {
    server: Weak<Inner>,
    client: Arc<ClientEntry>,
    peer: Peer,
    pacer: Pacer,
    /// Looks at the budget until the client is asked again what it offers.
    until_offers: u32,
}

impl Work {
    fn run(mut self, inbox: &Receiver<Task>) {
        loop {
            let limited = match self.server.upgrade() {
                Some(server) => server.budget.lock().is_limited(),
                None => return,
            };
            let task = if limited {
                inbox.recv_timeout(TICK)
            } else {
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match task {
                Ok(Task::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Task::Look) | Err(RecvTimeoutError::Timeout) => self.hold(),
                Ok(Task::Evict { bytes, answer }) => {
                    let _ = answer.send(self.evict(bytes.map_or(u64::MAX, |bytes| bytes.div_ceil(page_bytes()))));
                }
                Ok(Task::Restore { answer }) => {
                    let _ = answer.send(self.restore());
                }
            }
        }
    }

    /// Asks the client what it offers now and takes what is new into care.
    fn take_offers(&self) -> Result<(), ServerError> {
        for span in self.client.link.superpages(None)? {
            self.client.space.manage_new(span)?;
        }
        Ok(())
    }

    fn evict(&mut self, pages: u64) -> Result<MovedOut, ServerError> {
        self.take_offers()?;
        self.move_out(pages)
    }

    fn move_out(&mut self, pages: u64) -> Result<MovedOut, ServerError> {
        let keep = match self.server.upgrade() {
            Some(server) if server.standby => Keep::Standby,
            _ => Keep::Stored,
        };
        let moved = self.pacer.move_out(&self.client.space, pages, keep);
        self.judge(&moved);
        Ok(moved?)
    }

    fn restore(&self) -> Result<u64, ServerError> {
        let Some(server) = self.server.upgrade() else { return Ok(0) };
        Ok(server.engine().bring_back_all(&self.client.space)? * page_bytes())
    }

    /// Holds the client to the budget.
    fn hold(&mut self) {
        let held = (|| {
            if self.until_offers == 0 {
                self.until_offers = OFFERS;
                self.take_offers()?;
            }
            self.until_offers -= 1;
            let Some(server) = self.server.upgrade() else { return Ok(()) };
            let page = page_bytes();
            let resident = Pacer::resident(&self.client.space)? * page;
            let resident_in_all = server
                .entries()
                .iter()
                .map(|entry| {
                    if Arc::ptr_eq(entry, &self.client) {
                        resident
                    } else {
                        Pacer::resident(&entry.space).unwrap_or(0) * page
                    }
                })
                .sum();
            let excess = server.budget.lock().excess(Demand { resident, resident_in_all });
            drop(server);
            if excess > 0 {
                self.move_out(excess.div_ceil(page))?;
            }
            Ok::<(), ServerError>(())
        })();
        if let Err(error) = held {
            tracing::debug!(pid = self.client.pid, %error, "holding a client to the budget");
        }
    }

    /// Ends or disconnects a client that unmapped what it was told to move, or didn't move it.
    fn judge(&self, moved: &Result<MovedOut, EvictError>) {
        if self.client.space.broke_promise() || matches!(moved, Err(EvictError::Unanswered(_))) {
            match self.client.link.unexpected_unmap(&self.peer) {
                Ok(done) => tracing::warn!(pid = self.client.pid, ?done, "a client unmapped what was being moved"),
                Err(error) => tracing::warn!(pid = self.client.pid, %error, "a client could not be ended"),
            }
        }
    }
}
