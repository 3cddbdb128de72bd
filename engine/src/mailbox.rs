//! A box for somebody who may be asleep, in which nothing is left.

use crate::sync::{AtomicBool, Ordering, SegQueue};

/// One handler's box.
///
/// Who goes to sleep says so first and looks into the box once more; whoever has put something in looks whether the other sleeps
/// afterwards, and if so takes it out again. So nothing is left in the box of a sleeper.
pub(crate) struct Mailbox<T> {
    asleep: AtomicBool,
    post: SegQueue<T>,
}

impl<T> Mailbox<T> {
    /// The empty box of somebody who sleeps.
    pub(crate) fn new() -> Self {
        Self { asleep: AtomicBool::new(true), post: SegQueue::new() }
    }

    /// Says that its owner sleeps unless there is something in it. Whether it may.
    pub(crate) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        self.post.is_empty()
    }

    /// Says that its owner is up.
    pub(crate) fn gets_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Whether its owner sleeps, or is about to.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Leaves something for the owner, if that is up. Otherwise it comes back, or something else in its place.
    pub(crate) fn put(&self, post: T) -> Option<T> {
        if self.is_asleep() {
            return Some(post);
        }
        self.post.push(post);
        if self.is_asleep() { self.post.pop() } else { None }
    }

    /// The next in it, for its owner.
    pub(crate) fn take(&self) -> Option<T> {
        self.post.pop()
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.post.is_empty()
    }
}
