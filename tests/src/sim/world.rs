//! A run: simulated programs on a simulated machine, the real engine in between, and a seed that says who goes next.

use super::death::{Fate, Mortal, MortalStore};
use super::defect::{Defect, FaultyStore, Seam, forget_a_share};
use super::machine::{Machine, SLOTS, Setup, WINDOW, span_of};
use super::memory::{Shared, SimMemory};
use super::mover::Mover;
use super::rng::Rng;
use super::server::Server;
use super::store::{Manners, SimStore};
use super::successor::{Mortality, lives};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::core::Counts;
use userswap_engine::directory::Part;
use userswap_engine::memory::{Batch, Memory};
use userswap_engine::shares::Shares;
use userswap_engine::{Roster, Space};
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
    /// In some worlds who serves dies, and is succeeded.
    pub deaths: bool,
    /// A mistake the engine is to make.
    pub defect: Option<Defect>,
    /// Steps to remember; 0 for none.
    pub trace: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { events: 500, gate: true, sentinel: true, deaths: true, defect: None, trace: 0 }
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
    /// Deaths of who served them.
    pub deaths: u32,
    /// Accesses that ended in SIGBUS.
    pub sigbus: u64,
    /// What went wrong first.
    pub wrong: Option<String>,
    /// The last steps, if they were to be remembered.
    pub trace: Vec<String>,
}

/// An address space in care.
pub(super) struct Care {
    pub(super) space: Arc<Space>,
    pub(super) proc: usize,
    pub(super) gate: u32,
    /// Those of whom the gate ought to know and doesn't.
    ungated: u32,
    pub(super) mover: Mover,
    pub(super) closed: bool,
    /// Who served it before may have ordered something that is still to be done.
    pub(super) orders_before: bool,
}

/// A handler thread.
pub(super) struct Handler {
    pub(super) server: Server,
    pub(super) batch: Batch,
    at: usize,
}

impl Handler {
    pub(super) fn new(around: u32) -> Self {
        Self { server: Server::new(around), batch: Batch::default(), at: 0 }
    }
}

/// Everything there is in a run.
pub struct World {
    pub(super) options: Options,
    pub(super) rng: Rng,
    pub(super) machine: Shared,
    pub(super) store: Arc<SimStore>,
    pub(super) shares: Arc<Shares>,
    pub(super) cares: Vec<Care>,
    pub(super) handlers: Vec<Handler>,
    pub(super) mortality: Option<Mortality>,
    slot_pages: u32,
    pub(super) around: u32,
    /// Programs begin nothing new.
    pub(super) ending: bool,
}

