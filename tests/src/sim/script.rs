//! A run whose every step is written down, for a story that chance would take long to tell.

use super::machine::{Machine, Setup, State, span_of};
use super::memory::{Shared, SimMemory};
use super::mover::Mover;
use super::rng::Rng;
use super::server::Server;
use super::store::{Manners, SimStore};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::Space;
use userswap_engine::directory::Part;
use userswap_engine::memory::{Batch, Fault};
use userswap_engine::shares::Shares;
use userswap_store::{OwnerId, Store};

/// One process, two handlers, one mover; nothing happens unless it is written.
pub struct Script {
    machine: Shared,
    space: Arc<Space>,
    children: Vec<Arc<Space>>,
    batch: Batch,
    faults: VecDeque<Fault>,
    handlers: [Server; 2],
    mover: Mover,
    gate: u32,
    gated: bool,
}

/// Pages of a slot.
const SLOT_PAGES: u32 = 8;
/// Steps that bring anything to its end.
const ENOUGH: u32 = 10_000;

impl Script {
    /// A process with `threads` threads. Without `gated` messages are read and applied at different times.
    pub fn new(threads: usize, gated: bool, sentinel: bool) -> Self {
        Self::with_store(threads, gated, sentinel, |machine| SimStore::new(machine, Manners::GOOD))
    }

    /// The same with a store of the story's own.
    pub fn with_store<S: Store>(
        threads: usize,
        gated: bool,
        sentinel: bool,
        store: impl FnOnce(&Shared) -> Arc<S>,
    ) -> Self {
        Self::of(threads, gated, Setup { sentinel, ..Self::SETUP }, store)
    }

    /// Moves are ordered from an agent, which is the thread after the others.
    pub fn ordered(threads: usize) -> Self {
        let setup = Setup { ordered: true, ..Self::SETUP };
        let script = Self::of(threads, true, setup, |machine| SimStore::new(machine, Manners::GOOD));
        script.machine().spawn(0, true);
        script
    }

    const SETUP: Setup = Setup {
        ordered: false,
        sentinel: true,
        slot_area: 4 * SLOT_PAGES,
        children_move: false,
        quirks: false,
    };

    fn of<S: Store>(
        threads: usize,
        gated: bool,
        setup: Setup,
        store: impl FnOnce(&Shared) -> Arc<S>,
    ) -> Self {
        let sentinel = setup.sentinel;
        let machine = Arc::new(Mutex::new(Machine::new(Rng::new(0), setup, usize::MAX)));
        let store: Arc<dyn Store> = store(&machine);
        let memory = SimMemory::new(&machine, 0);
        if sentinel {
            memory.watch_sentinel();
        }
        for _ in 0..threads {
            machine.lock().spawn(0, false);
        }
        let space = Space::new(memory, store, Arc::new(Shares::default()), OwnerId(1), SLOT_PAGES);
        Self {
            machine,
            space,
            children: Vec::new(),
            batch: Batch::default(),
            faults: VecDeque::new(),
            handlers: [Server::new(4), Server::new(4)],
            mover: Mover::new(SLOT_PAGES, 4),
            gate: 0,
            gated,
        }
    }

