//! Bringing forked children's agents and their address spaces together.
//!
//! The event that announces a fork brings the child's userfaultfd and doesn't say whose it is. The child's agent calls on a connection of its
//! own and touches its sentinel page; the fault arrives on the child's userfaultfd with the agent's thread id, which its call
//! names. Either may come first.

use parking_lot::Mutex;
use std::collections::HashMap;
use userswap_engine::SpaceId;
use userswap_ipc::Child;

/// A sentinel's address and a thread's id: both are told by call and by fault.
type Sign = (u64, u32);

/// Those who wait for the other half.
#[derive(Default)]
pub(super) struct Claims {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    children: HashMap<Sign, Child>,
    touched: HashMap<Sign, SpaceId>,
}

impl Claims {
    /// An agent called. Returns it with its address space if that has shown itself already.
    pub(super) fn claim(&self, child: Child) -> Option<(Child, SpaceId)> {
        let sign = (child.program.sentinel.start(), child.program.tid);
        let mut waiting = self.waiting.lock();
        // Who died before it touched its sentinel never will.
        waiting.children.retain(|_, child| !child.peer.has_exited());
        match waiting.touched.remove(&sign) {
            Some(id) => Some((child, id)),
            None => {
                waiting.children.insert(sign, child);
                None
            }
        }
    }

    /// A sentinel was touched. Returns the agent that did it if it has called already.
    pub(super) fn touched(&self, sentinel: u64, thread: u32, id: SpaceId) -> Option<(Child, SpaceId)> {
        let mut waiting = self.waiting.lock();
        match waiting.children.remove(&(sentinel, thread)) {
            Some(child) => Some((child, id)),
            None => {
                waiting.touched.insert((sentinel, thread), id);
                None
            }
        }
    }

    /// An address space is gone.
    pub(super) fn forget(&self, id: SpaceId) {
        self.waiting.lock().touched.retain(|_, touched| *touched != id);
    }
}
