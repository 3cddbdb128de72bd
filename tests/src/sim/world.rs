//! A run: simulated programs on a simulated machine, the real engine in between, and a seed that says who goes next.

use super::machine::{Machine, Setup, State, WINDOW, span_of};
use super::memory::{Shared, SimMemory};
use super::mover::Mover;
use super::page::Pte;
use super::rng::Rng;
use super::server::Server;
use super::store::{Manners, SimStore};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::Space;
use userswap_engine::core::Counts;
use userswap_engine::directory::Part;
use userswap_engine::memory::Batch;
use userswap_engine::shares::Shares;
use userswap_store::{OwnerId, Store};

/// What a run is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Kernel events (system calls, faults, messages, ioctls) before the programs come to an end.
    pub events: u64,
    /// Reading and applying messages excludes deciding and acting. Off only to show what the gate is for.
    pub gate: bool,
    /// A page stays registered for life. Off only to show what that is for.
    pub sentinel: bool,
    /// Steps to remember; 0 for none.
    pub trace: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 500, gate: true, sentinel: true, trace: 0 }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How often each transition was taken, over all address spaces.
    pub counts: Counts,
    /// Kernel events.
    pub events: u64,
    /// Processes there were.
    pub processes: usize,
    /// Accesses that ended in SIGBUS.
    pub sigbus: u64,
    /// What went wrong first.
    pub wrong: Option<String>,
    /// The last steps, if they were to be remembered.
    pub trace: Vec<String>,
}

/// An address space in care.
struct Care {
    space: Arc<Space>,
    proc: usize,
    gate: u32,
    mover: Mover,
    closed: bool,
}

/// A handler thread.
struct Handler {
    server: Server,
    batch: Batch,
    at: usize,
}

/// Everything there is in a run.
pub struct World {
    options: Options,
    rng: Rng,
    machine: Shared,
    store: Arc<SimStore>,
    shares: Arc<Shares>,
    cares: Vec<Care>,
    handlers: Vec<Handler>,
    slot_pages: u32,
    around: u32,
    /// Programs begin nothing new.
    ending: bool,
}

