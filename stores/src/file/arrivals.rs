//! What was read and waits for the ring's thread to open it and hand it over.
//!
//! tokio-uring submits what it was asked for when its thread has nothing else to do. If all that arrived together were opened first, the device would stand idle meanwhile, and the
//! longer the more arrives together. So the thread hands over a few pages at a time, and between them asks the ring for nothing at all (`no_op`): that submits what stands in line.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::buffer::{BLOCK, Buffer};
use super::kept::Kept;
use super::ring::Held;

/// So much is handed over before the ring has its turn. Of one, two, four and eight blocks four were the fastest: with fewer the ring's own system calls cost more
/// than an idle device does.
const AT_ONCE: usize = 4 * BLOCK;

/// Something that was read for somebody.
pub(super) struct Arrival {
    pub(super) to: Held,
    pub(super) buffer: Buffer,
    pub(super) len: usize,
}

/// Those in line. Dropped with them, which happens if the ring dies, they are asked for again.
#[derive(Default)]
pub(super) struct Arrivals {
    line: RefCell<VecDeque<Arrival>>,
    /// One of the tasks hands over.
    in_hand: Cell<bool>,
    /// Reads that the device has.
    reading: Cell<usize>,
}

impl Arrivals {
    pub(super) fn reading(&self) {
        self.reading.set(self.reading.get() + 1);
    }

    pub(super) fn read(&self) {
        self.reading.set(self.reading.get() - 1);
    }

    /// Hands it over, and then whatever else stands in line; or leaves it to the task that does so already.
    pub(super) async fn hand_over(&self, arrival: Arrival, kept: &Kept) {
        self.line.borrow_mut().push_back(arrival);
        if self.in_hand.replace(true) {
            return;
        }
        // What is alone doesn't wait. Otherwise others may have arrived together with it, whose tasks have yet to run.
        if self.reading.get() > 0 {
            turn_of_the_ring().await;
        }
        while self.hand_over_some(kept) {
            turn_of_the_ring().await;
        }
        self.in_hand.set(false);
    }

    /// Whether there is more.
    fn hand_over_some(&self, kept: &Kept) -> bool {
        let mut done = 0;
        while done < AT_ONCE {
            let next = self.line.borrow_mut().pop_front();
            let Some(Arrival { to, mut buffer, len }) = next else { return false };
            done += len;
            to.give(Ok(&mut buffer[..len]));
            kept.keep(buffer);
        }
        !self.line.borrow().is_empty()
    }
}

async fn turn_of_the_ring() {
    // Were it refused, the line would go on without.
    let _ = tokio_uring::no_op().await;
}
