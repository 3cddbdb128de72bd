//! The handler that most programs with a userfaultfd have: one thread that reads a message, decompresses the page and copies it in place.
//!
//! It is written as well as that can be: the read waits by itself, the one buffer is reused, the copy wakes the thread. What it doesn't have is all that the engine is
//! about: no neighbours come along, no CPU is chosen, nothing is done in batches. It moves out while nobody touches the memory, and so needs no care for writers either.

use crate::error::Error;
use crate::subject::{MovedOut, Reply, Request, Subject, touch};
use crate::touch::Arena;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use userswap_uffd::{CopyMode, Features, OpenMode, RawMessage, Span, Stop, Uffd, page_size};

/// The memory, and where its pages are meanwhile. The handler ends with the process.
pub(crate) struct PlainHandler {
    arena: Arena,
    shelf: Arc<Mutex<Shelf>>,
}

/// Compressed pages by their index; none for those in memory.
type Shelf = Vec<Option<Box<[u8]>>>;

impl PlainHandler {
    pub(crate) fn new(image: &[u8]) -> Result<Self, Error> {
        let arena = Arena::in_mapping(image)?;
        let uffd = Uffd::open(Features::empty(), OpenMode::UserModeOnly)?;
        let flags = fcntl_getfl(&uffd).map_err(|errno| Error::io("asking for flags")(errno.into()))?;
        fcntl_setfl(&uffd, flags - OFlags::NONBLOCK)
            .map_err(|errno| Error::io("having reads wait")(errno.into()))?;
        arena.give_to(&uffd)?;
        let shelf = Arc::new(Mutex::new(vec![None; arena.pages()]));
        let (span, shared) = (arena.span(), Arc::clone(&shelf));
        std::thread::Builder::new()
            .name("handler".into())
            .spawn(move || {
                let error = serve(&uffd, span, &shared);
                // Whoever waits for a page would wait for ever.
                eprintln!("the handler ended: {}", error.chain());
                std::process::exit(1)
            })
            .map_err(Error::io("starting a handler"))?;
        Ok(Self { arena, shelf })
    }

    fn move_out(&self) -> Result<MovedOut, Error> {
        let mut page = vec![0; page_size()];
        let mut room = vec![0; lz4_flex::block::get_maximum_output_size(page.len())];
        let mut pages = 0;
        let from = Instant::now();
        for at in 0..self.arena.pages() {
            if locked(&self.shelf)[at].is_some() {
                continue;
            }
            self.arena.read(at, &mut page);
            let len = lz4_flex::block::compress_into(&page, &mut room)
                .map_err(|error| Error::Input(format!("compressing a page: {error}")))?;
            locked(&self.shelf)[at] = Some(room[..len].into());
            pages += 1;
        }
        self.arena.discard()?;
        let ns = from.elapsed().as_secs_f64() * 1e9;
        Ok(MovedOut { pages, ns, memory_bytes: Some(memory_bytes(&locked(&self.shelf))) })
    }
}

impl Subject for PlainHandler {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => self.move_out().map(Reply::MovedOut),
            Request::Touch(how) => touch(&mut self.arena, how),
            Request::Stages => Ok(Reply::Stages(None)),
        }
    }
}

/// Answers faults, one at a time, until something goes wrong.
fn serve(uffd: &Uffd, memory: Span, shelf: &Mutex<Shelf>) -> Error {
    let mut message = [RawMessage::default()];
    let mut page = vec![0; page_size()];
    loop {
        match uffd.read(&mut message) {
            Ok(_) => {}
            Err(error) => return Error::Input(format!("reading a fault: {error}")),
        }
        let Some(fault) = message[0].as_fault(uffd.features()) else { continue };
        let at = memory.page_index(fault.addr).and_then(|at| usize::try_from(at).ok());
        let compressed = at.and_then(|at| locked(shelf).get_mut(at)?.take());
        let served = match compressed {
            Some(compressed) => answer(uffd, fault.addr, &compressed, &mut page),
            // Another thread touched it, too, and was served.
            None => Span::page_of(fault.addr)
                .map_err(|error| Error::Input(error.to_string()))
                .and_then(|span| uffd.wake(span).map_err(Error::from)),
        };
        if let Err(error) = served {
            return error;
        }
    }
}

fn answer(uffd: &Uffd, addr: u64, compressed: &[u8], page: &mut [u8]) -> Result<(), Error> {
    let len = lz4_flex::block::decompress_into(compressed, page)
        .map_err(|error| Error::Input(format!("decompressing a page: {error}")))?;
    match uffd.copy(addr, &page[..len], CopyMode::default()).stop {
        None => Ok(()),
        Some(Stop::Present) => {
            Ok(uffd.wake(Span::page_of(addr).map_err(|error| Error::Input(error.to_string()))?)?)
        }
        Some(stop) => Err(Error::Input(format!("copying a page in place: {stop:?}"))),
    }
}

/// What the pages take, the allocator's rounding and header included, and the table.
fn memory_bytes(shelf: &Shelf) -> u64 {
    let pages = shelf.iter().flatten().map(|page| (page.len() + 8).next_multiple_of(16).max(32));
    (pages.sum::<usize>() + shelf.capacity() * size_of::<Option<Box<[u8]>>>()) as u64
}

/// The handler ends the process rather than panic, so what is behind the lock is always whole.
fn locked(shelf: &Mutex<Shelf>) -> std::sync::MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}
