//! The ring that messages are read into: memory that outlives the thread, and the process, that read them.
//!
//! A message that was read is told nowhere else. Entries are cleared only once what they say is in the books, so whoever
//! holds the memory (a memfd, which another process may keep) can tell after a crash what was read and not yet applied.

use crate::ledger::map::Map;
use crate::ledger::{Ledger, RING};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use userswap_uffd::RawMessage;

/// Messages one read can bring.
pub(crate) const RING_MESSAGES: usize = 128;

const RING_BYTES: usize = RING_MESSAGES * size_of::<RawMessage>();

/// One address space's ring.
pub(crate) struct Ring {
    memory: Arc<Map>,
    at: usize,
    ledger: Option<Arc<Ledger>>,
    /// Entries written by the last read and not cleared yet.
    used: usize,
}

impl Ring {
    /// An empty ring in a memfd of its own.
    ///
    /// # Errors
    /// When the system has no memory or descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let memory = Map::create("userswap-ring", RING_BYTES)?;
        Ok(Self { memory, at: 0, ledger: None, used: 0 })
    }

    /// The ring of a ledger. What a dead process has left there is in use still.
    pub(crate) fn of(ledger: &Arc<Ledger>) -> Self {
        let memory = Arc::clone(ledger.memory());
        Self { memory, at: RING, ledger: Some(Arc::clone(ledger)), used: RING_MESSAGES }
    }

    /// The ring in a ledger's memory, to be looked at.
    pub(crate) fn look(memory: &Arc<Map>) -> Self {
        Self { memory: Arc::clone(memory), at: RING, ledger: None, used: 0 }
    }

    /// Room for the next read. Whatever was there is cleared.
    pub(crate) fn room(&mut self) -> &mut [RawMessage] {
        self.clear();
        self.messages()
    }

    #[allow(unsafe_code)]
    fn messages(&mut self) -> &mut [RawMessage] {
        // SAFETY: needed so that the kernel writes the messages into the shared memory itself. This part of the memory is this ring's alone:
        // there is one to a map, and it is borrowed mutably for as long as the slice lives.
        unsafe { self.memory.messages(self.at, RING_MESSAGES) }
    }

    /// The events that a dead process has read, after so many that are in the books, in order. They are still there.
    pub(crate) fn unapplied(&mut self, applied: u32) -> Vec<RawMessage> {
        let events = self.messages().iter().filter(|message| message.is_event());
        events.skip(applied as usize).copied().collect()
    }

    /// The first `count` entries were written.
    pub(crate) fn filled(&mut self, count: usize) {
        self.used = count.min(RING_MESSAGES);
    }

    /// What they say is in the books.
    pub(crate) fn clear(&mut self) {
        if self.used == 0 {
            return;
        }
        let words: crate::ledger::map::Words<AtomicU64> =
            self.memory.words(self.at, self.used * size_of::<RawMessage>() / 8);
        words.iter().for_each(|word| word.store(0, Ordering::Release));
        self.used = 0;
        if let Some(ledger) = &self.ledger {
            ledger.ring_cleared();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_until_cleared() {
        let mut ring = Ring::new().unwrap();
        ring.room()[0] = RawMessage::from_bytes([7; 32]);
        ring.filled(1);
        let first = |ring: &mut Ring| ring.messages()[0].to_bytes();
        assert_eq!(first(&mut ring), [7; 32]);
        ring.clear();
        assert_eq!(first(&mut ring), [0; 32]);
    }
}
