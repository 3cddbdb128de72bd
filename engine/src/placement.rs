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
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use userswap_uffd::class::{Class, can_leave_idle, set_class};
use userswap_uffd::cpu;

/// Faults closer together than this are a burst…
const CLOSE: Duration = Duration::from_millis(1);
/// …once there are so many.
const BURST: u32 = 8;
/// How many faults pass between two looks at where their thread runs: at first, and when it has stayed there for long.
const FOLLOW: u32 = 8;
const SELDOM: u32 = 32;
/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(4);
/// After so many looks without a fault everything goes to rest.
const QUIET: u32 = 5;
/// How long the lead stays out of the idle class after it was starved there: doubled each time, up to sixteen-fold.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What the handlers of one engine share about where they run.
pub(crate) struct Placement {
    /// Whether the idle class may be used at all.
    may_idle: bool,
    handlers: usize,
    lead: AtomicU32,
    /// Handlers that serve now, the lead included.
    awake: AtomicUsize,
    /// Faults served, by all.
    served: AtomicU64,
    /// Counts bursts ended: what a handler knew of its own place is void then.
    parted: AtomicU64,
    lead_cpu: AtomicUsize,
    watch: Mutex<Watch>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Watch {
    close: bool,
    not_before: Option<Instant>,
    back_off: u32,
}

impl Placement {
    pub(crate) fn new(handlers: usize, adapt: bool) -> Self {
        Self {
            may_idle: adapt && can_leave_idle(),
            handlers,
            lead: AtomicU32::new(0),
            awake: AtomicUsize::new(1),
            served: AtomicU64::new(0),
            parted: AtomicU64::new(0),
            lead_cpu: AtomicUsize::new(usize::MAX),
            watch: Mutex::new(Watch::default()),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    /// Called by each handler before it waits for messages. All but the lead sleep here until they are needed, in the normal class.
    pub(crate) fn ready(&self, follower: &mut Follower) {
        let number = follower.number;
        if number == 0 {
            if !follower.introduced {
                follower.introduced = true;
                self.lead.store(cpu::current_thread(), Ordering::Relaxed);
            }
        } else if self.may_idle && self.awake.load(Ordering::Acquire) <= number {
            let _ = set_class(None, Class::Normal);
            let mut watch = self.watch.lock();
            while self.awake.load(Ordering::Acquire) <= number && !self.stop.load(Ordering::Acquire) {
                self.changed.wait(&mut watch);
            }
            drop(watch);
            follower.called(self);
        }
    }

    /// Wakes everybody for good.
    pub(crate) fn stop(&self) {
        let _watch = self.watch.lock();
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether handlers beside the lead serve now.
    pub(crate) fn is_shared(&self) -> bool {
        self.awake.load(Ordering::Relaxed) > 1
    }

    /// A handler served a batch.
    pub(crate) fn served(&self, count: u64) {
        self.served.fetch_add(count, Ordering::Relaxed);
    }

    /// The watchdog's thread. `waiting` tells whether faults wait unread.
    pub(crate) fn watch(&self, waiting: impl Fn() -> bool) {
        let mut watch = self.watch.lock();
        let (mut seen, mut quiet, mut lonely) = (0, 0, 0);
        while !self.stop.load(Ordering::Acquire) {
            if !watch.close {
                self.changed.wait(&mut watch);
                (quiet, lonely) = (0, 0);
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
            lonely = if self.is_shared() { lonely + 1 } else { 0 };
            if lonely >= 2 * QUIET {
                // Try how one does; if several threads still fault at once, the others are back soon.
                self.awake.store(1, Ordering::Release);
                lonely = 0;
            }
        }
    }

    /// Ends the burst: the lead is an ordinary thread again.
    fn part(&self, watch: &mut Watch, starved: bool) {
        watch.close = false;
        self.parted.fetch_add(1, Ordering::AcqRel);
        self.awake.store(1, Ordering::Release);
        let lead = Some(self.lead.load(Ordering::Relaxed));
        let _ = set_class(lead, Class::Normal);
        let _ = cpu::unpin(lead);
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
        let _watch = self.watch.lock();
        let awake = self.awake.load(Ordering::Relaxed);
        if awake < self.handlers {
            self.awake.store(awake + 1, Ordering::Release);
            self.changed.notify_all();
        }
    }
}

/// What a handler remembers of the faults it serves.
pub(crate) struct Follower {
    number: usize,
    /// The lead has said which thread it is.
    introduced: bool,
    last: Option<Instant>,
    burst: u32,
    since_look: u32,
    /// Faults until the next look: more and more while the thread stays where it is.
    until_look: u32,
    cpu: Option<usize>,
    parted: u64,
    thread: Option<u32>,
    alternations: u32,
}

impl Follower {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            introduced: false,
            last: None,
            burst: 0,
            since_look: 0,
            until_look: FOLLOW,
            cpu: None,
            parted: 0,
            thread: None,
            alternations: 0,
        }
    }

    /// A handler beside the lead was called: it takes another CPU than the lead's, in the idle class like it.
    pub(crate) fn called(&mut self, placement: &Placement) {
        let lead = placement.lead_cpu.load(Ordering::Relaxed);
        let others: Vec<usize> =
            cpu::allowed(None).unwrap_or_default().into_iter().filter(|cpu| *cpu != lead).collect();
        if let Some(&cpu) = others.get((self.number - 1) % others.len().max(1)) {
            let _ = cpu::pin(None, &[cpu]);
        }
        let _ = set_class(None, Class::Idle);
    }

    /// Faults are about to be served. Decides whether to move nearer to who raised them.
    pub(crate) fn note(&mut self, placement: &Placement, faults: &[Fault]) {
        let Some(fault) = faults.last() else { return };
        placement.served(faults.len() as u64);
        if !placement.may_idle || self.number > 0 {
            return;
        }
        let now = Instant::now();
        let close = self.last.is_some_and(|last| now - last < CLOSE);
        self.last = Some(now);
        self.burst = if close { self.burst.saturating_add(1) } else { 0 };
        let (true, Some(thread)) = (self.burst >= BURST, fault.thread) else { return };
        if !placement.close() {
            return;
        }
        let parted = placement.parted.load(Ordering::Acquire);
        if parted != self.parted {
            self.parted = parted;
            self.cpu = None;
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
        if !placement.is_shared() {
            self.follow(placement, thread);
        }
    }

    fn follow(&mut self, placement: &Placement, thread: u32) {
        self.since_look += 1;
        if self.cpu.is_some() && self.since_look < self.until_look {
            return;
        }
        self.since_look = 0;
        let Ok(cpu) = cpu::last_cpu_of(thread, thread) else { return };
        if self.cpu == Some(cpu) {
            self.until_look = (self.until_look * 2).min(SELDOM);
        } else if cpu::pin(None, &[cpu]).is_ok() {
            self.cpu = Some(cpu);
            self.until_look = FOLLOW;
            placement.lead_cpu.store(cpu, Ordering::Relaxed);
        }
    }
}
