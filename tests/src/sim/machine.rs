//! The simulated machine: processes, their threads, their userfaultfds.

use super::page::{Entry, Expected, Frame, Pte};
use super::rng::Rng;
use std::collections::{HashSet, VecDeque};
use userswap_engine::memory::Order;
use userswap_uffd::{Span, page_size};

/// Pages a program maps its blocks in.
pub const WINDOW: u32 = 40;
/// The page that stays registered for life.
pub const SENTINEL: u32 = WINDOW + 2;
/// The first page of the area that slots are cut from.
pub const SLOTS: u32 = WINDOW + 4;

const BASE: u64 = 0x10_0000_0000;

/// How the run is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Moves are ordered from a client's agent (mremap) rather than made at once (UFFDIO_MOVE).
    pub ordered: bool,
    /// A page stays registered for life, so that every fork is told.
    pub sentinel: bool,
    /// Pages of the slot area.
    pub slot_area: u32,
    /// Children can be moved out, too.
    pub children_move: bool,
    /// The kernel refuses and stops half-way now and then, as it may.
    pub quirks: bool,
}

/// The whole machine.
#[derive(Debug)]
pub struct Machine {
    /// Chance.
    pub rng: Rng,
    /// How the run is set up.
    pub setup: Setup,
    /// Every process there ever was.
    pub procs: Vec<Proc>,
    /// Every thread.
    pub threads: Vec<Thread>,
    /// Children whose userfaultfd was handed out with the last read, in order.
    pub handed: Vec<usize>,
    /// System calls, faults, messages and ioctls so far.
    pub events: u64,
    /// Address spaces that share a page, by group.
    groups: Vec<u32>,
    next_token: u64,
    next_vma: u32,
    /// The first thing found wrong.
    pub wrong: Option<String>,
    /// What happened, newest last, if it is to be noted.
    pub trace: Option<VecDeque<String>>,
    /// Notes kept.
    pub trace_room: usize,
    /// Tokens no store and no slot has any more: whoever touches such a page may get SIGBUS.
    pub lost: HashSet<u64>,
    /// Pages found poisoned by their threads.
    pub sigbus: u64,
}

/// One process.
#[derive(Debug)]
pub struct Proc {
    /// Hasn't exited.
    pub alive: bool,
    /// The engine has its userfaultfd.
    pub followed: bool,
    /// Its pages.
    pub pages: Vec<Entry>,
    /// Page-table changes whose doers haven't gone on yet.
    pub changing: u32,
    /// Threads whose faults are unread.
    pub pending: VecDeque<usize>,
    /// Threads whose faults were read.
    pub waiting: Vec<usize>,
    /// Threads whose events are unread.
    pub events: VecDeque<usize>,
    /// Move orders for its agent.
    pub orders: VecDeque<Order>,
    /// Ranges that system calls in progress are about.
    pub busy: Vec<Busy>,
    /// A fork is under way.
    pub forking: bool,
    /// Where something was unmapped last.
    pub freed: u32,
    /// Pages pinned by a device.
    pub pins: Vec<u32>,
    /// Messages read and not yet taken over, where nothing keeps reading and applying together.
    pub read_ahead: Option<ReadAhead>,
    /// Events read last, until they are in the books.
    pub ring: Vec<Told>,
    /// Its agent has called: it can be told to move pages out.
    pub called: bool,
}

/// A range that a system call in progress is about.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// Whose call.
    pub thread: usize,
    /// The range's first page.
    pub first: u32,
    /// Its length.
    pub pages: u32,
    /// Something else may land there before the call is over.
    pub free: bool,
}

/// What was read from a userfaultfd.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// Faults: page, write, thread.
    pub faults: Vec<(u32, bool, usize)>,
    /// Events.
    pub events: Vec<Told>,
    /// There may be more.
    pub more: bool,
}

/// An event as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The child.
    Fork(usize),
    /// From, to, length.
    Remap(u32, u32, u32),
    /// First, length.
    Remove(u32, u32),
    /// First, length.
    Unmap(u32, u32),
}

/// One thread of a program.
#[derive(Debug)]
pub struct Thread {
    /// Its process.
    pub proc: usize,
    /// It carries out move orders instead of running a program.
    pub agent: bool,
    /// What it is doing.
    pub state: State,
    /// Events it still has to tell, the present one first.
    pub telling: VecDeque<Told>,
    /// What it does when they are told.
    pub after: After,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Running the program.
    Idle,
    /// About to touch a page.
    Access(u32, bool),
    /// Asleep in a page fault.
    Faulting(u32, bool),
    /// About to queue its first event.
    Telling,
    /// Asleep until the event is read.
    Queued,
    /// Its event was read; it hasn't run since.
    Told,
    /// About to finish its system call.
    Finishing,
    /// No more.
    Dead,
}

