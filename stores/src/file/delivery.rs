//! A thread that gives answers which take long: those to reads of many pages, each of which has to be opened, decoded and handed over. The ring reads on meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::buffer::Buffer;
use super::kept::Kept;
use super::ring::Held;

/// Something that was read for somebody.
pub(super) struct Parcel {
    pub(super) to: Held,
    pub(super) buffer: Buffer,
    pub(super) len: usize,
}

/// The thread. It ends when the last of those who send to it is gone.
pub(super) struct Delivery(Option<JoinHandle<()>>);

impl Delivery {
    pub(super) fn start(kept: Arc<Kept>) -> io::Result<(Self, Sender<Parcel>)> {
        let (outbox, parcels) = channel();
        let builder = std::thread::Builder::new().name("userswap-deliver".into());
        let thread = builder.spawn(move || deliver(&parcels, &kept))?;
        Ok((Self(Some(thread)), outbox))
    }
}

impl Delivery {
    /// Doesn't wait for it to end: on a thread that sends to it that would be for ever.
    pub(super) fn detach(&mut self) {
        self.0 = None;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take()
            // Whoever was answered may hold the last of the store.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn deliver(parcels: &Receiver<Parcel>, kept: &Kept) {
    while let Ok(Parcel { to, mut buffer, len }) = parcels.recv() {
        to.give(Ok(&mut buffer[..len]));
        kept.keep(buffer);
    }
}
