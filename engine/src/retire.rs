//! Letting an address space go in good order: everything back, nothing registered.

use crate::directory::{Part, without};
use crate::evict::AROUND;
use crate::memory::MemoryError;
use crate::space::Space;
use std::sync::Arc;
use std::time::Duration;
use userswap_uffd::{Span, page_bytes};

/// How often a region with pages still on their way is tried again, a millisecond apart.
const TRIES: u32 = 1000;

impl Space {
    /// Brings everything back and leaves every range, the sentinel too, to the kernel. Afterwards the program needs nobody to
    /// read its userfaultfd: it can fork, unmap and touch as it likes. Returns the pages that came back.
    ///
    /// # Errors
    /// When the address space is gone, or something could not be brought back; that stays in care then.
    pub fn retire(self: &Arc<Self>) -> Result<u64, MemoryError> {
        let out = self.usage().out;
        // All of it first: nothing is unregistered while anything is out.
        self.each_part(|space, span| space.bring_back(span, AROUND).map(drop))?;
        self.each_part(Self::let_go)?;
        self.unregister_leftover();
        if let Ok(sentinel) = Span::new(self.sentinel(), page_bytes()) {
            // A child that never had it registered needs nothing done.
            let _ = self.memory().unregister(sentinel);
        }
        Ok(out)
    }

    /// A range is nobody's that is registered still.
    pub(crate) fn note_leftover(&self, span: Span) {
        let mut leftover = self.leftover.lock();
        *leftover = without(&leftover, span);
        leftover.push(span);
    }

    /// Leaves to the kernel what is nobody's. Nothing at all may be out.
    pub(crate) fn unregister_leftover(&self) {
        for span in std::mem::take(&mut *self.leftover.lock()) {
            // It may be unmapped by now.
            let _ = self.memory().unregister(span);
        }
    }

    /// Does something about every part, patiently.
    fn each_part(
        self: &Arc<Self>,
        act: impl Fn(&Arc<Self>, Span) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        self.parts().iter().filter_map(Part::span).try_for_each(|span| patiently(|| act(self, span)))
    }

    /// As [`let_go`](Self::let_go), tried again for a while where pages are on their way.
    ///
    /// # Errors
    /// As `let_go`; also where a page of it is lost.
    pub fn let_go_patiently(self: &Arc<Self>, span: Span) -> Result<(), MemoryError> {
        patiently(|| self.let_go(span))
    }
}

/// Does something again and again while it is refused for pages on their way.
fn patiently(act: impl Fn() -> Result<(), MemoryError>) -> Result<(), MemoryError> {
    let mut tries = 0;
    loop {
        match act() {
            Err(MemoryError::Refused { .. }) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}