    /// The machine, to do what a program does.
    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }

    /// The address space as the engine knows it.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// The children in care, in the order they were told of.
    pub fn children(&self) -> &[Arc<Space>] {
        &self.children
    }

    /// What is wrong so far.
    pub fn wrong(&self) -> Option<String> {
        self.machine.lock().wrong.clone()
    }

    /// Maps a block and takes it into care.
    pub fn block(&mut self, first: u32, pages: u32) {
        self.machine().mmap(0, first, pages);
        self.manage(first, pages);
    }

    /// Takes a range into care.
    pub fn manage(&mut self, first: u32, pages: u32) {
        if let Some(span) = span_of(first, pages)
            && let Err(error) = self.space.manage(span)
        {
            self.machine().fail(|| error.to_string());
        }
    }

    /// A thread touches a page; true if it went on without waiting.
    pub fn touch(&self, thread: usize, page: u32, write: bool) -> bool {
        let mut machine = self.machine();
        machine.threads[thread].state = State::Access(page, write);
        machine.run(thread, true);
        machine.threads[thread].state == State::Idle
    }

    /// A thread goes on one step in its system call.
    pub fn go_on(&self, thread: usize) {
        self.machine().go_on(thread);
    }

    /// A thread finishes its system call, everything it says being heard at once.
    pub fn finish(&mut self, thread: usize) {
        for _ in 0..ENOUGH {
            let state = self.machine().threads[thread].state;
            match state {
                State::Queued => self.hear(),
                State::Telling | State::Told | State::Finishing => self.go_on(thread),
                _ => return,
            }
        }
    }

    /// Reads what is pending, and applies it, unless a handler or mover holds the gate. Without a gate it is only read,
    /// held or not.
    pub fn hear(&mut self) {
        if self.gated {
            if self.gate == 0 {
                self.take();
            }
            return;
        }
        let mut machine = self.machine.lock();
        if !machine.readable(0) {
            return;
        }
        let read = machine.read(0, usize::MAX);
        match &mut machine.procs[0].read_ahead {
            None => machine.procs[0].read_ahead = Some(read),
            Some(ahead) => {
                ahead.faults.extend(read.faults);
                ahead.events.extend(read.events);
            }
        }
    }

    /// Applies what was only read.
    pub fn apply(&mut self) {
        if !self.gated {
            self.take();
        }
    }

    fn take(&mut self) {
        match self.space.take_messages(&mut self.batch, Duration::ZERO) {
            Ok(Some(children)) => self.children.extend(children),
            _ if self.space.memory().is_gone() => {}
            _ => self.machine.lock().fail(|| "messages can't be taken".into()),
        }
        self.faults.extend(self.batch.faults.drain(..));
    }

    /// The first handler takes up the oldest fault that was read.
    pub fn serve(&mut self) {
        self.serve_by(0);
    }

    /// The first handler does so many steps.
    pub fn handle(&mut self, steps: u32) {
        self.handle_by(0, steps);
    }

    /// A handler takes up the oldest fault that was read.
    pub fn serve_by(&mut self, handler: usize) {
        if let Some(fault) = self.faults.pop_front() {
            self.handlers[handler].serve(fault);
        }
    }

    /// A handler does so many steps.
    pub fn handle_by(&mut self, handler: usize, steps: u32) {
        for _ in 0..steps {
            self.handlers[handler].step(&self.space, &mut self.gate);
        }
    }

    /// The mover begins to move out what is at `page`, as far as its part goes.
    pub fn begin_move(&mut self, page: u32, keep_standing: bool) {
        match self.part_at(page) {
            Some(part) => self.mover.move_out(part, keep_standing),
            None => self.machine().fail(|| format!("page {page} is not in care")),
        }
    }

    /// The mover does so many steps.
    pub fn move_on(&mut self, steps: u32) {
        for _ in 0..steps {
            self.mover.step(&self.space, &mut self.gate);
        }
    }

    /// Moves out, to the end.
    pub fn move_out(&mut self, page: u32, keep_standing: bool) {
        self.begin_move(page, keep_standing);
        self.rest();
    }

    /// The mover begins to bring back the part that `page` is in.
    pub fn begin_back(&mut self, page: u32) {
        match self.part_at(page) {
            Some(part) => self.mover.bring_back(part),
            None => self.machine().fail(|| format!("page {page} is not in care")),
        }
    }

    fn part_at(&self, page: u32) -> Option<Part> {
        let span = span_of(page, 1)?;
        self.space.parts().into_iter().find(|part| part.span().is_some_and(|whole| whole.overlaps(&span)))
    }

    /// Lets everybody finish.
    pub fn rest(&mut self) {
        for _ in 0..ENOUGH {
            self.handle_by(0, 1);
            self.handle_by(1, 1);
            self.move_on(1);
            self.hear();
            self.apply();
            if self.handlers[0].is_idle() {
                self.space.unpark(&mut self.batch);
                self.faults.extend(self.batch.faults.drain(..));
                self.serve();
            }
            let mut machine = self.machine.lock();
            for thread in 0..machine.threads.len() {
                if machine.can_run(thread, true) {
                    machine.run(thread, true);
                }
            }
        }
        let machine = self.machine.lock();
        let stuck =
            machine.threads.iter().position(|thread| !matches!(thread.state, State::Idle | State::Dead));
        drop(machine);
        if let Some(thread) = stuck {
            self.machine().fail(|| format!("thread {thread} waits for ever"));
        }
    }
}
