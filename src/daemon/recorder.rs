//! Recording which pages the clients of a server touch.

use super::error::{ServerError, chain};
use super::server::Server;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use userswap_engine::SpaceId;
use userswap_policy::trace::Trace;
use userswap_uffd::page_bytes;

/// Makes a trace of what a server's clients touch. The server must bring in one page at a time and have no limits.
///
/// A page's number in the trace is its address by the page size, with the number of its address space, in the order they were first
/// seen, in the bits from [`SPACE_SHIFT`](Self::SPACE_SHIFT) on.
pub struct Recorder {
    trace: Trace,
    spaces: HashMap<SpaceId, u64>,
    ended: Instant,
    overflown: u32,
}

impl Recorder {
    /// Bits of a page's number that are its address.
    pub const SPACE_SHIFT: u32 = 40;

    /// Starts a trace of what is run as `command`, in windows of about `window`.
    pub fn new(command: String, window: Duration) -> Self {
        let trace = Trace::new(command, page_bytes(), window);
        Self { trace, spaces: HashMap::new(), ended: Instant::now(), overflown: 0 }
    }

    /// Ends a window: everything that was touched in it is told, and moved out again.
    pub fn end_window(&mut self, server: &Server) {
        let (mut touched, mut found) = (Vec::new(), Vec::new());
        let mut clients = server.clients();
        clients.sort_unstable_by_key(|client| client.space);
        for client in clients.iter().filter(|client| client.pid != 0) {
            let next = self.spaces.len() as u64;
            let space = *self.spaces.entry(client.space).or_insert(next) << Self::SPACE_SHIFT;
            match server.sweep(client.pid) {
                Ok(swept) => {
                    touched.extend(swept.touched.iter().map(|page| page | space));
                    found.extend(swept.found.iter().map(|page| page | space));
                    self.overflown += u32::from(swept.overflown);
                }
                // It may have ended since.
                Err(ServerError::NoClient { .. } | ServerError::Memory(_)) => {}
                Err(error) => {
                    tracing::debug!(pid = client.pid, error = chain(&error), "recording a client")
                }
            }
        }
        self.trace.add(&touched, &found, self.ended.elapsed());
        self.ended = Instant::now();
    }

    /// Windows of which not everything is in order.
    pub fn overflown(&self) -> u32 {
        self.overflown
    }

    /// The trace.
    pub fn into_trace(self) -> Trace {
        self.trace
    }
}
