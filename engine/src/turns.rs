//! Whose turn it is, where several address spaces have faults: each is served in its turn, and who takes much more of the engine's time than others waits.
//!
//! A handler that stays with an address space while it faults serves a single one best. Beside others it would keep them waiting, so each has one look at its
//! messages then. That alone isn't fair: a turn of who reads in order brings in and moves out dozens of pages, and all of it takes CPUs from the others' threads. So the CPU
//! time that is spent on each is counted, what was spent lately more than what was longer ago. Where times are to be shared by weight, the faults of who had more
//! than others, and more than its part of what all may have in any case, wait until that isn't so any more. Who had least never waits, and nobody does alone.

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The address spaces that have faults, and what was spent on them.
pub(crate) struct Turns {
    /// CPUs that all together may take without anybody's waiting.
    free: f64,
    users: Mutex<Vec<User>>,
}

#[derive(Clone, Copy)]
struct User {
    space: u64,
    weight: u32,
    /// When it had its last turn.
    at: Instant,
    /// All that was spent on it until then.
    spent: Duration,
    /// What was spent on it, in seconds; half of it forgotten every [`HALVED`].
    lately: f64,
}

/// CPU time spent on one address space, by whichever threads, while it has a weight.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    weight: AtomicU32,
    ns: AtomicU64,
}

/// What comes with a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Turn {
    /// Others have faults as well.
    pub(crate) beside: bool,
    /// So long the faults that come now wait.
    pub(crate) wait: Duration,
}

/// Half of what was spent is forgotten in so long.
const HALVED: Duration = Duration::from_millis(50);

/// Without a fault for so long, somebody isn't there.
const AWAY: Duration = Duration::from_millis(100);

/// So many times what the others had isn't more than they had: two that have much the same would hold each other back by turns.
const MORE: f64 = 1.25;

/// Told apart at once. Who serves faults must not allocate.
const USERS: usize = 16;

/// Of the CPUs the engine may take so much for all without anybody's waiting; the programs need some, too.
const FREE: f64 = 0.5;

impl Turns {
    /// On a machine with so many CPUs.
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            free: FREE * u32::try_from(cpus).map_or(1.0, f64::from),
            users: Mutex::new(Vec::with_capacity(USERS)),
        }
    }

    /// An address space is to be looked at, on which so much time was `spent` so far. With `weight` 0 it waits for nobody.
    pub(crate) fn take(&self, space: u64, weight: u32, spent: Duration, now: Instant) -> Turn {
        let mut users = self.users.lock();
        users.retain(|user| user.space == space || now.saturating_duration_since(user.at) < AWAY);
        let at = users.iter().position(|user| user.space == space).unwrap_or_else(|| {
            if users.len() == USERS {
                let oldest = users.iter().zip(0..).min_by_key(|(user, _)| user.at).map_or(0, |(_, at)| at);
                users.swap_remove(oldest);
            }
            users.push(User { space, weight, at: now, spent, lately: 0.0 });
            users.len() - 1
        });
        let lately = users[at].lately_at(now) + spent.saturating_sub(users[at].spent).as_secs_f64();
        users[at] = User { space, weight, at: now, spent, lately };
        let others = || users.iter().filter(|user| user.space != space);
        let least = others().map(|user| user.lately_at(now) / user.part()).reduce(f64::min);
        let Some(least) = least.filter(|_| weight > 0) else {
            return Turn { beside: users.len() > 1, wait: Duration::ZERO };
        };
        // What steady spending at the free rate comes to, halved as it is.
        let free = self.free * HALVED.as_secs_f64() / std::f64::consts::LN_2;
        let all: f64 = users.iter().map(User::part).sum();
        let most = users[at].part() * (least * MORE).max(free / all);
        let wait =
            if lately > most { HALVED.mul_f64((lately / most).log2().min(10.0)) } else { Duration::ZERO };
        Turn { beside: true, wait }
    }

    /// An address space is gone.
    pub(crate) fn forget(&self, space: u64) {
        self.users.lock().retain(|user| user.space != space);
    }
}

impl Spent {
    /// The part of who is counted; 0 for who isn't.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    pub(crate) fn so_far(&self) -> Duration {
        Duration::from_nanos(self.ns.load(Ordering::Relaxed))
    }

    /// Does some work on this thread and counts what it takes.
    pub(crate) fn on<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.weight() == 0 {
            return work();
        }
        let before = thread_time();
        let done = work();
        let took = thread_time().saturating_sub(before);
        self.ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
        done
    }
}

