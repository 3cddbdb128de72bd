//! Fetches that complete later: the flight waits in a box of its own, and its last page to arrive brings it in.

use crate::fault::{FaultWork, Next};
use crate::space::Space;
use crate::stages::Stopwatch;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use userswap_store::{Completion, StoreError, Waiter};

/// A flight whose bytes are on their way from a store that doesn't answer at once.
struct Pending {
    space: Arc<Space>,
    /// Taken by whoever finishes it. The token of a completion is the page's place in the flight.
    work: Mutex<Option<FaultWork>>,
    /// Itself, for asking the store again.
    me: Weak<Self>,
}

impl Completion for Pending {
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
        let mut held = self.work.lock();
        let Some(work) = held.as_mut() else { return };
        if let Ok(at) = u32::try_from(token) {
            match (page, self.me.upgrade()) {
                (Err(error), Some(me)) if work.may_try_again(at, &error) => {
                    work.try_again(&self.space, at, &Waiter::new(me, token), &error);
                }
                (page, _) => work.arrived(&self.space, at, page),
            }
        }
        if work.is_waiting() {
            return;
        }
        let done = held.take();
        drop(held);
        if let Some(mut work) = done {
            finish(&mut work, &self.space);
        }
    }
}

/// Begins to load a flight from a store that may answer later. [`Next::Install`] if everything came at once.
pub(crate) fn load(work: &mut FaultWork, space: &Arc<Space>) -> Next {
    let fresh = FaultWork::new(work.around());
    let flying = std::mem::replace(work, fresh);
    let pending = Arc::new_cyclic(|me| Pending {
        space: Arc::clone(space),
        work: Mutex::new(Some(flying)),
        me: Weak::clone(me),
    });
    let waiter = Waiter::new(Arc::clone(&pending) as Arc<dyn Completion>, 0);
    // Completions wait for this lock until every page has been asked for.
    let mut held = pending.work.lock();
    let Some(flying) = held.as_mut() else { return Next::Done };
    flying.set_waiter(waiter);
    let next = flying.load_now(space);
    // The flight lives in the box and must not keep the box alive.
    flying.set_waiter(Waiter::none());
    if flying.is_waiting() {
        return Next::Done;
    }
    if let Some(back) = held.take() {
        *work = back;
    }
    next
}

/// The bytes are there: what is left of the fault path, on the thread that brought the last of them.
fn finish(work: &mut FaultWork, space: &Arc<Space>) {
    let mut watch = Stopwatch::start(space.stages(), None);
    if work.put_in_place(space, &mut watch) == Next::Again {
        let fault = work.fault();
        work.run(space, fault);
    }
}
