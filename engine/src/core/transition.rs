//! Every way a page's state can change, by name, and how often each was taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! transitions {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal,)+) => {
        /// A named state transition of a page or of the work on it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Transition { $($(#[doc = $doc])+ $name,)+ }

        impl Transition {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

transitions! {
    /// A fault on a page that was never ours.
    FirstTouch => "first-touch",
    /// A fault on a removed page.
    TouchRemoved => "touch-removed",
    /// A fault on a page taken for resident: freed lazily, or resolved before the fault was read.
    TouchResident => "touch-resident",
    /// A fault on a page whose move order is out.
    FaultOnMoving => "fault-on-moving",
    /// A fault on a page somebody is already bringing in.
    DuplicateFault => "duplicate-fault",
    /// A fault on a poisoned page.
    FaultOnPoison => "fault-on-poison",
    /// A fault where no region is: in a slot, at the sentinel, or in what is registered still though all of it is back.
    FaultOutside => "fault-outside",
    /// A demanded page starts back from its slot.
    Recall => "recall",
    /// A neighbour starts back from the slot with it.
    RecallAround => "recall-around",
    /// A demanded page starts back from the store.
    Fetch => "fetch",
    /// A neighbour starts back from the store with it.
    FetchAround => "fetch-around",
    /// A page that came along was used: its stream went on behind it.
    AlongUsed => "along-used",
    /// A page came along in vain, as far as known: its stream ended before it.
    AlongUnused => "along-unused",
    /// A loaded page was installed.
    Installed => "installed",
    /// A page was found where a loaded one was to go.
    FoundPresent => "found-present",
    /// A page was removed, unmapped or replaced while its bytes were being loaded.
    VanishedInFlight => "vanished-in-flight",
    /// A page being loaded went back: the kernel was busy, or its neighbour's flight ended early.
    ReturnedToStore => "returned-to-store",
    /// A page's bytes could not be loaded.
    Poisoned => "poisoned",
    /// A page was covered by a move order.
    MoveOrdered => "move-ordered",
    /// It moved to its slot.
    Moved => "moved",
    /// It stayed.
    NotMoved => "not-moved",
    /// It moved, but had been removed meanwhile.
    DoomedArrived => "doomed-arrived",
    /// A written page's object became the page.
    Committed => "committed",
    /// A written page had gone elsewhere.
    StaleWrite => "stale-write",
    /// A page was removed while its move order was out.
    RemovedWhileMoving => "removed-while-moving",
    /// A page was removed while being loaded.
    RemovedInFlight => "removed-in-flight",
    /// A stored page was removed.
    RemovedStored => "removed-stored",
    /// A page standing in a slot was removed.
    RemovedStandby => "removed-standby",
    /// A page that was with its owner was removed.
    RemovedResident => "removed-resident",
    /// A page that was out was unmapped.
    UnmappedOut => "unmapped-out",
    /// A range with pages of ours moved to another address.
    Remapped => "remapped",
    /// Something landed on a range with pages of ours before the event that says what became of them.
    Displaced => "displaced",
    /// A stored page became shared with a forked child.
    ForkShared => "fork-shared",
    /// A child inherited a page that stands in its parent's slot.
    ForkStandby => "fork-standby",
    /// An event stood before an install: the kernel said to try again.
    Busy => "busy",
    /// A parked fault was taken up again.
    Retried => "retried",
    /// A thread was woken although nothing was installed for it.
    Woken => "woken",
    /// A move was refused because the page is pinned or shared.
    Pinned => "pinned",
}

/// How often each transition was taken; shared by the regions of one address space.
#[derive(Clone, Debug)]
pub struct Counts(Arc<[AtomicU64]>);

impl Default for Counts {
    fn default() -> Self {
        Self(Transition::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Counts {
    /// Counts one.
    pub fn hit(&self, transition: Transition) {
        self.add_to(transition, 1);
    }

    /// Counts some.
    pub fn add_to(&self, transition: Transition, times: u64) {
        if times > 0 {
            self.0[transition as usize].fetch_add(times, Ordering::Relaxed);
        }
    }

    /// How often `transition` was taken.
    pub fn get(&self, transition: Transition) -> u64 {
        self.0[transition as usize].load(Ordering::Relaxed)
    }

    /// Adds what `other` counted.
    pub fn add(&self, other: &Self) {
        for transition in Transition::ALL {
            self.add_to(*transition, other.get(*transition));
        }
    }

    /// Every transition with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Transition, u64)> + '_ {
        Transition::ALL.iter().map(|&transition| (transition, self.get(transition)))
    }
}