/// CPU time this thread had so far.
pub(crate) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl User {
    fn lately_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at);
        self.lately * 0.5_f64.powf(passed.as_secs_f64() / HALVED.as_secs_f64())
    }

    fn part(&self) -> f64 {
        f64::from(self.weight.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two that have a turn every millisecond, on which the engine spends what they take of its time: what it spent on each in a second, from a
    /// half on. Who is told to wait has no turn until then.
    fn second(turns: &Turns, weights: [u32; 2], takes_us: [u64; 2]) -> [Duration; 2] {
        let start = Instant::now();
        let (mut spent, mut until, mut half) = ([Duration::ZERO; 2], [start; 2], [Duration::ZERO; 2]);
        for ms in 0..1_000 {
            let now = start + Duration::from_millis(ms);
            for who in 0..2 {
                if now < until[who] {
                    continue;
                }
                let turn = turns.take(who as u64, weights[who], spent[who], now);
                until[who] = now + turn.wait;
                if turn.wait.is_zero() {
                    spent[who] += Duration::from_micros(takes_us[who]);
                }
            }
            if ms == 500 {
                half = spent;
            }
        }
        [0, 1].map(|who| (spent[who] - half[who]) * 2)
    }

    fn near(spent: Duration, ms: u64) -> bool {
        spent.abs_diff(Duration::from_millis(ms)) < Duration::from_millis(ms / 8 + 10)
    }

    #[test]
    fn who_is_alone_never_waits() {
        let (turns, start) = (Turns::new(2), Instant::now());
        for ms in 0..1_000 {
            let at = Duration::from_millis(ms);
            assert_eq!(turns.take(1, 1, at * 2, start + at), Turn::default());
        }
    }

    #[test]
    fn who_takes_all_it_can_gets_its_part_and_the_other_what_it_asks_for() {
        // Of two CPUs one is free, half of that for each.
        let spent = second(&Turns::new(2), [1, 1], [100, 1_000]);
        assert!(near(spent[0], 100) && near(spent[1], 500), "{spent:?}");
        // By weight.
        let spent = second(&Turns::new(2), [3, 1], [100, 1_000]);
        assert!(near(spent[0], 100) && near(spent[1], 250), "{spent:?}");
    }

    #[test]
    fn above_its_part_nobody_gets_much_more_than_the_others() {
        let spent = second(&Turns::new(2), [1, 1], [700, 1_000]);
        assert!(near(spent[0], 700) && near(spent[1], 875), "{spent:?}");
        // Who has as much as the other isn't held back.
        let spent = second(&Turns::new(2), [1, 1], [900, 1_000]);
        assert!(near(spent[0], 900) && near(spent[1], 1_000), "{spent:?}");
    }

    #[test]
    fn work_is_counted_while_there_is_a_weight() {
        let spent = Spent::default();
        let work = || (0..200_000u64).fold(1, |sum, n| std::hint::black_box(sum ^ n));
        spent.on(work);
        assert_eq!(spent.so_far(), Duration::ZERO);
        spent.set_weight(2);
        spent.on(work);
        assert!(spent.so_far() > Duration::ZERO);
    }

    #[test]
    fn more_than_can_be_told_apart_are_no_trouble() {
        let (turns, now) = (Turns::new(2), Instant::now());
        for space in 0..100 {
            assert_eq!(turns.take(space, 1, Duration::ZERO, now).beside, space > 0);
        }
        assert!(turns.users.lock().capacity() < USERS * 2);
    }

    #[test]
    fn without_a_weight_nobody_waits_and_others_are_seen_all_the_same() {
        let spent = second(&Turns::new(2), [0, 0], [100, 1_000]);
        assert!(near(spent[0], 100) && near(spent[1], 1_000), "{spent:?}");
        let (turns, now) = (Turns::new(2), Instant::now());
        assert!(!turns.take(1, 0, Duration::ZERO, now).beside);
        assert!(turns.take(2, 0, Duration::ZERO, now).beside);
        turns.forget(1);
        assert!(!turns.take(2, 0, Duration::ZERO, now).beside);
        assert!(turns.take(1, 0, Duration::ZERO, now + AWAY / 2).beside);
        assert!(!turns.take(2, 0, Duration::ZERO, now + AWAY * 2).beside);
    }
}
