//! Holds clients together to a limit on what they have in memory, and keeps a record of what that was.
//!
//! One thread takes a sample every so often (see [`Limiter`]), and has the clients' stewards move out what the limiter says.

use super::footprint::{Shares, anonymous_bytes};
use super::server::{Server, ServerError};
use super::throttle::Throttle;
use crossbeam::channel::{Receiver, Select, TryRecvError};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_engine::MovedOut;
use userswap_engine::core::Transition;
use userswap_policy::{Footprint, Limiter, Limits, Sample};
use userswap_store::Stats;
use userswap_uffd::page_bytes;

/// Holds the clients of a server to limits until it is dropped.
pub struct Warden {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the warden has seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// The most that all clients had in memory in a sample, by their shares (`Pss_Anon`), in bytes.
    pub peak_bytes: u64,
    /// The store when it held most.
    pub fullest: Stats,
    /// Samples of the last kind taken at the full interval, and of these, those over the limit.
    pub samples: u64,
    /// Samples over the limit.
    pub samples_over: u64,
    /// The most that was over the limit, in bytes.
    pub worst_over_bytes: u64,
}

struct Shared {
    server: Arc<Server>,
    /// A process that counts beside the clients, if it is none; 0 for nobody.
    beside: AtomicU32,
    throttle: Option<Throttle>,
    limiter: Mutex<Limiter>,
    record: Mutex<Record>,
    stop: Mutex<bool>,
    poke: Condvar,
}

/// How often what is kept for the record is measured exactly, and the share of samples over the limit counted.
const EXACT: Duration = Duration::from_millis(100);

/// How long an order's end is waited for before everything is looked at again.
const SHORT: Duration = Duration::from_millis(10);

