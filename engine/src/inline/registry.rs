//! Which inline region is where: what the handler of SIGBUS asks first.

use super::Inline;
use parking_lot::Mutex;
use std::sync::Arc;
use userswap_uffd::sigbus::BusFault;
use userswap_uffd::{Blocked, Error, SignalLock, sigbus};

/// By address, never overlapping. Replaced as a whole, so that nothing is allocated under the lock.
static REGISTRY: SignalLock<Vec<Entry>> = SignalLock::new(Vec::new());
/// One change at a time.
static CHANGING: Mutex<()> = Mutex::new(());

#[derive(Clone)]
struct Entry {
    start: u64,
    end: u64,
    region: Arc<Inline>,
}

/// The region's place among those whose faults are served, until this is dropped.
pub(crate) struct Registered(u64);

impl Registered {
    /// Serves the region's faults from now on.
    pub(crate) fn new(region: &Arc<Inline>) -> Result<Self, Error> {
        sigbus::install(serve)?;
        let span = region.span();
        let entry = Entry { start: span.start(), end: span.end(), region: Arc::clone(region) };
        change(|entries| {
            let at = entries.partition_point(|other| other.start < entry.start);
            entries.insert(at, entry);
        });
        Ok(Self(span.start()))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        change(|entries| entries.retain(|entry| entry.start != self.0));
    }
}

fn change(edit: impl FnOnce(&mut Vec<Entry>)) {
    let _one = CHANGING.lock();
    let old = {
        let blocked = Blocked::now();
        let count = REGISTRY.lock(&blocked).len();
        let mut entries = Vec::with_capacity(count + 1);
        // Counting references allocates nothing.
        entries.extend(REGISTRY.lock(&blocked).iter().cloned());
        edit(&mut entries);
        std::mem::replace(&mut *REGISTRY.lock(&blocked), entries)
    };
    drop(old);
}

/// Serves a fault, if it is in an inline region.
fn serve(fault: BusFault, blocked: &Blocked) -> bool {
    let region = {
        let entries = REGISTRY.lock(blocked);
        let Some(at) = entries.partition_point(|entry| entry.start <= fault.addr).checked_sub(1) else {
            return false;
        };
        match entries.get(at) {
            Some(entry) if fault.addr < entry.end => Arc::clone(&entry.region),
            _ => return false,
        }
    };
    region.serve_fault(fault, blocked)
}
