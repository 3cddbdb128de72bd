//! The end of a run: everything comes to rest, everything is looked at, everything comes back, everybody leaves.

use super::machine::{State, WINDOW, page_at};
use super::page::Pte;
use super::world::{PATIENCE, World};
use userswap_engine::Space;
use userswap_engine::core::{PageIndex, PageState};

/// How often what is out is asked for at the end.
const TRIES: u32 = 8;

impl World {
    /// Runs until nobody has anything left to do.
    pub(super) fn settle(&mut self, when: &str) {
        for step in 0..PATIENCE {
            if step % 16 == 0 && (self.is_wrong() || self.is_quiet()) {
                return;
            }
            self.step();
        }
        let report = self.who_is_stuck();
        self.fail(|| format!("{when} the world does not come to rest: {report}"));
    }

    fn is_quiet(&self) -> bool {
        let machine = self.machine.lock();
        self.handlers.iter().all(|handler| handler.server.is_idle() && handler.batch.faults.is_empty())
            && self.store.awaited() == 0
            && (0..machine.threads.len()).all(|thread| {
                matches!(machine.threads[thread].state, State::Idle | State::Dead)
                    && !machine.can_run(thread, true)
            })
            && self.cares.iter().all(|care| {
                let proc = &machine.procs[care.proc];
                care.mover.is_idle()
                    && care.closed != proc.alive
                    && (care.closed || !care.space.has_parked() && !machine.readable(care.proc))
            })
    }

    pub(super) fn who_is_stuck(&self) -> String {
        let machine = self.machine.lock();
        let mut stuck = Vec::new();
        for (number, thread) in machine.threads.iter().enumerate() {
            if !matches!(thread.state, State::Idle | State::Dead) {
                stuck.push(format!("thread {number} of {} is {:?}", thread.proc, thread.state));
            }
        }
        for care in &self.cares {
            let proc = &machine.procs[care.proc];
            if !care.closed && (care.space.has_parked() || !care.mover.is_idle() || proc.changing > 0) {
                stuck.push(format!(
                    "address space {}: parked {}, mover waits {}, gate {}, changing {}",
                    care.proc,
                    care.space.has_parked(),
                    care.mover.waits(),
                    care.gate,
                    proc.changing,
                ));
            }
        }
        let serving = self.handlers.iter().filter(|handler| !handler.server.is_idle()).count();
        if serving > 0 {
            stuck.push(format!("{serving} handlers serve a fault"));
        }
        if self.store.awaited() > 0 {
            stuck.push(format!("{} fetches are awaited", self.store.awaited()));
        }
        stuck.join("; ")
    }

    /// Has every mapped page of every process read.
    pub(super) fn look_at_everything(&mut self) {
        for page in 0..WINDOW {
            if self.is_wrong() {
                return;
            }
            let mut asked = false;
            {
                let mut machine = self.machine.lock();
                for proc in 0..machine.procs.len() {
                    if !machine.procs[proc].alive || !machine.procs[proc].pages[page as usize].is_mapped() {
                        continue;
                    }
                    let reader =
                        machine.threads.iter().position(|thread| thread.proc == proc && !thread.agent);
                    if let Some(reader) = reader {
                        machine.read_page(reader, page);
                        asked = true;
                    }
                }
            }
            // Only now and then: faults that come together are served together.
            if asked && (page % 8 == 7 || !self.rng.chance(1, 2)) {
                self.settle("looking at everything");
            } else {
                self.run_readers();
            }
        }
        self.settle("having looked at everything");
    }

    /// Lets the readers finish before they are asked for the next page.
    fn run_readers(&mut self) {
        for _ in 0..PATIENCE {
            let done = {
                let machine = self.machine.lock();
                machine.wrong.is_some()
                    || machine.threads.iter().all(|thread| matches!(thread.state, State::Idle | State::Dead))
            };
            if done {
                return;
            }
            self.step();
        }
    }

