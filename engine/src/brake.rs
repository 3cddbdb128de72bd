//! Holding back what comes in faster than it can be moved out.
//!
//! Bringing a page back costs less than moving one out, so a program that goes round in more memory than it may have would
//! outrun whoever moves out behind it. While the brake is on, its faults wait a moment before they are served.

use crate::memory::Fault;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A brake on one address space's faults.
#[derive(Default)]
pub(crate) struct Brake {
    /// How long a fault waits; 0 while the brake is off.
    delay_us: AtomicU32,
    /// So long faults wait for their turn, whether or not it is on.
    turn_us: AtomicU32,
    holds: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// When all of them go on: a moment after the first of them came.
    until: Option<Instant>,
    faults: Vec<Fault>,
}

/// No fault waits longer.
const LONGEST: Duration = Duration::from_millis(20);

impl Brake {
    /// How long faults wait from now on, 20 ms at most; not at all with zero.
    pub(crate) fn set(&self, delay: Duration) {
        store(&self.delay_us, delay);
    }

    /// How long faults wait until it is their address space's turn, 20 ms at most. That isn't for others to help with.
    pub(crate) fn set_turn(&self, wait: Duration) {
        store(&self.turn_us, wait);
    }

    /// Keeps faults that were just read, if the brake is on.
    pub(crate) fn hold(&self, faults: &mut Vec<Fault>) {
        let delay = self.delay_us.load(Ordering::Relaxed).max(self.turn_us.load(Ordering::Relaxed));
        if delay == 0 || faults.is_empty() {
            return;
        }
        self.hold_at(faults, Duration::from_micros(delay.into()), Instant::now());
    }

    fn hold_at(&self, faults: &mut Vec<Fault>, delay: Duration, now: Instant) {
        let mut held = self.held.lock();
        held.until.get_or_insert(now + delay);
        for fault in faults.drain(..) {
            // A signal makes the same fault arrive again.
            if !held.faults.iter().any(|other| other.addr == fault.addr && other.thread == fault.thread) {
                held.faults.push(fault);
            }
        }
        self.holds.store(true, Ordering::Release);
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.delay_us.load(Ordering::Relaxed) > 0
    }

    /// Whether faults are being kept.
    pub(crate) fn holds(&self) -> bool {
        self.holds.load(Ordering::Acquire)
    }

    /// Gives back the faults whose time has come.
    pub(crate) fn release(&self, faults: &mut Vec<Fault>) {
        if self.holds() {
            self.release_at(faults, Instant::now());
        }
    }

    fn release_at(&self, faults: &mut Vec<Fault>, now: Instant) {
        let mut held = self.held.lock();
        if held.until.is_some_and(|until| now < until) {
            return;
        }
        held.until = None;
        faults.append(&mut held.faults);
        self.holds.store(false, Ordering::Release);
    }

    /// Forgets them: the address space is gone.
    pub(crate) fn clear(&self) {
        let mut held = self.held.lock();
        held.faults.clear();
        held.until = None;
        self.holds.store(false, Ordering::Release);
    }
}

fn store(us: &AtomicU32, delay: Duration) {
    let delay = u32::try_from(delay.min(LONGEST).as_micros()).unwrap_or(0);
    if us.load(Ordering::Relaxed) != delay {
        us.store(delay, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(addr: u64) -> Fault {
        Fault { addr, write: false, thread: Some(1) }
    }

    #[test]
    fn nothing_is_kept_while_it_is_off() {
        let brake = Brake::default();
        let mut faults = vec![fault(0x1000)];
        brake.hold(&mut faults);
        assert_eq!((faults.len(), brake.holds()), (1, false));
    }

    #[test]
    fn faults_go_on_together_a_moment_after_the_first() {
        let (brake, start, delay) = (Brake::default(), Instant::now(), Duration::from_millis(1));
        let mut out = Vec::new();
        brake.hold_at(&mut vec![fault(0x1000)], delay, start);
        brake.hold_at(&mut vec![fault(0x2000), fault(0x1000)], delay, start + delay / 2);
        brake.release_at(&mut out, start + delay / 2);
        assert!(out.is_empty() && brake.holds());
        brake.release_at(&mut out, start + delay);
        assert_eq!(out, [fault(0x1000), fault(0x2000)]);
        assert!(!brake.holds());
    }

    #[test]
    fn the_longer_of_the_waits_counts_and_a_turn_isnt_the_brake() {
        let brake = Brake::default();
        brake.set_turn(Duration::from_millis(5));
        let mut faults = vec![fault(0x1000)];
        brake.hold(&mut faults);
        assert!(faults.is_empty() && brake.holds() && !brake.is_on());
        brake.clear();
        brake.set_turn(Duration::ZERO);
        let mut faults = vec![fault(0x1000)];
        brake.hold(&mut faults);
        assert_eq!(faults.len(), 1);
    }

    #[test]
    fn who_is_kept_is_let_go_after_it_was_taken_off() {
        let (brake, start) = (Brake::default(), Instant::now());
        brake.set(Duration::from_secs(1));
        assert_eq!(brake.delay_us.load(Ordering::Relaxed), 20_000);
        brake.hold_at(&mut vec![fault(0x1000)], LONGEST, start);
        brake.set(Duration::ZERO);
        let mut out = Vec::new();
        brake.release_at(&mut out, start + LONGEST);
        assert_eq!(out, [fault(0x1000)]);
    }
}
