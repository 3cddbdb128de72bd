//! A segment of the log.

use super::buffer::{Buffer, Full};

/// A piece of the device, filled in memory and written at once.
pub(super) struct Segment {
    pub(super) state: State,
    /// Changes whenever what was in it can be overwritten.
    pub(super) era: u32,
    /// Bytes appended, and of these those of live records.
    pub(super) used: usize,
    pub(super) live: usize,
    /// The entries of its records, in order; some have moved or are gone.
    pub(super) records: Vec<u32>,
    /// Reads that are under way.
    pub(super) readers: u32,
    /// It takes room on the device.
    pub(super) allocated: bool,
    /// Not worth trying to clean: it can't be read.
    pub(super) unreadable: bool,
    /// A dead process may be writing what is in it still: not to be used again before the device says otherwise.
    pub(super) suspect: bool,
}

/// What becomes of it.
pub(super) enum State {
    Free,
    Open(Buffer),
    Writing(Full),
    /// It couldn't be written; its records live in memory.
    Failed(Full),
    Written,
    /// Out of use for a moment, while its room is given back, or for good, since it can't be written.
    Set,
}

impl Segment {
    pub(super) fn new() -> Self {
        Self {
            state: State::Free,
            era: 0,
            used: 0,
            live: 0,
            records: Vec::new(),
            readers: 0,
            allocated: false,
            unreadable: false,
            suspect: false,
        }
    }
}
