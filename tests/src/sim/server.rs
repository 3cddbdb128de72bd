//! The engine's fault path, one step at a time.

use std::sync::Arc;
use userswap_engine::Space;
use userswap_engine::fault::{FaultWork, Next};
use userswap_engine::memory::Fault;

/// Serves one fault at a time, a step at a call.
pub struct Server {
    work: FaultWork,
    fault: Option<Fault>,
    next: Next,
    holds: bool,
}

impl Server {
    /// With at most `around` pages brought in together.
    pub fn new(around: u32) -> Self {
        Self { work: FaultWork::new(around), fault: None, next: Next::Done, holds: false }
    }

    /// Begins to serve a fault.
    pub fn serve(&mut self, fault: Fault) {
        self.fault = Some(fault);
        self.next = Next::Again;
    }

    /// Whether there is nothing left to do.
    pub fn is_idle(&self) -> bool {
        self.next == Next::Done
    }

    /// One step. `gate` counts who holds the space's gate.
    pub fn step(&mut self, space: &Arc<Space>, gate: &mut u32) {
        match self.next {
            Next::Again => {
                let Some(fault) = self.fault else {
                    self.next = Next::Done;
                    return;
                };
                self.hold(gate);
                let directory = space.shared();
                self.next = self.work.begin(space, &directory, fault);
                drop(directory);
                if self.next != Next::Zero {
                    self.let_go(space, gate);
                }
            }
            Next::Zero => {
                self.next = self.work.zero(space);
                self.let_go(space, gate);
            }
            Next::Load => self.next = self.work.load(space),
            Next::Install => {
                self.hold(gate);
                self.next = self.work.install(space);
            }
            Next::Record => self.next = self.work.record(space),
            Next::End => {
                self.hold(gate);
                self.next = self.work.end(space);
                self.let_go(space, gate);
            }
            Next::Done => {}
        }
    }

    fn hold(&mut self, gate: &mut u32) {
        if !self.holds {
            self.holds = true;
            *gate += 1;
        }
    }

    fn let_go(&mut self, space: &Space, gate: &mut u32) {
        if self.holds {
            self.holds = false;
            *gate -= 1;
        }
        self.work.settle(space);
    }
}
