//! Which handler serves which thread, while several serve: the one on the thread's CPU.
//!
//! A message goes to whoever reads first, which need not be the handler beside the thread; and a thread woken from another CPU costs several times what it
//! costs on the same (see `placement`). So a handler that reads a fault of a thread that lives on another handler's CPU leaves it in
//! that one's box. It isn't asked to wake up: its CPU has just lost the thread, so it runs, and looks.
//! Nothing is left in the box of a sleeper (`mailbox`).

use crate::mailbox::Mailbox;
use crate::memory::Fault;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use userswap_uffd::cpu::Whereabouts;

/// A fault for another handler.
#[derive(Clone, Copy)]
pub(crate) struct Post {
    /// The address space's number.
    pub(crate) space: u64,
    pub(crate) fault: Fault,
    /// When its message was read.
    pub(crate) read_at: Instant,
}

/// One handler's place.
struct Desk {
    /// Its CPU while it serves; `NOWHERE` otherwise.
    cpu: AtomicUsize,
    /// Up, with nothing to do.
    idle: AtomicBool,
    /// The threads it has looked for.
    seen: Mutex<Seen>,
    post: Mailbox<Post>,
    /// Posts taken out of it.
    taken: AtomicU64,
}

/// What all handlers know of who is where.
pub(crate) struct Steering {
    desks: Vec<Desk>,
    /// Threads by the low bits of their number: the number above, the CPU below. Others may be in a thread's place: then it is looked up.
    homes: [AtomicU64; HOMES],
}

const NOWHERE: usize = usize::MAX;
const HOMES: usize = 256;
const CPU_BITS: u32 = 24;

impl Steering {
    pub(crate) fn new(handlers: usize) -> Self {
        let desk = || Desk {
            cpu: AtomicUsize::new(NOWHERE),
            idle: AtomicBool::new(false),
            seen: Mutex::new(Seen::default()),
            post: Mailbox::new(),
            taken: AtomicU64::new(0),
        };
        Self { desks: (0..handlers).map(|_| desk()).collect(), homes: [const { AtomicU64::new(0) }; HOMES] }
    }

    /// A handler serves from `cpu` now, or from nowhere in particular.
    pub(crate) fn sits(&self, handler: usize, cpu: Option<usize>) {
        self.desks[handler].cpu.store(cpu.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// Where a handler serves.
    pub(crate) fn seat(&self, handler: usize) -> Option<usize> {
        Some(self.desks[handler].cpu.load(Ordering::Relaxed)).filter(|cpu| *cpu != NOWHERE)
    }

    /// Says that a handler sleeps unless there is something in its box. Whether it may.
    pub(crate) fn may_sleep(&self, handler: usize) -> bool {
        self.desks[handler].post.may_sleep()
    }

    /// Says that it is up.
    pub(crate) fn gets_up(&self, handler: usize) {
        self.desks[handler].post.gets_up();
    }

    /// Says whether a handler that is up looks in vain for something to do.
    pub(crate) fn set_idle(&self, handler: usize, idle: bool) {
        let flag = &self.desks[handler].idle;
        if flag.load(Ordering::Relaxed) != idle {
            flag.store(idle, Ordering::Relaxed);
        }
    }

    /// Whether `thread`, about to be woken from `handler`'s CPU, had better go to another: more threads than this one are at home here, and another handler has
    /// nothing to do. Where it is from now on is to be found out.
    pub(crate) fn is_crowded(&self, handler: usize, thread: u32) -> bool {
        let here = self.seat(handler);
        let crowded = here.is_some()
            && self.desks.iter().enumerate().any(|(other, desk)| {
                other != handler
                    && desk.cpu.load(Ordering::Relaxed) != NOWHERE
                    && desk.idle.load(Ordering::Relaxed)
                    && !desk.post.is_asleep()
            })
            && self.desks[handler].seen.lock().served_another(thread)
            && self.home(thread) == here;
        if crowded {
            self.homes[thread as usize % HOMES].store(0, Ordering::Relaxed);
        }
        crowded
    }

    /// The next fault in a handler's box.
    pub(crate) fn take(&self, handler: usize) -> Option<Post> {
        let desk = &self.desks[handler];
        let post = desk.post.take()?;
        desk.taken.fetch_add(1, Ordering::Relaxed);
        Some(post)
    }

    /// Leaves a fault to the handler on its thread's CPU, if that is another than `handler` and up. Otherwise it comes back, or another in its
    /// place.
    pub(crate) fn pass(&self, handler: usize, post: Post) -> Option<Post> {
        let Some(thread) = post.fault.thread else { return Some(post) };
        let Some(home) = self.home(thread).or_else(|| self.look(handler, thread)) else { return Some(post) };
        let mut desks = self.desks.iter().enumerate();
        let Some((other, desk)) = desks.find(|(_, desk)| desk.cpu.load(Ordering::Relaxed) == home) else {
            return Some(post);
        };
        if other == handler { Some(post) } else { desk.post.put(post) }
    }

    /// How many posts were ever taken from each box that isn't empty.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (usize, u64)> {
        let full = self.desks.iter().enumerate().filter(|(_, desk)| !desk.post.is_empty());
        full.map(|(handler, desk)| (handler, desk.taken.load(Ordering::Relaxed)))
    }

    /// Looks where one of the threads seen is now: for a handler that has nothing to do. Had that thread stayed on the handler's CPU, it
    /// would be running there.
    pub(crate) fn look_around(&self, handler: usize) {
        let next = self.desks[handler].seen.lock().next();
        if let Some(thread) = next {
            self.look(handler, thread);
        }
    }

    /// Forgets who was seen: nobody faults any more.
    pub(crate) fn forget(&self) {
        for desk in &self.desks {
            *desk.seen.lock() = Seen::default();
        }
    }

    fn home(&self, thread: u32) -> Option<usize> {
        let entry = self.homes[thread as usize % HOMES].load(Ordering::Relaxed);
        (entry >> CPU_BITS == u64::from(thread))
            .then_some(usize::try_from(entry & ((1 << CPU_BITS) - 1)).ok()?)
    }

    /// The CPU a thread is on.
    pub(crate) fn look(&self, handler: usize, thread: u32) -> Option<usize> {
        let cpu = self.desks[handler].seen.lock().cpu_of(thread)?;
        let entry = u64::from(thread) << CPU_BITS | (cpu as u64 & ((1 << CPU_BITS) - 1));
        self.homes[thread as usize % HOMES].store(entry, Ordering::Relaxed);
        Some(cpu)
    }
}

/// The threads one handler has looked for last.
#[derive(Default)]
struct Seen {
    threads: [Option<Whereabouts>; 8],
    /// Whose turn it is, to be replaced and to be looked at.
    oldest: usize,
    turn: usize,
    /// The thread served last, and another before it, and when that was; and when a thread was last sent away.
    last: Option<(u32, Instant)>,
    before: Option<(u32, Instant)>,
    sent: Option<Instant>,
}

/// Threads that fault at the same time as others do so again within this, and one that was sent away has settled.
const TOGETHER: Duration = Duration::from_millis(1);

impl Seen {
    /// A thread is served. Whether another was a moment ago, and none has been sent away since.
    fn served_another(&mut self, thread: u32) -> bool {
        let now = Instant::now();
        if self.last.is_some_and(|(last, _)| last != thread) {
            self.before = self.last;
        }
        self.last = Some((thread, now));
        let recent = |at: Instant| now.duration_since(at) < TOGETHER;
        let yes = self.before.is_some_and(|(other, at)| other != thread && recent(at))
            && !self.sent.is_some_and(recent);
        if yes {
            self.sent = Some(now);
        }
        yes
    }

