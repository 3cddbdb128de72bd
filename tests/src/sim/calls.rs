//! What a program asks of the kernel, and how far it gets in one step.
//!
//! A call that changes the page table makes its change in one step (as under the mmap lock), queues its event in a later one
//! (after the lock is gone), sleeps until the event is read, and goes on in a later step still; until then the
//! userfaultfd counts as changing. Only the removal of pages happens after its event.

use super::machine::{After, Busy, Machine, SLOTS, State, Told, page_at};
use super::page::{Entry, Pte};
use userswap_engine::memory::Order;

impl Machine {
    /// madvise: empties a range, or (`free`) lets the kernel empty it when it likes.
    pub fn remove(&mut self, thread: usize, first: u32, pages: u32, free: bool) {
        self.event();
        let proc = self.threads[thread].proc;
        self.note(|| {
            let call = if free { "MADV_FREE" } else { "MADV_DONTNEED" };
            format!("thread {thread} of {proc}: {call} {first}+{pages}")
        });
        for page in first..first + pages {
            self.entry(proc, page).expected.remove_begins();
        }
        let told = self.procs[proc].pages[first as usize].registered;
        let after = if free { After::Free(first, pages) } else { After::Zap(first, pages) };
        self.procs[proc].busy.push(Busy { thread, first, pages, free: false });
        self.change(thread, told.then_some(Told::Remove(first, pages)), after);
        if !told {
            // Nobody can register the range in between: that takes the lock this call holds.
            self.finish(thread);
        }
    }

    /// munmap.
    pub fn munmap(&mut self, thread: usize, first: u32, pages: u32) {
        self.event();
        let proc = self.threads[thread].proc;
        self.note(|| format!("thread {thread} of {proc}: munmap {first}+{pages}"));
        let free = self.can_be_landed_on(proc, first, pages);
        let told = self.unmap(proc, first, pages);
        self.procs[proc].freed = first;
        self.procs[proc].busy.push(Busy { thread, first, pages, free });
        self.change(thread, told.then_some(Told::Unmap(first, pages)), After::Nothing);
    }

    /// mmap of a free range.
    pub fn mmap(&mut self, proc: usize, first: u32, pages: u32) {
        self.event();
        // Like neighbours may become one mapping.
        let before = first.checked_sub(1).map(|page| self.procs[proc].pages[page as usize]);
        let merged = before.filter(|entry| entry.is_mapped() && !entry.registered).map(|entry| entry.vma);
        let vma = match merged {
            Some(vma) if self.rng.chance(1, 2) => vma,
            _ => self.new_vma(),
        };
        self.note(|| format!("process {proc}: mmap {first}+{pages}"));
        for page in first..first + pages {
            *self.entry(proc, page) = Entry::fresh(vma);
        }
    }

    /// mremap to a place of its own; with `keep` the old mapping stays, empty.
    pub fn mremap(&mut self, thread: usize, from: u32, pages: u32, to: u32, keep: bool) {
        self.event();
        let proc = self.threads[thread].proc;
        self.note(|| {
            let kept = if keep { " (DONTUNMAP)" } else { "" };
            format!("thread {thread} of {proc}: mremap {from}+{pages} to {to}{kept}")
        });
        let free = self.can_be_landed_on(proc, from, pages);
        let landed_on = self.unmap(proc, to, pages);
        let told = self.procs[proc].pages[from as usize].registered;
        let vma = self.new_vma();
        for at in 0..pages {
            let entry = self.procs[proc].pages[(from + at) as usize];
            *self.entry(proc, to + at) = Entry { vma, ..entry };
            *self.entry(proc, from + at) = if keep {
                Entry { registered: entry.registered, ..Entry::fresh(entry.vma) }
            } else {
                Entry::UNMAPPED
            };
        }
        if !keep {
            self.procs[proc].freed = from;
        }
        self.procs[proc].busy.push(Busy { thread, first: from, pages, free });
        self.procs[proc].busy.push(Busy { thread, first: to, pages, free: false });
        let events = [
            landed_on.then_some(Told::Unmap(to, pages)),
            told.then_some(Told::Remap(from, to, pages)),
            (told && !keep).then_some(Told::Unmap(from, pages)),
        ];
        self.change(thread, events.into_iter().flatten(), After::Nothing);
    }

    /// Whether something may land where a range is leaving before that is told. A kernel lets it happen anywhere; what the engine
    /// can't tell apart then is left out (see its directory): registered ranges of which not every page is out.
    fn can_be_landed_on(&self, proc: usize, first: u32, pages: u32) -> bool {
        let range = self.range(proc, first, pages).unwrap_or_default();
        range.iter().all(|entry| entry.away && entry.registered)
            || range.iter().all(|entry| !entry.registered)
    }

    /// fork.
    pub fn fork(&mut self, thread: usize) {
        self.event();
        let parent = self.threads[thread].proc;
        let (child, told) = self.copy_process(parent);
        self.note(|| format!("thread {thread} of {parent}: fork, the child is {child}"));
        self.procs[parent].forking = true;
        self.change(thread, told.then_some(Told::Fork(child)), After::Spawn(child));
    }