    /// With everything at rest the books and the machine must agree.
    pub(super) fn check_books(&self) {
        for care in self.cares.iter().filter(|care| !care.closed) {
            let machine = self.machine.lock();
            let mut out = 0u64;
            let mut known = vec![false; WINDOW as usize];
            // A child may have its own copy of what moved while it was made; and what arrived at its bringer's death is noticed when it is asked for.
            let may_have_both = machine.setup.ordered && care.proc > 0
                || self.mortality.as_ref().is_some_and(|mortality| mortality.deaths > 0);
            let mut wrong = None;
            for part in care.space.parts() {
                let shard = part.region.lock();
                for at in 0..part.piece.pages {
                    let page = page_at(part.piece.addr) + at;
                    let state = shard.state(part.piece.first.plus(at));
                    let entry = machine.procs[care.proc].pages[page as usize];
                    known[page as usize] = state.is_out();
                    out += u64::from(state.is_out());
                    let both = matches!(entry.pte, Pte::Present(_)) && state.is_out();
                    if both && !may_have_both {
                        wrong = Some(format!("page {page} of {} is there and {state:?}", care.proc));
                    }
                    if state.is_out() && !entry.away && !may_have_both {
                        wrong = Some(format!("page {page} of {} never left and is {state:?}", care.proc));
                    }
                }
            }
            let lost = machine.procs[care.proc].pages[..WINDOW as usize]
                .iter()
                .zip(&known)
                .position(|(entry, known)| entry.away && !known && entry.pte == Pte::None);
            drop(machine);
            if let Some(page) = lost {
                wrong = Some(format!("page {page} of {} is out and nobody knows", care.proc));
            }
            let usage = care.space.usage();
            if usage.out != out {
                wrong = Some(format!("{} pages of {} are out, the sum says {}", out, care.proc, usage.out));
            }
            if let Some(wrong) = wrong {
                self.fail(|| wrong);
            }
        }
    }

    /// Brings back what is out.
    pub(super) fn bring_everything_back(&mut self) {
        for at in 0..self.cares.len() {
            if self.is_wrong() || self.cares[at].closed {
                continue;
            }
            // What the kernel refuses for want of memory is asked for again, as the engine does.
            for _ in 0..TRIES {
                for part in self.cares[at].space.parts() {
                    self.cares[at].mover.bring_back(part);
                    self.settle("bringing everything back");
                }
                if self.is_wrong() || still_out(&self.cares[at].space).is_empty() {
                    break;
                }
            }
            let care = &self.cares[at];
            let _ = care.space.reclaim_slots();
            let standing = care.space.usage().standby;
            let out = still_out(&care.space);
            if !self.is_wrong() && (standing > 0 || !out.is_empty()) {
                self.fail(|| {
                    format!("of {}, {standing} pages stay standing, and out stays {out}", care.proc)
                });
            }
        }
    }

    /// Ends every process; nothing may be left of them.
    pub(super) fn end(&mut self) {
        if self.is_wrong() {
            return;
        }
        for at in 0..self.cares.len() {
            self.machine.lock().exit(self.cares[at].proc);
        }
        self.settle("after everybody left");
        let (stored, shared) = (self.store.len(), self.shares.len());
        if stored > 0 {
            self.fail(|| format!("{stored} stored pages are left when nobody is"));
        }
        if shared > 0 {
            self.fail(|| format!("{shared} pages are shared when nobody is left"));
        }
        for care in &self.cares {
            let (standing, gate) = (care.space.usage().standby, care.gate);
            if standing > 0 || gate > 0 {
                self.fail(|| format!("address space {}: {standing} pages stand, gate {gate}", care.proc));
            }
        }
    }
}

/// The pages that are out and not poisoned, with their addresses and states.
fn still_out(space: &Space) -> String {
    let mut out = Vec::new();
    for part in space.parts() {
        let shard = part.region.lock();
        for page in (0..shard.len()).map(PageIndex) {
            let state = shard.state(page);
            if !state.is_out() || matches!(state, PageState::Poisoned(_)) {
                continue;
            }
            let addr = shard.address(page).map(|(addr, _)| page_at(addr));
            out.push(format!("{page:?} of {:?} at {addr:?}: {state:?}", shard.id()));
        }
    }
    out.join(", ")
}