    fn cpu_of(&mut self, thread: u32) -> Option<usize> {
        let is_it =
            |known: &Option<Whereabouts>| known.as_ref().is_some_and(|known| known.thread() == thread);
        let at = match self.threads.iter().position(is_it) {
            Some(at) => at,
            None => {
                let at = self.oldest;
                self.oldest = (at + 1) % self.threads.len();
                self.threads[at] = Whereabouts::of(thread).ok();
                at
            }
        };
        let cpu = self.threads[at].as_ref()?.cpu();
        if cpu.is_err() {
            // It has ended.
            self.threads[at] = None;
        }
        cpu.ok()
    }

    fn next(&mut self) -> Option<u32> {
        self.turn = (self.turn + 1) % self.threads.len();
        let (before, from) = self.threads.split_at(self.turn);
        from.iter().chain(before).flatten().next().map(Whereabouts::thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_uffd::cpu;

    fn post(thread: u32) -> Post {
        let fault = Fault { addr: 0x1000, write: false, thread: Some(thread) };
        Post { space: 1, fault, read_at: Instant::now() }
    }

    /// On a thread of its own, pinned to one CPU: handler 0 reads a fault of it.
    fn pinned(test: impl FnOnce(&Steering, u32, usize) + Send + 'static) {
        std::thread::spawn(|| {
            let here = cpu::allowed(None).unwrap()[0];
            cpu::pin(None, &[here]).unwrap();
            test(&Steering::new(2), cpu::current_thread(), here);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_handler_on_the_threads_cpu_gets_it() {
        pinned(|steering, thread, here| {
            steering.sits(0, Some(here + 1));
            steering.sits(1, Some(here));
            steering.gets_up(1);
            assert!(steering.pass(0, post(thread)).is_none());
            assert_eq!(steering.pending().collect::<Vec<_>>(), [(1, 0)]);
            assert!(!steering.may_sleep(1));
            assert_eq!(steering.take(1).unwrap().fault.thread, Some(thread));
            assert!(steering.take(1).is_none() && steering.may_sleep(1));
        });
    }

    #[test]
    fn a_sleeper_gets_nothing() {
        pinned(|steering, thread, here| {
            steering.sits(0, Some(here + 1));
            steering.sits(1, Some(here));
            assert!(steering.may_sleep(1));
            assert!(steering.pass(0, post(thread)).is_some());
            assert_eq!(steering.pending().count(), 0);
        });
    }

    #[test]
    fn what_is_at_home_here_or_nowhere_stays() {
        pinned(|steering, thread, here| {
            steering.sits(0, Some(here));
            steering.sits(1, Some(here + 1));
            steering.gets_up(1);
            assert!(steering.pass(0, post(thread)).is_some());
            steering.sits(0, None);
            assert!(steering.pass(0, post(thread)).is_some());
            assert!(steering.pass(0, post(u32::MAX)).is_some());
        });
    }
}
