//! A lock that a signal handler may take, and the proof that its holder can't be stopped by one.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::time::Duration;

use crate::sync::{AtomicU32, Ordering, SPINS, rouse, sleep, spin_loop};

/// Proof that no signal handler runs on this thread but that of a fault: all other signals are blocked while it exists.
///
/// SIGBUS isn't: a fault can't be put off, and the thread would be killed for it.
pub struct Blocked {
    restore: Option<libc::sigset_t>,
    /// The mask is the thread's.
    _here: PhantomData<*const ()>,
}

impl Blocked {
    /// Blocks them, until this is dropped.
    pub fn now() -> Self {
        // SAFETY: all zeros is a valid value of this plain structure, for both.
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the sets are ours and live; blocking signals breaks nothing but patience.
        unsafe {
            libc::sigfillset(&raw mut all);
            libc::sigdelset(&raw mut all, libc::SIGBUS);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        }
        Self { restore: Some(before), _here: PhantomData }
    }

    /// For a signal handler.
    ///
    /// # Safety
    /// All signals must be blocked on this thread for as long as this exists.
    pub(crate) unsafe fn by_the_kernel() -> Self {
        Self { restore: None, _here: PhantomData }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if let Some(before) = &self.restore {
            // SAFETY: the set is what the mask was.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
        }
    }
}

/// A mutual exclusion that signal handlers can be part of: one word, no allocation, no thread-local state.
///
/// A thread that holds it can't be stopped by a signal handler, which might want it as well: that is what the [`Blocked`] is for. What the
/// kernel can't know is up to the holder: to touch no memory whose faults are served under this lock, and to wait for nothing.
pub struct SignalLock<T> {
    /// 0: free. 1: held. 2: held, and somebody sleeps.
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: needed because of the cell. One thread at a time gets at the value, which may be sent between threads.
unsafe impl<T: Send> Sync for SignalLock<T> {}

impl<T> SignalLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for it.
    pub fn lock<'a>(&'a self, blocked: &'a Blocked) -> Held<'a, T> {
        if self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait();
        }
        Held { lock: self, _blocked: blocked }
    }

    /// Its value; nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    #[cold]
    fn wait(&self) {
        for _ in 0..SPINS {
            if self.word.load(Ordering::Relaxed) == 0
                && self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
            spin_loop();
        }
        while self.word.swap(2, Ordering::Acquire) != 0 {
            sleep(&self.word, 2, None);
        }
    }
}

/// The right to a [`SignalLock`]'s value, until it is dropped.
pub struct Held<'a, T> {
    lock: &'a SignalLock<T>,
    _blocked: &'a Blocked,
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this is the one holder.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, exclusively borrowed.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        if self.lock.word.swap(0, Ordering::Release) == 2 {
            rouse(&self.lock.word, 1);
        }
    }
}

/// Tells whoever waits that something changed. Signal handlers may wait for it and ring it.
#[derive(Default)]
pub struct Bell {
    rung: AtomicU32,
    waiting: AtomicU32,
}

impl Bell {
    /// What to wait for a change of: asked for before looking at what is to change.
    pub fn now(&self) -> u32 {
        self.rung.load(Ordering::SeqCst)
    }

    /// Wakes everybody. A system call only if somebody sleeps.
    pub fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            rouse(&self.rung, i32::MAX.unsigned_abs());
        }
    }

    /// Waits until it was rung after [`now`](Self::now) answered `seen`, or for `patience`.
    pub fn wait(&self, seen: u32, patience: Option<Duration>) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        sleep(&self.rung, seen, patience);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// As [`wait`](Self::wait), after a moment of looking without sleeping.
    pub fn wait_briefly(&self, seen: u32, patience: Option<Duration>) {
        for _ in 0..SPINS {
            if self.now() != seen {
                return;
            }
            spin_loop();
        }
        self.wait(seen, patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_at_a_time() {
        let lock = Arc::new(SignalLock::new(0u64));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    let blocked = Blocked::now();
                    for _ in 0..50_000 {
                        *lock.lock(&blocked) += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*lock.lock(&Blocked::now()), 200_000);
    }

    #[test]
    fn signals_are_blocked_and_unblocked_again() {
        let blocked = |signal| {
            // SAFETY: all zeros is a valid value of this plain structure.
            let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: nothing is changed; the set is ours.
            unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask);
                libc::sigismember(&raw const mask, signal) == 1
            }
        };
        assert!(!blocked(libc::SIGUSR1));
        let proof = Blocked::now();
        assert!(blocked(libc::SIGUSR1) && blocked(libc::SIGTERM) && !blocked(libc::SIGBUS));
        drop(proof);
        assert!(!blocked(libc::SIGUSR1));
    }

    #[test]
    fn a_bell_that_was_rung_is_not_waited_for() {
        let bell = Bell::default();
        let seen = bell.now();
        bell.ring();
        bell.wait(seen, None);
    }

    #[test]
    fn who_waits_is_woken() {
        let bell = Arc::new(Bell::default());
        let seen = bell.now();
        let waiting = {
            let bell = Arc::clone(&bell);
            std::thread::spawn(move || bell.wait(seen, None))
        };
        bell.ring();
        waiting.join().unwrap();
    }
}
