//! Threads that write out what movers leave to them.
//!
//! They are of the normal class: a mover waits for the slots they have taken, and a program that is held back for want of memory waits for the
//! mover. Without anything to write they sleep.

use super::Shared;
use parking_lot::{Condvar, Mutex};

/// Which address spaces have something to be written out.
#[derive(Default)]
pub(super) struct Writers {
    called: Mutex<Called>,
    bell: Condvar,
}

#[derive(Default)]
struct Called {
    spaces: Vec<u64>,
    stop: bool,
}

impl Writers {
    /// Calls one of them to an address space.
    pub(super) fn call(&self, id: u64) {
        let mut called = self.called.lock();
        if !called.spaces.contains(&id) {
            called.spaces.push(id);
            self.bell.notify_one();
        }
    }

    /// They end, what they have in hand aside.
    pub(super) fn stop(&self) {
        self.called.lock().stop = true;
        self.bell.notify_all();
    }

    /// Waits for a call.
    fn next(&self) -> Option<u64> {
        let mut called = self.called.lock();
        while !called.stop {
            if let Some(id) = called.spaces.pop() {
                return Some(id);
            }
            self.bell.wait(&mut called);
        }
        None
    }
}

impl Shared {
    /// The loop of one writer.
    pub(super) fn write(&self) {
        let mut work = None;
        while let Some(id) = self.writers.next() {
            let space = self.spaces.read().get(&id).cloned();
            if let Some(space) = space {
                space.write_for_others(&mut work);
            }
        }
    }
}