/// The end of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing more.
    Nothing,
    /// Empty the range.
    Zap(u32, u32),
    /// Mark the range as free to be emptied.
    Free(u32, u32),
    /// Let the child run.
    Spawn(usize),
}

/// What touching a page came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It read this, or wrote.
    Done(u64),
    /// The thread sleeps.
    Asleep,
    /// Nothing mapped.
    Segv,
    /// Poisoned.
    Sigbus,
}

/// The address of a page.
pub fn addr_of(page: u32) -> u64 {
    BASE + u64::from(page) * page_size() as u64
}

/// The page at an address; a page that never exists for an address of nobody's.
pub fn page_at(addr: u64) -> u32 {
    addr.checked_sub(BASE).and_then(|at| u32::try_from(at / page_size() as u64).ok()).unwrap_or(u32::MAX)
}

/// A range as the engine sees it.
pub fn span_of(first: u32, pages: u32) -> Option<Span> {
    Span::from_pages(addr_of(first), u64::from(pages)).ok()
}

impl Machine {
    /// A machine with one process that has a slot area and a sentinel page.
    pub fn new(rng: Rng, setup: Setup, trace_room: usize) -> Self {
        let mut machine = Self {
            rng,
            setup,
            procs: Vec::new(),
            threads: Vec::new(),
            handed: Vec::new(),
            events: 0,
            groups: vec![0],
            next_token: 1,
            next_vma: 1,
            wrong: None,
            trace: (trace_room > 0).then(VecDeque::new),
            trace_room,
            lost: HashSet::new(),
            sigbus: 0,
        };
        let pages = machine.blank();
        machine.procs.push(Proc::new(pages));
        machine.procs[0].followed = true;
        machine.procs[0].called = true;
        machine
    }

    fn blank(&mut self) -> Vec<Entry> {
        let mut pages = vec![Entry::UNMAPPED; (SLOTS + self.setup.slot_area) as usize];
        pages[SENTINEL as usize] = Entry::fresh(self.new_vma());
        self.map_slots(&mut pages);
        pages
    }

    fn map_slots(&mut self, pages: &mut [Entry]) {
        let entry = Entry::fresh(self.new_vma());
        pages[SLOTS as usize..].fill(entry);
    }

    /// A mapping's name.
    pub fn new_vma(&mut self) -> u32 {
        self.next_vma += 1;
        self.next_vma
    }

    /// A token never written before.
    pub fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Adds a thread to a process.
    pub fn spawn(&mut self, proc: usize, agent: bool) -> usize {
        let thread =
            Thread { proc, agent, state: State::Idle, telling: VecDeque::new(), after: After::Nothing };
        self.threads.push(thread);
        self.threads.len() - 1
    }