impl Warden {
    /// Starts to hold `server`'s clients to `limits`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(server: Arc<Server>, limits: Limits, throttle: Option<Throttle>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            server,
            beside: AtomicU32::new(0),
            throttle,
            limiter: Mutex::new(Limiter::new(limits)),
            record: Mutex::new(Record::default()),
            stop: Mutex::new(false),
            poke: Condvar::new(),
        });
        let holding = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("userswap-warden".into()).spawn(move || holding.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What is held to.
    pub fn limits(&self) -> Limits {
        self.shared.limiter.lock().limits()
    }

    /// Holds to other limits from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.limiter.lock().set_limits(limits);
        let _stopping = self.shared.stop.lock();
        self.shared.poke.notify_all();
    }

    /// Counts a process against the limits also while it is no client. It can't be moved then.
    pub fn count(&self, pid: u32) {
        self.shared.beside.store(pid, Ordering::Relaxed);
    }

    /// What was seen so far.
    pub fn record(&self) -> Record {
        *self.shared.record.lock()
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        *self.shared.stop.lock() = true;
        self.shared.poke.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Orders that are out, by process.
type Orders = HashMap<u32, Out>;

/// One that is.
struct Out {
    answer: Receiver<Result<MovedOut, ServerError>>,
    /// Bytes.
    asked: u64,
}

impl Shared {
    fn run(&self) {
        let started = Instant::now();
        let mut out = Orders::new();
        let mut exact_at = None;
        let mut clients = Vec::new();
        let mut shares = Shares::default();
        loop {
            let (asked, moved) = collect(&mut out);
            self.limiter.lock().answered(started.elapsed(), asked, moved);
            let exactly = exact_at.is_none_or(|at: Instant| at.elapsed() >= EXACT);
            if exactly {
                exact_at = Some(Instant::now());
            }
            let fixed = self.look(&out, exactly, &mut shares, &mut clients);
            let store = self.server.engine().store().stats();
            let sample = Sample {
                at: started.elapsed(),
                clients: &clients,
                fixed,
                store: store.memory_bytes,
                moved_out: self.moved_out(),
            };
            let (verdict, limits) = {
                let mut limiter = self.limiter.lock();
                (limiter.judge(&sample), limiter.limits())
            };
            if exactly {
                let resident = fixed + clients.iter().map(|client| client.resident).sum::<u64>();
                self.note(resident, verdict.over, store);
            }
            if let Some(throttle) = &self.throttle {
                throttle.hold(limits.resident, verdict.over);
            }
            tracing::trace!(
                resident = fixed + clients.iter().map(|client| client.resident).sum::<u64>(),
                over = verdict.over,
                busy = out.len(),
                orders = ?verdict.orders,
                brake = ?verdict.brake,
                next = ?verdict.next,
                "looked"
            );
            for (_, space) in self.server.engine().spaces() {
                space.set_brake(verdict.brake);
            }
            for order in verdict.orders {
                if let Ok(answer) = self.server.begin_evict(order.pid, Some(order.bytes)) {
                    out.insert(order.pid, Out { answer, asked: order.bytes });
                }
            }
            wait_for_one(&out, verdict.next.min(SHORT));
            let mut stop = self.stop.lock();
            if !*stop && out.is_empty() {
                self.poke.wait_for(&mut stop, verdict.next);
            }
            if *stop {
                for (_, space) in self.server.engine().spaces() {
                    space.set_brake(Duration::ZERO);
                }
                return;
            }
        }
    }

    /// Measures everybody. Returns what counts but can't be moved.
    fn look(&self, out: &Orders, exactly: bool, shares: &mut Shares, clients: &mut Vec<Footprint>) -> u64 {
        clients.clear();
        let pids = self.server.pids();
        let beside = Some(self.beside.load(Ordering::Relaxed)).filter(|pid| *pid != 0 && !pids.contains(pid));
        let limits = self.limiter.lock().limits();
        let most = limits.resident.into_iter().chain(limits.total).filter(|most| *most > 0).min();
        let far = if limits.client.is_some_and(|most| most > 0) {
            0
        } else {
            most.map_or(u64::MAX, |most| most / 3 * 2)
        };
        shares.look(&pids, exactly, far);
        clients.extend(pids.iter().filter_map(|&pid| {
            Some(Footprint { pid, resident: shares.bytes(pid)?, busy: out.contains_key(&pid) })
        }));
        beside.and_then(|pid| anonymous_bytes(pid).ok()).unwrap_or(0)
    }

    fn moved_out(&self) -> u64 {
        let spaces = self.server.engine().spaces();
        spaces.iter().map(|(_, space)| space.counts().get(Transition::Moved)).sum::<u64>() * page_bytes()
    }

    fn note(&self, resident: u64, over: u64, store: Stats) {
        let mut record = self.record.lock();
        record.peak_bytes = record.peak_bytes.max(resident);
        record.samples += 1;
        record.samples_over += u64::from(over > 0);
        record.worst_over_bytes = record.worst_over_bytes.max(over);
        if store.raw_bytes >= record.fullest.raw_bytes {
            record.fullest = store;
        }
    }
}

/// Sleeps until an order was carried out, if there are any, but no longer than `patience`.
fn wait_for_one(out: &Orders, patience: Duration) {
    if out.is_empty() {
        return;
    }
    let mut select = Select::new();
    for order in out.values() {
        select.recv(&order.answer);
    }
    let _ = select.ready_timeout(patience);
}

/// Forgets the orders that were carried out. What these were for, and what they moved, in bytes.
fn collect(out: &mut Orders) -> (u64, u64) {
    let (mut asked, mut moved) = (0, 0);
    out.retain(|pid, order| match order.answer.try_recv() {
        Err(TryRecvError::Empty) => true,
        Ok(Err(error)) => {
            tracing::debug!(pid, %error, "holding a client to the limit");
            false
        }
        Ok(Ok(done)) => {
            asked += order.asked;
            moved += done.moved * page_bytes();
            false
        }
        Err(TryRecvError::Disconnected) => false,
    });
    (asked, moved)
}
