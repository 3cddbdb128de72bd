//! What those files get instead of the standard library's.

use loom::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

pub use loom::hint::spin_loop;
pub use loom::sync::atomic::{Ordering, fence};

/// Rounds before a sleep: the longer a wait, the more interleavings that say nothing new.
pub const SPINS: u32 = 1;

/// loom takes sequentially consistent operations for weaker ones, but not fences. Here all operations on a word that depends on that order
/// have it, so a fence on either side says the same.
fn ordered<R>(order: Ordering, operation: impl FnOnce(Ordering) -> R) -> R {
    if order != Ordering::SeqCst {
        return operation(order);
    }
    fence(Ordering::SeqCst);
    let result = operation(order);
    fence(Ordering::SeqCst);
    result
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// An atomic that can be made before there is a model to make it in.
        pub struct $name {
            first: $value,
            made: OnceLock<loom::sync::atomic::$name>,
        }

        impl $name {
            /// With this value.
            pub const fn new(first: $value) -> Self {
                Self { first, made: OnceLock::new() }
            }

            fn made(&self) -> &loom::sync::atomic::$name {
                self.made.get_or_init(|| loom::sync::atomic::$name::new(self.first))
            }

            /// As the standard library's.
            pub fn load(&self, order: Ordering) -> $value {
                match order {
                    Ordering::SeqCst => ordered(order, |_| self.made().load(Ordering::Acquire)),
                    _ => self.made().load(order),
                }
            }

            /// As the standard library's.
            pub fn store(&self, value: $value, order: Ordering) {
                match order {
                    Ordering::SeqCst => ordered(order, |_| self.made().store(value, Ordering::Release)),
                    _ => self.made().store(value, order),
                }
            }

            /// As the standard library's.
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                ordered(order, |order| self.made().swap(value, order))
            }

            /// As the standard library's.
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                order: Ordering,
                failed: Ordering,
            ) -> Result<$value, $value> {
                ordered(order, |order| self.made().compare_exchange(old, new, order, failed))
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicBool, bool);

impl AtomicU32 {
    /// As the standard library's.
    pub fn fetch_add(&self, more: u32, order: Ordering) -> u32 {
        ordered(order, |order| self.made().fetch_add(more, order))
    }

    /// As the standard library's.
    pub fn fetch_sub(&self, less: u32, order: Ordering) -> u32 {
        ordered(order, |order| self.made().fetch_sub(less, order))
    }
}

/// The kernel's side of a futex: the word is looked at and the thread put to sleep in one step, as far as whoever wakes can tell.
struct Sleepers {
    lock: Mutex<()>,
    woken: Condvar,
}

loom::lazy_static! {
    static ref SLEEPERS: Sleepers = Sleepers { lock: Mutex::new(()), woken: Condvar::new() };
}

/// Sleeps while the word holds this. Nobody is ever woken by the time here: what needs that to go on is a deadlock, which loom finds.
pub fn sleep(word: &AtomicU32, expected: u32, _patience: Option<Duration>) {
    let sleepers = SLEEPERS.lock.lock().unwrap();
    if word.load(Ordering::SeqCst) == expected {
        drop(SLEEPERS.woken.wait(sleepers).unwrap());
    }
}

/// Wakes up to so many. There is one word in a model that anybody sleeps on.
pub fn rouse(_word: &AtomicU32, threads: u32) {
    let sleepers = SLEEPERS.lock.lock().unwrap();
    match threads {
        1 => SLEEPERS.woken.notify_one(),
        _ => SLEEPERS.woken.notify_all(),
    }
    drop(sleepers);
}

/// A queue, whose own workings are its author's to try.
pub struct SegQueue<T>(Mutex<VecDeque<T>>);

impl<T> SegQueue<T> {
    /// An empty one.
    #[allow(clippy::new_without_default)] // as the one it stands for is used
    pub fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// Puts something at its end.
    pub fn push(&self, value: T) {
        ordered(Ordering::SeqCst, |_| self.0.lock().unwrap().push_back(value));
    }

    /// Takes what is first.
    pub fn pop(&self) -> Option<T> {
        ordered(Ordering::SeqCst, |_| self.0.lock().unwrap().pop_front())
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        ordered(Ordering::SeqCst, |_| self.0.lock().unwrap().is_empty())
    }
}