    /// A move order carried out by the agent: mremap that leaves the mapping.
    pub fn carry_out(&mut self, thread: usize, order: Order) {
        self.event();
        let proc = self.threads[thread].proc;
        let (from, to) = (page_at(order.from.start()), page_at(order.to));
        let pages = u32::try_from(order.from.pages()).unwrap_or(0);
        self.note(|| format!("agent {thread} of {proc}: mremap {from}+{pages} to slot page {to}"));
        let first = self.procs[proc].pages[from as usize];
        let whole =
            self.range(proc, from, pages).is_some_and(|all| all.iter().all(|entry| entry.vma == first.vma));
        if !whole || !first.is_mapped() || to < SLOTS {
            self.fail(|| format!("the agent was told to move {from}+{pages}, which it can't"));
            return;
        }
        if !first.registered {
            self.fail(|| format!("the agent was told to move {from}+{pages}, which nobody watches"));
        }
        for at in 0..pages {
            let source = self.procs[proc].pages[(from + at) as usize];
            self.clear(proc, to + at);
            let slot = self.entry(proc, to + at);
            slot.pte = source.pte;
            slot.registered = source.registered;
            let source = self.entry(proc, from + at);
            source.pte = Pte::None;
            source.away = true;
        }
        self.change(thread, Some(Told::Remap(from, to, pages)), After::Nothing);
    }

    /// Unmaps a range. Whether somebody is to be told.
    fn unmap(&mut self, proc: usize, first: u32, pages: u32) -> bool {
        let mut told = false;
        for page in first..first + pages {
            told |= self.procs[proc].pages[page as usize].registered;
            self.clear(proc, page);
            *self.entry(proc, page) = Entry::UNMAPPED;
        }
        told
    }

    fn change(&mut self, thread: usize, events: impl IntoIterator<Item = Told>, after: After) {
        let proc = self.threads[thread].proc;
        let doer = &mut self.threads[thread];
        doer.after = after;
        doer.telling.clear();
        doer.telling.extend(events);
        self.procs[proc].changing += u32::try_from(doer.telling.len()).unwrap_or(0);
        doer.state = if doer.telling.is_empty() { State::Finishing } else { State::Telling };
    }

    /// A thread inside a system call goes on.
    pub fn go_on(&mut self, thread: usize) {
        let proc = self.threads[thread].proc;
        match self.threads[thread].state {
            State::Telling => {
                self.event();
                self.procs[proc].events.push_back(thread);
                self.threads[thread].state = State::Queued;
                self.note(|| format!("thread {thread} of {proc} queues its event"));
            }
            State::Told => {
                self.procs[proc].changing -= 1;
                let doer = &mut self.threads[thread];
                doer.telling.pop_front();
                doer.state = if doer.telling.is_empty() { State::Finishing } else { State::Telling };
                self.note(|| format!("thread {thread} of {proc} goes on"));
            }
            State::Finishing => self.finish(thread),
            _ => {}
        }
    }

    fn finish(&mut self, thread: usize) {
        let proc = self.threads[thread].proc;
        let after = self.threads[thread].after;
        match after {
            After::Nothing => {}
            After::Zap(first, pages) => {
                self.note(|| format!("thread {thread} of {proc} empties {first}+{pages}"));
                for page in first..first + pages {
                    self.clear(proc, page);
                    self.entry(proc, page).expected.removed();
                }
            }
            After::Free(first, pages) => {
                for page in first..first + pages {
                    let entry = self.entry(proc, page);
                    entry.expected.freed();
                    entry.away = false;
                    if let Pte::Present(frame) = &mut entry.pte
                        && frame.group == 0
                        && !frame.pinned
                    {
                        frame.lazy = true;
                    }
                }
            }
            After::Spawn(child) => {
                self.procs[proc].forking = false;
                if !self.procs[child].followed {
                    self.fail(|| format!("process {child} runs and nobody was told of its fork"));
                }
                let threads = self.rng.between(1, 2);
                for _ in 0..=threads {
                    self.spawn(child, false);
                }
            }
        }
        self.procs[proc].busy.retain(|busy| busy.thread != thread);
        let doer = &mut self.threads[thread];
        doer.after = After::Nothing;
        doer.state = State::Idle;
    }

    /// Reads messages as the kernel hands them out: faults first, whatever is older.
    pub fn read(&mut self, proc: usize, room: usize) -> super::machine::ReadAhead {
        let mut read = super::machine::ReadAhead::default();
        self.event();
        let mut left = room;
        while left > 0
            && let Some(thread) = self.procs[proc].pending.pop_front()
        {
            left -= 1;
            if let State::Faulting(page, write) = self.threads[thread].state {
                self.procs[proc].waiting.push(thread);
                read.faults.push((page, write, thread));
                self.note(|| format!("read: thread {thread} faults on {page} of {proc}"));
            }
        }
        while left > 0
            && let Some(thread) = self.procs[proc].events.pop_front()
        {
            left -= 1;
            if let Some(&told) = self.threads[thread].telling.front() {
                self.threads[thread].state = State::Told;
                read.events.push(told);
                self.note(|| format!("read: {told:?} of {proc}"));
            }
        }
        read.more = left == 0;
        read
    }
}
