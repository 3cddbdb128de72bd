//! What a server has done for all its clients.

use userswap_engine::core::Counts;
use userswap_engine::{Histogram, Space, Stages};

/// Sums over all clients there were and are.
#[derive(Clone, Debug, Default)]
pub struct Total {
    /// How often each transition was taken.
    pub counts: Counts,
    /// Fetches the store could not serve.
    pub store_errors: u64,
    /// Pages lost for it.
    pub poisoned_pages: u64,
    /// How long faults were in a handler's hands.
    pub service: Histogram,
    /// How long the stages of faults took, if that is measured.
    pub stages: Option<Stages>,
}

impl Total {
    /// The sums as they are; a clone would go on counting with them.
    pub(super) fn copied(&self) -> Self {
        let copy = Self {
            counts: Counts::default(),
            service: self.service.clone(),
            stages: self.stages.clone(),
            ..*self
        };
        copy.counts.add(&self.counts);
        copy
    }

    pub(super) fn add(&mut self, space: &Space) {
        self.counts.add(space.counts());
        let (store_errors, poisoned) = space.troubles();
        self.store_errors += store_errors;
        self.poisoned_pages += poisoned;
        self.service.add(space.service());
        if let Some(stages) = space.stages() {
            self.stages.get_or_insert_default().add(stages);
        }
    }
}
