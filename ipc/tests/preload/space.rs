//! One address space of a client's: its userfaultfd, the pages that were moved out, and the thread that serves it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use userswap_ipc::ClientLink;
use userswap_ipc::extension::{MoveRange, MoveStop, Mover};
use userswap_uffd::{CopyMode, Event, Features, Message, Process, RegisterMode, Span, Stop, Uffd, page_size};

use crate::daemon::Claims;

const PAGE: u64 = 4096;

/// What the test asks the kernel for.
pub(crate) const FEATURES: Features = Features::EVENT_FORK
    .union(Features::EVENT_REMAP)
    .union(Features::EVENT_REMOVE)
    .union(Features::EVENT_UNMAP)
    .union(Features::THREAD_ID)
    .union(Features::MOVE);

pub(crate) struct Space {
    pub(crate) uffd: Uffd,
    /// Tells it from the others.
    pub(crate) number: u64,
    /// The page that tells a child; a child's is its parent's.
    sentinel: AtomicU64,
    /// The gate: held while messages are read and applied, and from an order to the record of it.
    books: Mutex<Books>,
    over: AtomicBool,
    claims: Weak<Claims>,
}

#[derive(Default, Clone)]
struct Books {
    pages: BTreeMap<u64, Vec<u8>>,
    registered: Vec<Span>,
    excluded: Vec<Span>,
}

impl Space {
    pub(crate) fn new(uffd: Uffd, sentinel: Span, claims: &Arc<Claims>) -> Arc<Self> {
        Self::start(uffd, sentinel.start(), Books::default(), Arc::downgrade(claims))
    }