/// Steps a world may take to come to rest before it counts as stuck.
pub(super) const PATIENCE: u32 = 60_000;

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
        let mut fates = Rng::new(seed ^ 0xdead_dead_dead_dead);
        let mortal = fates.chance(1, 4)
            && options.defect.map_or(options.deaths && options.gate, Defect::is_a_successors);
        let fates = mortal.then_some(fates);
        let mut world =
            Self::of(setup, manners, machine_rng, rng, fates, options, slot_pages, around, handlers);
        world.people();
        world
    }

    #[allow(clippy::too_many_arguments)] // one call for random worlds, one for written ones
    fn of(
        setup: Setup,
        manners: Manners,
        machine_rng: Rng,
        rng: Rng,
        fates: Option<Rng>,
        options: Options,
        slot_pages: u32,
        around: u32,
        handlers: u32,
    ) -> Self {
        let machine = Arc::new(Mutex::new(Machine::new(machine_rng, setup, options.trace)));
        let store = SimStore::new(&machine, manners);
        let handlers = (0..handlers).map(|_| Handler::new(around)).collect();
        let mut world = Self {
            options,
            rng,
            machine,
            store,
            shares: Arc::new(Shares::default()),
            cares: Vec::new(),
            handlers,
            mortality: None,
            slot_pages,
            around,
            ending: false,
        };
        let memory = SimMemory::new(&world.machine, 0);
        if options.sentinel {
            memory.watch_sentinel();
        }
        let mut memory: Arc<dyn Memory> = memory;
        let mut store: Arc<dyn Store> = Arc::clone(&world.store) as _;
        if let Some(rng) = fates {
            match world.mortal(rng) {
                Ok((mortal, of_mortal)) => (memory, store) = (mortal, of_mortal),
                Err(error) => world.fail(|| format!("there is no ledger: {error}")),
            }
        } else if let Some(defect) = options.defect {
            memory = Seam::new(memory, &world.machine, defect);
            store = FaultyStore::new(store, defect);
        }
        let shares = Arc::clone(&world.shares);
        let space = Space::new(memory, store, shares, OwnerId(1), slot_pages);
        world.take_care(space, 0);
        world
    }

    /// The first address space and the store as somebody sees them who may die.
    fn mortal(&mut self, rng: Rng) -> std::io::Result<(Arc<dyn Memory>, Arc<dyn Store>)> {
        let fate = Fate::new(&self.machine, &Roster::create()?, self.options.defect);
        let memory = Mortal::kept(&self.machine, 0, &fate)?;
        if let Some(ledger) = memory.ledger() {
            ledger.enter();
        }
        let store = MortalStore::new(Arc::clone(&self.store) as _, &fate);
        let mortality = self.mortality.insert(Mortality { fate, rng, deaths: 0 });
        mortality.decide();
        Ok((memory, store))
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
            if !lives(|| self.manage(0)) {
                self.succeed();
            }
        }
    }

    pub(super) fn take_care(&mut self, space: Arc<Space>, proc: usize) {
        let mover = Mover::new(self.slot_pages, self.around);
        self.cares.push(Care {
            space,
            proc,
            gate: 0,
            ungated: 0,
            mover,
            closed: false,
            orders_before: false,
        });
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
        if let Some(mortality) = &self.mortality {
            mortality.fate.decide(None);
        }
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
            deaths: self.mortality.as_ref().map_or(0, |mortality| mortality.deaths),
            sigbus: machine.sigbus,
            wrong: machine.wrong.take(),
            trace: machine.trace.take().into_iter().flatten().collect(),
        }
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.machine.lock().wrong.is_some()
    }

    /// Notes what is wrong, if nothing was before.
    pub fn fail(&self, what: impl FnOnce() -> String) {
        self.machine.lock().fail(what);
    }

    // ---- one step ----

    /// Lets somebody do one step, which may be somebody's last.
    pub(super) fn step(&mut self) {
        if self.mortality.is_none() {
            self.step_of_somebody();
        } else if !lives(|| self.step_of_somebody()) {
            self.succeed();
        }
    }

    fn step_of_somebody(&mut self) {
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
            let Care { space, gate, ungated, .. } = care;
            let gate = Defect::gate(self.options.defect, Defect::GateNotHeldByHandlers, gate, ungated);
            server.step(space, gate);
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
            if self.options.defect == Some(Defect::MissedShare) {
                forget_a_share(&child, &self.shares);
            }
            self.take_care(child, proc);
        }
    }

    /// A mover does one step, or thinks of something to do.
    fn move_on(&mut self, at: usize) {
        if self.settle_orders(at) {
            return;
        }
        let care = &mut self.cares[at];
        if !care.mover.is_idle() {
            let Care { space, mover, gate, ungated, .. } = care;
            let gate = Defect::gate(self.options.defect, Defect::GateNotHeldByMovers, gate, ungated);
            mover.step(space, gate);
            return;
        }
        if self.ending || care.closed || !self.rng.chance(1, 2) {
            return;
        }
        let (may_call, slot_area) = {
            let machine = self.machine.lock();
            (machine.setup.children_move && !machine.procs[care.proc].called, machine.setup.slot_area)
        };
        if may_call {
            if let Some(area) = span_of(SLOTS, slot_area) {
                care.space.inherit_slots(area);
            }
            self.machine.lock().procs[care.proc].called = true;
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
            let _ = care.space.manage_new(&[span]);
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
}
