//! Threads that do what somebody else can go on without: they write out what movers leave to them, and bring in early what comes next.
//!
//! They are of the normal class: a mover waits for the slots they have taken, and a program for the mover. Without anything to do they sleep.

use super::Shared;
use crate::fault::FaultWork;
use crate::space::Errand;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// What is to be done for which address space.
#[derive(Default)]
pub(super) struct Workers {
    called: Mutex<Called>,
    bell: Condvar,
}

struct Called {
    errands: VecDeque<(u64, Errand)>,
    stop: bool,
}

impl Default for Called {
    fn default() -> Self {
        // Whoever serves a fault calls, and must not allocate.
        Self { errands: VecDeque::with_capacity(MOST), stop: false }
    }
}

/// More than this waits only to be late.
const MOST: usize = 16;

impl Workers {
    /// Calls one of them.
    pub(super) fn call(&self, id: u64, errand: Errand) {
        let mut called = self.called.lock();
        if called.errands.len() < MOST && !called.errands.contains(&(id, errand)) {
            called.errands.push_back((id, errand));
            self.bell.notify_one();
        }
    }

    /// They end, what they have in hand aside.
    pub(super) fn stop(&self) {
        self.called.lock().stop = true;
        self.bell.notify_all();
    }

    /// Waits for a call.
    fn next(&self) -> Option<(u64, Errand)> {
        let mut called = self.called.lock();
        while !called.stop {
            if let Some(errand) = called.errands.pop_front() {
                return Some(errand);
            }
            self.bell.wait(&mut called);
        }
        None
    }
}

impl Shared {
    /// The loop of one worker.
    pub(super) fn work(&self) {
        let mut writing = None;
        let mut bringing = FaultWork::new(self.around);
        let mut off = None;
        while let Some((id, errand)) = self.workers.next() {
            self.placement.keep_off(&mut off);
            let Some(space) = self.spaces.read().get(&id).cloned() else { continue };
            space.spent().on(|| match errand {
                Errand::Write => space.write_for_others(&mut writing),
                Errand::Ahead(addr, called_off) => space.bring_ahead(&mut bringing, addr, called_off),
            });
        }
    }
}