    fn start(uffd: Uffd, sentinel: u64, books: Books, claims: Weak<Claims>) -> Arc<Self> {
        let books = Mutex::new(books);
        let sentinel = AtomicU64::new(sentinel);
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let (number, over) = (COUNT.fetch_add(1, Ordering::Relaxed), AtomicBool::new(false));
        let space = Arc::new(Self { uffd, number, sentinel, books, over, claims });
        let served = Arc::clone(&space);
        std::thread::spawn(move || served.serve());
        space
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(crate) fn register(&self, span: Span) {
        self.register_in(&mut self.books.lock().unwrap(), span);
    }

    fn register_in(&self, books: &mut Books, span: Span) {
        // SAFETY: the memory of a program that this test runs for the purpose; what is missing is put back by `serve`.
        #[allow(unsafe_code)]
        unsafe { self.uffd.register(span, RegisterMode::MISSING) }.unwrap();
        books.registered.push(span);
    }

    /// Moves what can be moved out of `span`; how many pages were.
    pub(crate) fn move_out(&self, link: &ClientLink, process: &Process, staging: Span, span: Span) -> u64 {
        let (mut at, mut moved, mut tries) = (span.start(), 0, 0);
        while at < span.end() {
            let len = (span.end() - at).min(staging.len());
            let range = MoveRange { src: at, len, dest: staging.start() };
            let mut books = self.books.lock().unwrap();
            if books.excluded.iter().any(|excluded| excluded.contains(at)) {
                at += PAGE;
                continue;
            }
            self.register_in(&mut books, Span::new(at, len).unwrap());
            let reply = link.move_ranges(Mover::UffdMove, &[range]).unwrap();
            let result = reply.results[0];
            let mut bytes = vec![0; usize::try_from(result.moved).unwrap()];
            assert_eq!(process.read_memory(staging.start(), &mut bytes).unwrap(), bytes.len());
            for (page, bytes) in (at..).step_by(page_size()).zip(bytes.chunks(page_size())) {
                books.pages.insert(page, bytes.to_vec());
            }
            drop(books);
            if result.moved > 0 {
                let filled = Span::new(staging.start(), result.moved).unwrap();
                link.drop_areas(&[filled], userswap_ipc::extension::DropHow::DontNeed).unwrap();
                tries = 0;
            }
            at += result.moved;
            moved += result.moved / PAGE;
            tries += 1;
            match result.stop {
                MoveStop::None => {}
                MoveStop::Busy if tries < 1000 => std::thread::sleep(Duration::from_millis(1)),
                MoveStop::WasShared if tries < 3 => {
                    link.unshare(&[Span::new(at, len - result.moved).unwrap()]).unwrap();
                }
                MoveStop::Hole | MoveStop::Pinned | MoveStop::WasShared => at += PAGE,
                other => panic!("moving {at:#x}: {other:?}"),
            }
        }
        moved
    }

    /// Brings back and unregisters what there is in `span`, or everything.
    pub(crate) fn bring_back(&self, span: Option<Span>, exclude: bool) {
        let mut books = self.books.lock().unwrap();
        if let (Some(span), true) = (span, exclude) {
            books.excluded.push(span);
        }
        let (start, end) = span.map_or((0, u64::MAX), |span| (span.start(), span.end()));
        let pages: Vec<u64> = books.pages.range(start..end).map(|(at, _)| *at).collect();
        for at in pages {
            while !self.install(&mut books, at) {
                self.take_messages(&mut books, &mut Vec::new());
            }
        }
        // Ranges that aren't mapped any more, or weren't registered, are refused.
        match span {
            Some(span) => drop(self.uffd.unregister(span)),
            None => books.registered.iter().for_each(|span| drop(self.uffd.unregister(*span))),
        }
    }

    pub(crate) fn out_in(&self, span: Span) -> usize {
        self.books.lock().unwrap().pages.range(span.start()..span.end()).count()
    }

    pub(crate) fn is_excluded(&self, addr: u64) -> bool {
        self.books.lock().unwrap().excluded.iter().any(|span| span.contains(addr))
    }

    fn serve(&self) {
        let mut waiting = Vec::new();
        while !self.over.load(Ordering::Acquire) {
            let mut fds = [PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN)];
            let pause = if waiting.is_empty() { 20_000_000 } else { 500_000 };
            let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: pause }));
            let mut books = self.books.lock().unwrap();
            self.take_messages(&mut books, &mut waiting);
            waiting.retain(|at| !self.install(&mut books, *at));
        }
    }

    /// Reads and applies events; adds the pages that somebody waits for.
    fn take_messages(&self, books: &mut Books, waiting: &mut Vec<u64>) {
        let mut messages = Vec::new();
        if self.uffd.read_messages(&mut messages).is_err() {
            self.end();
        }
        let sentinel = self.sentinel.load(Ordering::Relaxed);
        for message in messages {
            match message {
                Message::Fault(fault) if fault.addr == sentinel => {
                    waiting.push(fault.addr);
                    if let Some(claims) = self.claims.upgrade() {
                        claims.touched(fault.thread.unwrap(), self.number);
                    }
                }
                Message::Fault(fault) => waiting.push(fault.addr),
                Message::Event(Event::Fork { child }) => {
                    let uffd = Uffd::from_handshaken(child, self.uffd.features()).unwrap();
                    if let Some(claims) = self.claims.upgrade() {
                        claims.born(Self::start(uffd, sentinel, books.clone(), self.claims.clone()));
                    }
                }
                Message::Event(Event::Remove(span) | Event::Unmap(span)) => {
                    books.pages.retain(|at, _| !span.contains(*at));
                }
                Message::Event(Event::Remap { from, to, len }) => {
                    let moved: Vec<u64> = books.pages.range(from..from + len).map(|(at, _)| *at).collect();
                    for at in moved {
                        let page = books.pages.remove(&at).unwrap();
                        books.pages.insert(at - from + to, page);
                    }
                }
            }
        }
    }

    /// Puts a page in place, zeros if it was never moved out. `false`: to be tried again.
    fn install(&self, books: &mut Books, at: u64) -> bool {
        let page = Span::page_of(at).unwrap();
        let outcome = match books.pages.get(&at) {
            Some(bytes) => self.uffd.copy(at, bytes, CopyMode::default()),
            None => self.uffd.zeropage(page, false),
        };
        match outcome.stop {
            Some(Stop::Busy) => return false,
            Some(Stop::Present) => self.uffd.wake(page).unwrap(),
            Some(Stop::Gone) => self.end(),
            None | Some(Stop::Unmapped) => {}
            Some(other) => panic!("installing {at:#x}: {other}"),
        }
        books.pages.remove(&at);
        true
    }
}

/// So long a client may take for anything.
pub(crate) const LONG: Duration = Duration::from_secs(30);
