//! Drives the policy, which says what clients give up of their memory, and keeps a record of what they had.
//!
//! One thread takes a sample every so often, shows it to the [`Policy`], and has the clients' stewards do what that says.

use super::eyes::{Eyes, Sights};
use super::footprint::{Shares, anonymous_bytes};
use super::orders::Orders;
use super::rest::Rest;
use super::server::Server;
use super::throttle::Throttle;
use parking_lot::{Condvar, Mutex};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use userswap_engine::Space;
use userswap_engine::core::Transition;
use userswap_policy::chromium::{Area, Hint};
use userswap_policy::{Footprint, Limits, Order, Policy, Sample, Verdict, Wants};
use userswap_store::Stats;
use userswap_uffd::page_bytes;

/// Has a policy steer the clients of a server until it is dropped.
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
    policy: Arc<Mutex<Box<dyn Policy>>>,
    sights: Mutex<Sights>,
    /// Only looks.
    paused: AtomicBool,
    hints: Mutex<Vec<(u32, Hint)>>,
    record: Mutex<Record>,
    stop: Mutex<bool>,
    poke: Condvar,
}

/// How often what is kept for the record is measured exactly, and the share of samples over the limit counted.
const EXACT: Duration = Duration::from_millis(100);

/// No policy is asked oftener, nor more rarely unless all is [at rest](Rest).
const NEXT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(250));

/// Hints that wait to be told, at most.
const MOST_HINTS: usize = 1024;

