//! What simulated programs do all day: touch pages, and now and then change what is mapped.

use super::machine::{Machine, State, Touch, WINDOW};
use super::page::Pte;

/// Processes there may be at once.
const MOST_PROCESSES: usize = 4;

impl Machine {
    /// Whether a thread can do something now. While `ending`, programs finish what they are at and begin nothing.
    pub fn can_run(&self, thread: usize, ending: bool) -> bool {
        let who = &self.threads[thread];
        match who.state {
            State::Idle if who.agent => !self.procs[who.proc].orders.is_empty(),
            State::Idle => !ending,
            State::Access(..) | State::Telling | State::Told | State::Finishing => true,
            State::Faulting(..) | State::Queued | State::Dead => false,
        }
    }

    /// A thread does one step.
    pub fn run(&mut self, thread: usize, ending: bool) {
        match self.threads[thread].state {
            State::Idle if self.threads[thread].agent => {
                let proc = self.threads[thread].proc;
                if let Some(order) = self.procs[proc].orders.pop_front() {
                    self.carry_out(thread, order);
                }
            }
            State::Idle if ending => {}
            State::Idle => self.begin(thread),
            State::Access(page, write) => self.access(thread, page, write),
            _ => self.go_on(thread),
        }
    }

    /// Has an idle thread read a page.
    pub fn read_page(&mut self, thread: usize, page: u32) {
        self.threads[thread].state = State::Access(page, false);
    }

    fn access(&mut self, thread: usize, page: u32, write: bool) {
        let proc = self.threads[thread].proc;
        let touch = self.touch(thread, page, write);
        self.note(|| {
            let how = if write { "writes" } else { "reads" };
            format!("thread {thread} of {proc} {how} {page}: {touch:?}")
        });
        if touch == Touch::Asleep {
            return;
        }
        self.threads[thread].state = State::Idle;
        match touch {
            Touch::Done(token) if !write => {
                let mut expected = self.entry(proc, page).expected;
                if !expected.read(token) {
                    self.fail(|| {
                        format!("thread {thread} of {proc} reads {token} on page {page} and should read {expected:?}")
                    });
                }
                self.entry(proc, page).expected = expected;
            }
            Touch::Sigbus => {
                self.sigbus += 1;
                let expected = self.entry(proc, page).expected;
                let excused = self.lost.contains(&expected.value())
                    || (expected.may_be_zero() && self.lost.contains(&0));
                if !excused {
                    self.fail(|| format!("SIGBUS on page {page} of {proc}, which nobody lost"));
                }
            }
            _ => {}
        }
    }

    /// An idle thread thinks of something to do.
    fn begin(&mut self, thread: usize) {
        let proc = self.threads[thread].proc;
        let dice = self.rng.below(256);
        // Where something is leaving and hasn't said so yet another thread's mremap is most interesting.
        if dice < 64 && !self.setup.ordered && self.procs[proc].busy.iter().any(|busy| busy.free) {
            self.begin_mremap(thread);
            return;
        }
        match dice {
            0..=1 => self.begin_fork(thread),
            2 => self.begin_exit(proc),
            3..=14 => self.begin_remove(thread, false),
            15..=19 if !self.setup.ordered => self.begin_remove(thread, true),
            20..=24 if !self.setup.ordered => self.begin_munmap(thread),
            25..=31 => self.begin_mmap(proc),
            32..=38 if !self.setup.ordered => self.begin_mremap(thread),
            39..=41 if !self.setup.ordered => self.pin(proc),
            _ => {
                let page = self.some_mapped(proc);
                let write = self.rng.chance(2, 5);
                self.threads[thread].state = State::Access(page, write);
            }
        }
    }

    /// A page of the window, mapped if chance finds one.
    fn some_mapped(&mut self, proc: usize) -> u32 {
        let start = self.rng.below(WINDOW);
        let pages = &self.procs[proc].pages;
        (0..WINDOW)
            .map(|at| (start + at) % WINDOW)
            .find(|page| pages[*page as usize].is_mapped())
            .unwrap_or(start)
    }

    /// A run of like pages that no other call is about.
    fn some_run(&mut self, proc: usize) -> Option<(u32, u32)> {
        if self.procs[proc].forking {
            return None;
        }
        let first = self.some_mapped(proc);
        let most = self.rng.between(1, 8);
        let proc = &self.procs[proc];
        let like = proc.pages[first as usize];
        if !like.is_mapped() {
            return None;
        }
        let pages = (first..WINDOW.min(first + most))
            .take_while(|page| {
                let entry = &proc.pages[*page as usize];
                entry.vma == like.vma && entry.registered == like.registered
            })
            .count();
        let pages = u32::try_from(pages).unwrap_or(0);
        (!proc.is_busy(first, pages, false)).then_some((first, pages))
    }

