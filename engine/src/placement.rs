//! Where the handlers run.
//!
//! On a machine where waking another CPU is dear (every virtual one), a fault served on the CPU it happened on costs a fifth
//! to a seventh of one served elsewhere, and no code in the handler makes up for that. Left alone, the scheduler always separates the two:
//! the woken handler goes to an idle CPU, and so does the thread it wakes. Hence, while faults come in quick succession:
//!
//! - the **lead** handler is pinned to the CPU the faulting thread last ran on and follows it;
//! - it is in the **idle class**: to the scheduler its CPU is then free, and the thread it wakes stays there;
//! - a **watchdog** of normal class looks every few milliseconds whether faults wait without progress (a busy CPU starves the idle class),
//!   and if so puts the lead back into the normal class for a while;
//! - when several threads fault at once, further handlers are got out of bed, one a CPU.
//!
//! At rest there is one handler, in the normal class, asleep; nothing ticks. Without the privilege to leave the idle class the lead follows
//! only. Figures are in `docs/performance.md`.

use crate::memory::Fault;
use crate::steer::Steering;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use userswap_uffd::class::{Class, can_leave_idle, set_class};
use userswap_uffd::cpu;

/// Faults closer together than this are a burst…
const CLOSE: Duration = Duration::from_millis(1);
/// …once there are so many.
const BURST: u32 = 8;
/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(4);
/// After so many looks without a fault everything goes to rest.
const QUIET: u32 = 5;
/// How soon a helper is called again, at least: doubled for each that found nothing to do, up to 256-fold.
const CALL_AGAIN: Duration = Duration::from_millis(1);
/// How long the lead stays out of the idle class after it was starved there: doubled each time, up to sixteen-fold.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What the handlers of one engine share about where they run.
pub(crate) struct Placement {
    /// Whether the idle class may be used at all.
    may_idle: bool,
    /// The handlers' thread numbers, the lead's first.
    threads: Vec<AtomicU32>,
    /// Which of them serves whom.
    pub(crate) steering: Steering,
    /// Handlers beside the lead that serve now.
    helpers: AtomicUsize,
    /// Faults served, by all.
    served: AtomicU64,
    busy: AtomicU64,
    watch: Mutex<Watch>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Watch {
    close: bool,
    not_before: Option<Instant>,
    back_off: u32,
    /// Which handlers are called to help.
    called: Vec<bool>,
    /// Helpers that found nothing to do, one after the other: the more, the longer until the next is called.
    idlers: u32,
    no_call_before: Option<Instant>,
}

impl Placement {
    pub(crate) fn new(handlers: usize, adapt: bool) -> Self {
        Self {
            may_idle: adapt && can_leave_idle(),
            threads: (0..handlers).map(|_| AtomicU32::new(0)).collect(),
            steering: Steering::new(handlers),
            helpers: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            watch: Mutex::new(Watch { called: vec![false; handlers], ..Watch::default() }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    /// A handler begins.
    pub(crate) fn begin(&self, handler: usize) {
        self.threads[handler].store(cpu::current_thread(), Ordering::Relaxed);
    }

    /// Whether a handler serves only when it is called: all but the lead, where placement adapts.
    pub(crate) fn is_helper(&self, handler: usize) -> bool {
        handler > 0 && self.may_idle
    }

    /// A helper has nothing to do: it sleeps until it is called, in the normal class. `useful`: it had something to do since it was. It then takes a CPU
    /// that no other handler has, in the idle class like the lead.
    pub(crate) fn rest(&self, handler: usize, useful: bool) {
        let _ = set_class(None, Class::Normal);
        let mut watch = self.watch.lock();
        if std::mem::replace(&mut watch.called[handler], false) {
            self.helpers.fetch_sub(1, Ordering::AcqRel);
            watch.idlers = if useful { 0 } else { (watch.idlers + 1).min(8) };
            watch.no_call_before = Some(Instant::now() + CALL_AGAIN * (1 << watch.idlers));
        }
        while !watch.called[handler] && !self.stop.load(Ordering::Acquire) {
            self.changed.wait(&mut watch);
        }
        let taken: Vec<usize> =
            (0..self.threads.len()).filter_map(|other| self.steering.seat(other)).collect();
        let free = cpu::allowed(None).unwrap_or_default().into_iter().find(|cpu| !taken.contains(cpu));
        if let Some(cpu) = free
            && cpu::pin(None, &[cpu]).is_ok()
        {
            self.steering.sits(handler, Some(cpu));
        }
        drop(watch);
        let _ = set_class(None, Class::Idle);
    }

    /// Keeps this thread, of the normal class, off the CPU that the lead serves from, who would have to wait for it. `off` is where it keeps off already.
    pub(crate) fn keep_off(&self, off: &mut Option<usize>) {
        let seat = self.steering.seat(0);
        if *off == seat {
            return;
        }
        *off = seat;
        let _ = cpu::unpin(None);
        if let Some(seat) = seat {
            let others = cpu::allowed(None).unwrap_or_default().into_iter().filter(|cpu| *cpu != seat);
            let _ = cpu::pin(None, &others.collect::<Vec<_>>());
        }
    }

    /// Wakes everybody for good.
    pub(crate) fn stop(&self) {
        let _watch = self.watch.lock();
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Does something in the normal class, from the idle class.
    pub(crate) fn out_of_idle(&self, work: impl FnOnce()) {
        let _ = set_class(None, Class::Normal);
        work();
        let _ = set_class(None, Class::Idle);
    }

    /// An address space has faults.
    pub(crate) fn busy_in(&self, space: u64) {
        if self.busy.load(Ordering::Relaxed) != space {
            self.busy.store(space, Ordering::Relaxed);
        }
    }

    /// The last address space that had faults.
    pub(crate) fn busy_space(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Whether handlers beside the lead serve now.
    pub(crate) fn is_shared(&self) -> bool {
        self.helpers.load(Ordering::Relaxed) > 0
    }

    /// A handler serves a fault.
    pub(crate) fn serves(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// The watchdog's thread. `waiting` tells whether faults wait unread.
    pub(crate) fn watch(&self, waiting: impl Fn() -> bool) {
        let mut watch = self.watch.lock();
        let (mut seen, mut quiet) = (0, 0);
        let mut stuck: Vec<(usize, u64)> = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            if !watch.close {
                self.changed.wait(&mut watch);
                quiet = 0;
                continue;
            }
            self.changed.wait_for(&mut watch, TICK);
            let served = self.served.load(Ordering::Relaxed);
            let progress = served != seen;
            seen = served;
            if progress {
                quiet = 0;
            } else if waiting() {
                // Perhaps just now; a moment later it is certain that the idle class doesn't get the CPU.
                self.changed.wait_for(&mut watch, TICK / 4);
                if watch.close && self.served.load(Ordering::Relaxed) == seen && waiting() {
                    self.part(&mut watch, true);
                }
            } else {
                quiet += 1;
                if quiet >= QUIET {
                    self.part(&mut watch, false);
                }
            }
            let before = std::mem::replace(&mut stuck, self.steering.pending().collect());
            if watch.close && before.iter().any(|post| stuck.contains(post)) {
                // Others make progress, and one that was left a fault doesn't.
                self.part(&mut watch, true);
            }
        }
    }

    /// Ends the burst: handlers are ordinary threads again.
    fn part(&self, watch: &mut Watch, starved: bool) {
        watch.close = false;
        for (handler, thread) in self.threads.iter().enumerate() {
            let thread = Some(thread.load(Ordering::Relaxed)).filter(|thread| *thread != 0);
            self.steering.sits(handler, None);
            if thread.is_some() {
                let _ = set_class(thread, Class::Normal);
                let _ = cpu::unpin(thread);
            }
        }
        self.steering.forget();
        if starved {
            watch.not_before = Some(Instant::now() + BACK_OFF * (1 << watch.back_off.min(4)));
            watch.back_off += 1;
        } else {
            watch.back_off = 0;
        }
    }

    /// Begins a burst, if one may: the calling lead goes into the idle class.
    fn close(&self) -> bool {
        let mut watch = self.watch.lock();
        if watch.not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        if !watch.close {
            if set_class(None, Class::Idle).is_err() {
                return false;
            }
            watch.close = true;
            self.changed.notify_all();
        }
        true
    }

    /// Gets one more handler out of bed.
    fn call_another(&self) {
        let mut watch = self.watch.lock();
        if !watch.close || watch.no_call_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let resting = (1..self.threads.len()).find(|handler| !watch.called[*handler]);
        if let Some(handler) = resting {
            watch.called[handler] = true;
            self.helpers.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_all();
        }
    }
}

/// What a handler remembers of the faults it serves.
pub(crate) struct Follower {
    number: usize,
    last: Option<Instant>,
    burst: u32,
    /// The thread served last.
    thread: Option<u32>,
    alternations: u32,
    /// Who faulted last, and since when nobody else did.
    row: Option<(Option<u32>, Instant)>,
    alone: bool,
}

/// A thread is taken to be the only one after so long.
const ALONE: Duration = Duration::from_millis(4);

impl Follower {
    pub(crate) fn new(number: usize) -> Self {
        Self { number, last: None, burst: 0, thread: None, alternations: 0, row: None, alone: false }
    }

    /// Faults are about to be served. Decides whether to move nearer to who raised them.
    pub(crate) fn note(&mut self, placement: &Placement, faults: &[Fault]) {
        let Some(fault) = faults.last() else { return };
        let now = Instant::now();
        let (thread, since) = self.row.unwrap_or((fault.thread, now));
        let again = faults.iter().all(|fault| fault.thread == thread);
        self.row = Some((fault.thread, if again { since } else { now }));
        self.alone = again && now - since >= ALONE;
        if !placement.may_idle || self.number > 0 {
            return;
        }
        let close = self.last.is_some_and(|last| now - last < CLOSE);
        self.last = Some(now);
        self.burst = if close { self.burst.saturating_add(1) } else { 0 };
        let (true, Some(thread)) = (self.burst >= BURST, fault.thread) else { return };
        if !placement.close() {
            return;
        }
        if self.thread.replace(thread).is_some_and(|before| before != thread) {
            self.alternations += 1;
            if self.alternations >= BURST {
                self.alternations = 0;
                placement.call_another();
            }
        } else if self.burst.is_multiple_of(BURST) {
            self.alternations = self.alternations.saturating_sub(1);
        }
        if !self.is_close(placement) {
            self.follow(placement);
        }
    }

    /// Whether it serves a burst from the CPU where the faults happen: then the thread it wakes runs at once, in its stead, and the
    /// next look for messages is made when that thread has stopped again, most often for its next fault.
    pub(crate) fn is_close(&self, placement: &Placement) -> bool {
        placement.steering.seat(self.number).is_some()
    }

    /// Whether one thread faults, and the other CPUs need no handlers.
    pub(crate) fn is_alone(&self, placement: &Placement) -> bool {
        self.alone && !placement.is_shared()
    }

    /// It was woken, or has woken a thread, and there is nothing to read. Had the thread stayed on this CPU, it would be running now: it may
    /// have been put on another. This is the time to see, while nobody waits.
    pub(crate) fn idle(&mut self, placement: &Placement) {
        if self.is_close(placement) && !placement.is_shared() {
            self.follow(placement);
        }
    }

    /// Goes where the thread served last is.
    fn follow(&mut self, placement: &Placement) {
        let Some(thread) = self.thread else { return };
        let Some(cpu) = placement.steering.look(self.number, thread) else { return };
        if placement.steering.seat(self.number) != Some(cpu) && cpu::pin(None, &[cpu]).is_ok() {
            placement.steering.sits(self.number, Some(cpu));
        }
    }
}