impl Warden {
    /// Starts to do with `server`'s clients what a policy says, which is shown what is seen at `sights`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(
        server: Arc<Server>,
        policy: Box<dyn Policy>,
        sights: Sights,
        throttle: Option<Throttle>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            server,
            beside: AtomicU32::new(0),
            throttle,
            policy: Arc::new(Mutex::new(policy)),
            sights: Mutex::new(sights),
            paused: AtomicBool::new(false),
            hints: Mutex::new(Vec::new()),
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
        self.shared.policy.lock().limits()
    }

    /// Holds to other limits from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.policy.lock().set_limits(limits);
        self.shared.poke();
    }

    /// Has another policy decide from now on, within the limits that hold now.
    pub fn set_policy(&self, mut policy: Box<dyn Policy>, sights: Sights) {
        let mut held = self.shared.policy.lock();
        policy.set_limits(held.limits());
        *held = policy;
        drop(held);
        *self.shared.sights.lock() = sights;
        self.shared.poke();
    }

    /// Only looks from now on, and orders nothing, or does both again.
    pub fn set_paused(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
        self.shared.poke();
    }

    /// Tells the policy something of a client.
    pub fn hint(&self, pid: u32, hint: Hint) {
        self.shared.hint(pid, hint);
        self.shared.poke();
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

impl Shared {
    fn run(&self) {
        let started = Instant::now();
        let mut orders = Orders::default();
        let mut exact_at = None;
        let (mut clients, mut shares, mut eyes) = (Vec::new(), Shares::default(), Eyes::default());
        let mut rest = Rest::default();
        loop {
            let exactly = exact_at.is_none_or(|at: Instant| at.elapsed() >= EXACT);
            if exactly {
                exact_at = Some(Instant::now());
            }
            self.tell(started, &mut orders, &mut eyes);
            let (wants, limits) = {
                let policy = self.policy.lock();
                (policy.wants(), policy.limits())
            };
            let fixed = self.look(&orders, exactly, limits, &mut shares, &mut clients);
            self.claim(&mut clients);
            if wants.activity {
                let activity = eyes.activity(&self.server);
                for client in &mut clients {
                    client.activity = activity.get(&client.pid).copied().unwrap_or_default();
                }
            } else {
                eyes.forget_activity();
            }
            let (stalled, free_disk) = self.look_around(&mut eyes, wants);
            let store = self.server.engine().store().stats();
            let sample = Sample {
                at: started.elapsed(),
                clients: &clients,
                fixed,
                store: store.memory_bytes,
                moved_out: self.moved_out(),
                stalled,
                free_disk,
            };
            let verdict = self.judge(&sample);
            let resident = fixed + clients.iter().map(|client| client.resident).sum::<u64>();
            if exactly {
                self.note(resident, verdict.over, store);
            }
            if let Some(throttle) = &self.throttle {
                throttle.hold(limits.resident, verdict.over);
            }
            tracing::trace!(
                resident,
                over = verdict.over,
                busy = orders.len(),
                orders = ?verdict.orders,
                brake = ?verdict.brake,
                next = ?verdict.next,
                "looked"
            );
            self.brake(&verdict);
            for order in verdict.orders {
                self.give(&mut orders, order);
            }
            let limits = [limits.resident, limits.total, limits.client];
            let is_limited = limits.into_iter().flatten().any(|most| most > 0) || orders.len() > 0;
            let asked = verdict.next.clamp(NEXT.0, NEXT.1);
            let next = rest.next((resident, clients.len()), is_limited, asked, NEXT.1);
            orders.wait_for_one(next);
            let mut stop = self.stop.lock();
            if !*stop && orders.len() == 0 {
                self.poke.wait_for(&mut stop, next);
            }
            if *stop {
                self.brake(&Verdict::default());
                return;
            }
        }
    }

    /// Holds pages back that come, but for those of who has no more than is its own, and shares the time spent on all.
    fn brake(&self, verdict: &Verdict) {
        let entries = if verdict.fair || !verdict.unbraked.is_empty() {
            self.server.inner.entries()
        } else {
            Vec::new()
        };
        let sights = self.sights.lock();
        for (id, space) in self.server.engine().spaces() {
            let pid = entries.iter().find(|entry| entry.id == id).map(|entry| entry.pid);
            let free = pid.is_some_and(|pid| verdict.unbraked.contains(&pid));
            space.set_brake(if free { Duration::ZERO } else { verdict.brake });
            space.set_weight(match pid {
                _ if !verdict.fair => 0,
                Some(pid) => sights.claim(pid).weight.max(1),
                None => 1,
            });
        }
    }

    fn claim(&self, clients: &mut [Footprint]) {
        let sights = self.sights.lock();
        for client in clients {
            client.claim = sights.claim(client.pid);
        }
    }

    /// Tells the policy what came of its orders, and what else there is to tell.
    fn tell(&self, started: Instant, orders: &mut Orders, eyes: &mut Eyes) {
        let answers = orders.collect();
        let hints = std::mem::take(&mut *self.hints.lock());
        let told = self.server.inner.take_hints();
        let mut policy = self.policy.lock();
        policy.answered(started.elapsed(), &answers);
        if policy.wants().ranges {
            eyes.ranges(&self.server, &mut **policy, started.elapsed(), |pid| orders.is_at(pid));
        }
        for (pid, hint) in told.into_iter().chain(hints) {
            policy.hint(pid, hint, started.elapsed());
        }
    }

    fn judge(&self, sample: &Sample<'_>) -> Verdict {
        if self.paused.load(Ordering::Relaxed) {
            return Verdict { next: EXACT, ..Verdict::default() };
        }
        self.policy.lock().judge(sample)
    }

    fn look_around(&self, eyes: &mut Eyes, wants: Wants) -> (Option<f64>, Option<u64>) {
        if wants.pressure || wants.disk { eyes.machine(&self.sights.lock(), wants) } else { (None, None) }
    }

    fn give(&self, orders: &mut Orders, order: Order) {
        let (policy, pid) = (Arc::clone(&self.policy), order.pid);
        let choose = Box::new(move |regions: &mut Vec<Area>| {
            let mut drawn = 0u64;
            let seed = RandomState::new();
            let mut random = |below: usize| {
                drawn += 1;
                usize::try_from(seed.hash_one(drawn) % (below.max(1) as u64)).unwrap_or(0)
            };
            policy.lock().choose(pid, regions, &mut random);
        });
        orders.give(&self.server, order, choose);
    }

    fn hint(&self, pid: u32, hint: Hint) {
        let mut hints = self.hints.lock();
        if hints.len() < MOST_HINTS {
            hints.push((pid, hint));
        }
    }

    fn poke(&self) {
        let _stopping = self.stop.lock();
        self.poke.notify_all();
    }

    /// Measures everybody. Returns what counts but can't be moved.
    fn look(
        &self,
        orders: &Orders,
        exactly: bool,
        limits: Limits,
        shares: &mut Shares,
        clients: &mut Vec<Footprint>,
    ) -> u64 {
        clients.clear();
        let pids = self.server.pids();
        let beside = Some(self.beside.load(Ordering::Relaxed)).filter(|pid| *pid != 0 && !pids.contains(pid));
        let most = limits.resident.into_iter().chain(limits.total).filter(|most| *most > 0).min();
        let far = if limits.client.is_some_and(|most| most > 0) {
            0
        } else {
            most.map_or(u64::MAX, |most| most / 3 * 2)
        };
        shares.look(&pids, exactly, far);
        let entries = self.server.inner.entries();
        clients.extend(pids.iter().filter_map(|&pid| {
            let resident = shares.bytes(pid)?;
            let entry = entries.iter().find(|entry| entry.pid == pid);
            let moved_out = entry.map_or(0, |entry| moved_out(&entry.space));
            Some(Footprint { pid, resident, moved_out, busy: orders.is_at(pid), ..Footprint::default() })
        }));
        beside.and_then(|pid| anonymous_bytes(pid).ok()).unwrap_or(0)
    }

    fn moved_out(&self) -> u64 {
        let spaces = self.server.engine().spaces();
        spaces.iter().map(|(_, space)| moved_out(space)).sum()
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

/// Bytes of an address space that were moved out so far.
fn moved_out(space: &Space) -> u64 {
    space.counts().get(Transition::Moved) * page_bytes()
}