    /// Notes what happens.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == self.trace_room {
                trace.pop_front();
            }
            trace.push_back(what());
        }
    }

    /// Notes what is wrong, if nothing was before.
    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    /// Whether the kernel does now what it does `of` times in `in_all`.
    pub fn quirk(&mut self, of: u32, in_all: u32) -> bool {
        self.setup.quirks && self.rng.chance(of, in_all)
    }

    /// Counts a kernel event.
    pub fn event(&mut self) {
        self.events += 1;
    }

    // ---- pages ----

    /// The pages of a range, `None` if it isn't wholly in the table.
    pub fn range(&self, proc: usize, first: u32, pages: u32) -> Option<&[Entry]> {
        self.procs[proc].pages.get(first as usize..first as usize + pages as usize)
    }

    /// One page.
    pub fn entry(&mut self, proc: usize, page: u32) -> &mut Entry {
        &mut self.procs[proc].pages[page as usize]
    }

    /// Takes away what a page table entry has.
    pub fn clear(&mut self, proc: usize, page: u32) {
        if let Pte::Present(frame) = self.procs[proc].pages[page as usize].pte {
            self.leave_group(frame.group);
        }
        let entry = self.entry(proc, page);
        entry.pte = Pte::None;
        entry.away = false;
    }

    fn leave_group(&mut self, group: u32) {
        if group != 0 {
            self.groups[group as usize] -= 1;
        }
    }

    /// Makes a page the process's own, by copying it if need be.
    pub fn unshare(&mut self, proc: usize, page: u32) {
        if let Pte::Present(frame) = self.procs[proc].pages[page as usize].pte {
            self.leave_group(frame.group);
            self.entry(proc, page).pte = Pte::Present(Frame { group: 0, ..frame });
        }
    }

    /// A thread touches a page.
    pub fn touch(&mut self, thread: usize, page: u32, write: bool) -> Touch {
        let proc = self.threads[thread].proc;
        let entry = self.procs[proc].pages[page as usize];
        if !entry.is_mapped() {
            return Touch::Segv;
        }
        match entry.pte {
            Pte::Poison => return Touch::Sigbus,
            Pte::Present(_) => {}
            Pte::None if entry.registered => {
                self.event();
                self.threads[thread].state = State::Faulting(page, write);
                self.procs[proc].pending.push_back(thread);
                return Touch::Asleep;
            }
            Pte::None => {
                self.event();
                self.entry(proc, page).pte = Pte::Present(Frame::own(0));
            }
        }
        if write {
            self.unshare(proc, page);
        }
        let token = if write { self.new_token() } else { 0 };
        let entry = self.entry(proc, page);
        let Pte::Present(frame) = &mut entry.pte else { return Touch::Segv };
        if write {
            frame.token = token;
            frame.lazy = false;
            entry.expected.write(token);
            Touch::Done(token)
        } else {
            Touch::Done(frame.token)
        }
    }

    /// Wakes who sleeps in a fault in the range; they touch the page again.
    pub fn wake(&mut self, proc: usize, first: u32, pages: u32) {
        let Self { procs, threads, .. } = self;
        let mut stays = |thread: &usize| match threads[*thread].state {
            State::Faulting(page, write) if page >= first && page - first < pages => {
                threads[*thread].state = State::Access(page, write);
                false
            }
            _ => true,
        };
        let proc = &mut procs[proc];
        proc.pending.retain(&mut stays);
        proc.waiting.retain(&mut stays);
    }

    /// A signal gets a sleeping thread out of its fault; it will touch the page again.
    pub fn signal(&mut self, thread: usize) {
        if let State::Faulting(page, write) = self.threads[thread].state {
            let proc = &mut self.procs[self.threads[thread].proc];
            proc.pending.retain(|other| *other != thread);
            proc.waiting.retain(|other| *other != thread);
            self.threads[thread].state = State::Access(page, write);
            self.note(|| format!("thread {thread} is signalled out of its fault on {page}"));
        }
    }

    // ---- processes ----

    /// Copies a process as fork does. `None` if the copy isn't told to anybody.
    pub fn copy_process(&mut self, parent: usize) -> (usize, bool) {
        let mut pages = self.procs[parent].pages.clone();
        let mut told = false;
        for (page, entry) in pages.iter_mut().enumerate() {
            told |= entry.registered;
            entry.expected = Expected::in_child(entry.expected);
            if let Pte::Present(frame) = &mut entry.pte {
                if frame.pinned {
                    // A pinned page is copied at once and stays the parent's own.
                    *frame = Frame { pinned: false, ..Frame::own(frame.token) };
                    continue;
                }
                if frame.group == 0 {
                    self.groups.push(1);
                    frame.group = u32::try_from(self.groups.len() - 1).unwrap_or(0);
                    self.procs[parent].pages[page].pte = Pte::Present(*frame);
                }
                self.groups[frame.group as usize] += 1;
            }
        }
        if !told {
            for entry in &mut pages {
                entry.registered = false;
            }
        }
        self.procs.push(Proc::new(pages));
        let child = self.procs.len() - 1;
        self.procs[child].followed = told;
        (child, told)
    }

    /// Ends a process: its threads and its memory are gone, and nothing is told.
    pub fn exit(&mut self, proc: usize) {
        if !self.procs[proc].alive {
            return;
        }
        self.note(|| format!("process {proc} exits"));
        self.event();
        for page in 0..self.procs[proc].pages.len() {
            self.clear(proc, u32::try_from(page).unwrap_or(0));
        }
        let mut unborn = Vec::new();
        for thread in self.threads.iter_mut().filter(|thread| thread.proc == proc) {
            if let (After::Spawn(child), true) = (thread.after, thread.state != State::Dead) {
                unborn.push(child);
            }
            thread.state = State::Dead;
        }
        let gone = &mut self.procs[proc];
        gone.alive = false;
        gone.changing = 0;
        gone.pending.clear();
        gone.waiting.clear();
        gone.events.clear();
        gone.orders.clear();
        gone.busy.clear();
        gone.pins.clear();
        gone.read_ahead = None;
        for child in unborn {
            self.exit(child);
        }
    }

    /// Whether its userfaultfd has something to read.
    pub fn readable(&self, proc: usize) -> bool {
        let proc = &self.procs[proc];
        !proc.pending.is_empty() || !proc.events.is_empty() || proc.read_ahead.is_some()
    }
}

impl Proc {
    fn new(pages: Vec<Entry>) -> Self {
        Self {
            alive: true,
            followed: false,
            pages,
            changing: 0,
            pending: VecDeque::new(),
            waiting: Vec::new(),
            events: VecDeque::new(),
            orders: VecDeque::new(),
            busy: Vec::new(),
            forking: false,
            freed: 0,
            pins: Vec::new(),
            read_ahead: None,
            ring: Vec::new(),
            called: false,
        }
    }
}