    /// A free range where something can land, mostly where something was freed last.
    fn some_room(&mut self, proc: usize, pages: u32) -> Option<u32> {
        let random = self.rng.below(WINDOW);
        let recent = self.rng.chance(3, 4);
        let proc = &self.procs[proc];
        // Best of all where something is leaving whose event isn't queued yet.
        let leaving = proc.busy.iter().find(|busy| busy.free).map(|busy| busy.first);
        let start = leaving.unwrap_or(if recent { proc.freed } else { random });
        let fits = |first: u32| {
            first + pages <= WINDOW
                && proc.pages[first as usize..(first + pages) as usize].iter().all(|entry| !entry.is_mapped())
                && !proc.is_busy(first, pages, true)
        };
        (0..WINDOW).map(|at| (start + at) % WINDOW).find(|first| fits(*first))
    }

    fn begin_remove(&mut self, thread: usize, free: bool) {
        if let Some((first, pages)) = self.some_run(self.threads[thread].proc) {
            self.remove(thread, first, pages, free);
        }
    }

    fn begin_munmap(&mut self, thread: usize) {
        if let Some((first, pages)) = self.some_run(self.threads[thread].proc) {
            self.munmap(thread, first, pages);
        }
    }

    fn begin_mmap(&mut self, proc: usize) {
        let pages = self.rng.between(2, 10);
        if !self.procs[proc].forking
            && let Some(first) = self.some_room(proc, pages)
        {
            self.mmap(proc, first, pages);
        }
    }

    fn begin_mremap(&mut self, thread: usize) {
        let proc = self.threads[thread].proc;
        let Some((from, pages)) = self.some_run(proc) else { return };
        let keep = self.rng.chance(1, 4);
        let onto = if self.rng.chance(1, 4) { self.some_run(proc) } else { None };
        let to = match onto {
            Some((to, room)) if room >= pages && (to + pages <= from || from + pages <= to) => Some(to),
            _ => self.some_room(proc, pages),
        };
        if let Some(to) = to {
            self.mremap(thread, from, pages, to, keep);
        }
    }

    /// Not while another thread changes what is mapped: the kernel tells of the two in either order, and a child that looks at
    /// what was being changed while it was made needs a lock around both anyway.
    fn begin_fork(&mut self, thread: usize) {
        let proc = self.threads[thread].proc;
        let alive = self.procs.iter().filter(|proc| proc.alive).count();
        if alive < MOST_PROCESSES && !self.procs[proc].forking && self.procs[proc].busy.is_empty() {
            self.fork(thread);
        }
    }

    fn begin_exit(&mut self, proc: usize) {
        let others = self
            .threads
            .iter()
            .any(|thread| thread.proc != proc && !thread.agent && thread.state != State::Dead);
        if others && self.rng.chance(1, 4) {
            self.exit(proc);
        }
    }

    /// A device pins a page, or writes to one it has pinned and lets it go.
    fn pin(&mut self, proc: usize) {
        if let Some(page) = self.procs[proc].pins.pop() {
            self.unpin(proc, page, true);
            return;
        }
        let page = self.some_mapped(proc);
        self.unshare(proc, page);
        if let Pte::Present(frame) = &mut self.entry(proc, page).pte
            && !frame.lazy
        {
            frame.pinned = true;
            self.procs[proc].pins.push(page);
        }
    }

    /// The device lets go of a page.
    pub fn unpin(&mut self, proc: usize, page: u32, write: bool) {
        let token = self.new_token();
        let entry = self.entry(proc, page);
        if let Pte::Present(frame) = &mut entry.pte
            && frame.pinned
        {
            frame.pinned = false;
            if write {
                frame.token = token;
                entry.expected.write(token);
            }
        }
    }

    /// The kernel takes a page that was freed lazily.
    pub fn take_lazy(&mut self, proc: usize) {
        let page = self.rng.below(WINDOW);
        if let Pte::Present(frame) = self.entry(proc, page).pte
            && frame.lazy
        {
            self.note(|| format!("the kernel takes page {page} of {proc}, which was freed"));
            self.clear(proc, page);
        }
    }
}

impl super::machine::Proc {
    /// Whether a call in progress is about part of a range. What `lands` on a range may do so while another leaves it.
    pub fn is_busy(&self, first: u32, pages: u32, lands: bool) -> bool {
        self.busy.iter().any(|busy| {
            first < busy.first + busy.pages && busy.first < first + pages && !(lands && busy.free)
        })
    }
}