/// Steps a world may take to come to rest before it counts as stuck.
const PATIENCE: u32 = 60_000;

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let ordered = rng.chance(1, 3);
        let slot_pages = rng.between(2, 6);
        let slots = rng.between(1, 4);
        let manners = if rng.chance(1, 2) {
            Manners::GOOD
        } else {
            Manners {
                late: if rng.chance(1, 2) { rng.between(1, 8) } else { 0 },
                fails: if rng.chance(1, 4) { 8 } else { 0 },
                falters: if rng.chance(1, 4) { 4 } else { 0 },
                full: if rng.chance(1, 4) { 4 } else { 0 },
            }
        };
        let setup = Setup {
            ordered,
            sentinel: options.sentinel,
            slot_area: slot_pages * slots,
            children_move: !ordered && rng.chance(1, 2),
            quirks: true,
        };
        let handlers = rng.between(1, 3);
        let around = if rng.chance(1, 4) { 1 } else { rng.between(2, 8) };
        let machine_rng = Rng::new(seed ^ 0x5eed_5eed_5eed_5eed);
        let mut world = Self::of(setup, manners, machine_rng, rng, options, slot_pages, around, handlers);
        world.people();
        world
    }

    #[allow(clippy::too_many_arguments)] // one call for random worlds, one for written ones
    fn of(
        setup: Setup,
        manners: Manners,
        machine_rng: Rng,
        rng: Rng,
        options: Options,
        slot_pages: u32,
        around: u32,
        handlers: u32,
    ) -> Self {
        let machine = Arc::new(Mutex::new(Machine::new(machine_rng, setup, options.trace)));
        let store = SimStore::new(&machine, manners);
        let handlers = (0..handlers)
            .map(|_| Handler { server: Server::new(around), batch: Batch::default(), at: 0 })
            .collect();
        let mut world = Self {
            options,
            rng,
            machine,
            store,
            shares: Arc::new(Shares::default()),
            cares: Vec::new(),
            handlers,
            slot_pages,
            around,
            ending: false,
        };
        let memory = SimMemory::new(&world.machine, 0);
        if options.sentinel {
            memory.watch_sentinel();
        }
        let store: Arc<dyn Store> = Arc::clone(&world.store) as _;
        let shares = Arc::clone(&world.shares);
        let space = Space::new(memory, store, shares, OwnerId(1), slot_pages);
        world.take_care(space, 0);
        world
    }

    /// Threads, and blocks of memory for them to work on.
    fn people(&mut self) {
        let mut machine = self.machine.lock();
        for _ in 0..self.rng.between(2, 3) {
            machine.spawn(0, false);
        }
        if machine.setup.ordered {
            machine.spawn(0, true);
        }
        let mut first = self.rng.below(3);
        while first < WINDOW - 12 {
            let pages = self.rng.between(4, 10);
            machine.mmap(0, first, pages);
            first += pages + self.rng.below(4);
        }
        drop(machine);
        for _ in 0..4 {
            self.manage(0);
        }
    }

    fn take_care(&mut self, space: Arc<Space>, proc: usize) {
        let mover = Mover::new(self.slot_pages, self.around);
        self.cares.push(Care { space, proc, gate: 0, mover, closed: false });
    }

    /// Runs to the end.
    pub fn run(&mut self) {
        let (mut events, mut since) = (0, 0);
        while !self.is_wrong() && events < self.options.events {
            self.step();
            since += 1;
            let now = self.machine.lock().events;
            if now != events {
                (events, since) = (now, 0);
            } else if since > PATIENCE {
                let report = self.who_is_stuck();
                self.fail(|| format!("nothing happens any more: {report}"));
            }
        }
        self.ending = true;
        self.store.behave();
        self.settle("after the programs ended");
        self.look_at_everything();
        self.check_books();
        self.bring_everything_back();
        self.end();
    }

    /// What came of it.
    pub fn outcome(&self) -> Outcome {
        let counts = Counts::default();
        for care in &self.cares {
            counts.add(care.space.counts());
        }
        let mut machine = self.machine.lock();
        Outcome {
            counts,
            events: machine.events,
            processes: machine.procs.len(),
            sigbus: machine.sigbus,
            wrong: machine.wrong.take(),
            trace: machine.trace.take().into_iter().flatten().collect(),
        }
    }

    fn is_wrong(&self) -> bool {
        self.machine.lock().wrong.is_some()
    }

    /// Notes what is wrong, if nothing was before.
    pub fn fail(&self, what: impl FnOnce() -> String) {
        self.machine.lock().fail(what);
    }

    // ---- one step ----

    /// Lets somebody do one step.
    fn step(&mut self) {
        let threads = self.machine.lock().threads.len();
        let handlers = self.handlers.len();
        let sum = threads + 2 * handlers + self.cares.len() + 2;
        let mut who = self.rng.index(sum);
        if who < threads {
            let mut machine = self.machine.lock();
            if machine.can_run(who, self.ending) {
                machine.run(who, self.ending);
            }
            return;
        }
        who -= threads;
        if who < 2 * handlers {
            self.handle(who / 2);
            return;
        }
        who -= 2 * handlers;
        if who < self.cares.len() {
            self.move_on(who);
        } else if who - self.cares.len() == 0 {
            self.store.answer_one();
        } else {
            self.happen();
        }
    }

    /// A handler does one step.
    fn handle(&mut self, handler: usize) {
        let Handler { server, batch, at } = &mut self.handlers[handler];
        if !server.is_idle() {
            let care = &mut self.cares[*at];
            server.step(&care.space, &mut care.gate);
        } else if !batch.faults.is_empty() {
            server.serve(batch.faults.remove(0));
        } else {
            *at = self.rng.index(self.cares.len());
            let care = &self.cares[*at];
            if care.closed {
                return;
            }
            if self.machine.lock().readable(care.proc) {
                if care.gate == 0 || !self.options.gate {
                    self.read(handler);
                }
            } else if care.space.has_parked() && self.rng.chance(1, 4) {
                care.space.unpark(batch);
            }
        }
    }

    /// A handler reads messages and applies the events. Without the gate the two happen at different times.
    fn read(&mut self, handler: usize) {
        let Handler { batch, at, .. } = &mut self.handlers[handler];
        let care = &self.cares[*at];
        if !self.options.gate {
            let mut machine = self.machine.lock();
            if machine.procs[care.proc].read_ahead.is_none() {
                let read = machine.read(care.proc, 4);
                machine.procs[care.proc].read_ahead = Some(read);
                return;
            }
            if self.rng.chance(2, 3) {
                return;
            }
        }
        let children = match care.space.take_messages(batch, Duration::ZERO) {
            Ok(Some(children)) => children,
            Ok(None) => {
                self.machine.lock().fail(|| "a free gate was found held".into());
                return;
            }
            Err(_) => return,
        };
        if batch.faults.is_empty() {
            care.space.unpark(batch);
        }
        let handed = std::mem::take(&mut self.machine.lock().handed);
        for (child, proc) in children.into_iter().zip(handed) {
            self.take_care(child, proc);
        }
    }

    /// A mover does one step, or thinks of something to do.
    fn move_on(&mut self, at: usize) {
        let care = &mut self.cares[at];
        if !care.mover.is_idle() {
            care.mover.step(&care.space, &mut care.gate);
            return;
        }
        if self.ending || care.closed || !self.rng.chance(1, 2) {
            return;
        }
        match self.rng.below(16) {
            0 => self.manage(at),
            1 => {
                if let Some(part) = self.some_part(at) {
                    self.cares[at].mover.bring_back(part);
                }
            }
            2 => care.mover.write_out(&care.space),
            _ => {
                let standing = self.rng.chance(1, 2);
                if let Some(part) = self.some_part(at) {
                    self.cares[at].mover.move_out(part, standing);
                }
            }
        }
    }

    fn some_part(&mut self, at: usize) -> Option<Part> {
        let parts = self.cares[at].space.parts();
        let which = self.rng.index(parts.len());
        parts.into_iter().nth(which)
    }

    /// Takes a mapped run into care.
    fn manage(&mut self, at: usize) {
        let care = &self.cares[at];
        if care.gate > 0 && self.options.gate {
            return;
        }
        let run = {
            let machine = self.machine.lock();
            let pages = &machine.procs[care.proc].pages;
            let start = self.rng.below(WINDOW);
            (0..WINDOW).map(|at| (start + at) % WINDOW).find(|page| pages[*page as usize].is_mapped()).map(
                |first| {
                    let vma = pages[first as usize].vma;
                    let end = (first..WINDOW).find(|page| pages[*page as usize].vma != vma).unwrap_or(WINDOW);
                    (first, end - first)
                },
            )
        };
        if let Some((first, pages)) = run
            && let Some(span) = span_of(first, pages)
        {
            self.machine.lock().note(|| format!("{first}+{pages} of {} is taken into care", care.proc));
            let _ = care.space.manage_new(span);
        }
    }

    /// Things that come from outside: signals, reclaim, the news that a process is gone.
    fn happen(&mut self) {
        let mut machine = self.machine.lock();
        if !self.ending {
            if self.rng.chance(1, 4) && !machine.threads.is_empty() {
                let thread = self.rng.index(machine.threads.len());
                machine.signal(thread);
            }
            let proc = self.rng.index(machine.procs.len());
            machine.take_lazy(proc);
        }
        for care in &mut self.cares {
            if !care.closed && !machine.procs[care.proc].alive && (care.gate == 0 || !self.options.gate) {
                machine.note(|| format!("process {} is let go of", care.proc));
                drop(machine);
                care.space.close();
                care.closed = true;
                return;
            }
        }
    }

    // ---- the end ----

    /// Runs until nobody has anything left to do.
    fn settle(&mut self, when: &str) {
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

    fn who_is_stuck(&self) -> String {
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
    fn look_at_everything(&mut self) {
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
    fn check_books(&self) {
        for care in self.cares.iter().filter(|care| !care.closed) {
            let machine = self.machine.lock();
            let mut out = 0u64;
            let mut known = vec![false; WINDOW as usize];
            // A child may have its own copy of what moved while it was made.
            let may_have_both = machine.setup.ordered && care.proc > 0;
            let mut wrong = None;
            for part in care.space.parts() {
                let shard = part.region.lock();
                for at in 0..part.piece.pages {
                    let page = super::machine::page_at(part.piece.addr) + at;
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
    fn bring_everything_back(&mut self) {
        for at in 0..self.cares.len() {
            if self.is_wrong() || self.cares[at].closed {
                continue;
            }
            for part in self.cares[at].space.parts() {
                self.cares[at].mover.bring_back(part);
                self.settle("bringing everything back");
            }
            let care = &self.cares[at];
            let _ = care.space.slots().reclaim(care.space.memory().as_ref());
            let standing = care.space.usage().standby;
            let machine = self.machine.lock();
            let poisoned =
                machine.procs[care.proc].pages.iter().filter(|entry| entry.pte == Pte::Poison).count();
            drop(machine);
            let out = care.space.usage().out;
            if !self.is_wrong() && (standing > 0 || out > poisoned as u64) {
                self.fail(|| format!("{out} pages of {} stay out, {standing} of them standing", care.proc));
            }
        }
    }

    /// Ends every process; nothing may be left of them.
    fn end(&mut self) {
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
