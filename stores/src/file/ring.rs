//! The ring: a thread that reads and writes, and answers each request exactly once, whatever happens to it.
//!
//! tokio-uring panics where the kernel refuses what it submits. A ring that died is made anew by the thread it died on, and what was under way
//! is done again, a few times. One that dies without having done anything since it was made stays dead, and every request is
//! answered [`Lost::Closed`].

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_uring::buf::BoundedBuf;
use userswap_store::StoreError;

use super::arrivals::{Arrival, Arrivals};
use super::buffer::{BLOCK, Buffer, Full, blocks};
use super::kept::Kept;

/// Requests that are under way at once without waiting for room in the ring.
const ENTRIES: u32 = 256;

pub(super) struct Ring {
    inbox: Option<UnboundedSender<Request>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    closed: AtomicBool,
    kept: Arc<Kept>,
    /// How often the ring was made anew.
    restarts: AtomicU64,
}

struct Request {
    offset: u64,
    len: usize,
    /// What is to be written; `None` for a read.
    bytes: Option<Full>,
    answer: Answer,
    /// How many rings died of it, or with it.
    deaths: u32,
}

/// So many rings may die before a request is given up.
const DEATHS: u32 = 4;

/// A request that is under way: if it is dropped before it ended, it is asked for again.
pub(super) struct Held {
    request: Option<Request>,
    inbox: WeakUnboundedSender<Request>,
}

impl Held {
    pub(super) fn give(mut self, result: Result<&mut [u8], Lost>) {
        if let Some(Request { answer, bytes, .. }) = self.request.take() {
            // Before the answer, so that whoever gets it is the only one to have the bytes.
            drop(bytes);
            answer.give(result);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut request) = self.request.take()
            && request.deaths < DEATHS
            && let Some(inbox) = self.inbox.upgrade()
        {
            request.deaths += 1;
            // Refused, it is answered by being dropped.
            let _ = inbox.send(request);
        }
    }
}

/// The ring is closed; there will be no answer.
#[derive(Debug)]
pub(super) struct Refused;

/// Why a request came to nothing.
pub(super) enum Lost {
    Io(io::Error),
    /// The file ends before what was to be read.
    Short,
    /// Ring after ring died, or the last with its store.
    Died,
    /// And there is no other.
    Closed,
}

impl Lost {
    pub(super) fn error(&self, doing: &'static str) -> StoreError {
        let source = match self {
            Self::Closed => return StoreError::Closed,
            Self::Io(error) => error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error),
            Self::Short => io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before that"),
            Self::Died => io::Error::new(io::ErrorKind::Interrupted, "the thread for it died"),
        };
        StoreError::Io { doing, source }
    }
}

type Then = Box<dyn FnOnce(Result<&mut [u8], Lost>) + Send>;

/// What is to be done when a request ended. Done exactly once: when it is dropped, if not before.
struct Answer {
    then: Option<Then>,
    shared: Arc<Shared>,
}

impl Answer {
    fn give(mut self, result: Result<&mut [u8], Lost>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<&mut [u8], Lost>) {
        if let Some(then) = self.then.take() {
            // What others do with it can't take the ring with it.
            let _ = catch_unwind(AssertUnwindSafe(|| then(result)));
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let closed = self.shared.closed.load(Ordering::Acquire);
        self.call(Err(if closed { Lost::Closed } else { Lost::Died }));
    }
}

/// What goes wrong on the way to the device, for tests: asked before each operation.
pub trait Disturb: Send + Sync + 'static {
    /// What becomes of reading or writing `len` bytes at `offset`.
    fn disturb(&self, write: bool, offset: u64, len: usize) -> Disturbance;
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disturbance {
    /// Nothing.
    None,
    /// It fails with this error of the operating system, by its number.
    Fail(i32),
    /// It does this much at most at once.
    Short(usize),
    /// The thread panics.
    Panic,
}

impl Ring {
    pub(super) fn start(file: File, disturb: Option<Arc<dyn Disturb>>) -> Result<Self, StoreError> {
        let failed = |doing| move |source| StoreError::Io { doing, source };
        let shared = Arc::new(Shared {
            closed: AtomicBool::new(false),
            kept: Arc::default(),
            restarts: AtomicU64::new(0),
        });
        let (inbox, requests) = unbounded_channel();
        let (started, has_started) = mpsc::channel();
        let its = Arc::clone(&shared);
        let weak = inbox.downgrade();
        let thread = std::thread::Builder::new()
            .name("userswap-ring".into())
            .spawn(move || run(&file, disturb, (weak, requests), &its, started))
            .map_err(failed("starting a thread for input and output"))?;
        has_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread died")))
            .map_err(failed("making an io_uring (a sandbox or kernel.io_uring_disabled may forbid it)"))?;
        Ok(Self { inbox: Some(inbox), thread: Some(thread), shared })
    }

    /// Reads whole blocks. The answer is given on a thread of the ring's. A closed ring gives none, and says so.
    pub(super) fn read(&self, offset: u64, len: usize, then: Then) -> Result<(), Refused> {
        self.ask(offset, blocks(len), None, then)
    }

    /// Writes whole blocks. The answer as for a read.
    pub(super) fn write(&self, offset: u64, bytes: Full, len: usize, then: Then) -> Result<(), Refused> {
        self.ask(offset, len, Some(bytes), then)
    }

    fn ask(&self, offset: u64, len: usize, bytes: Option<Full>, then: Then) -> Result<(), Refused> {
        let answer = Answer { then: Some(then), shared: Arc::clone(&self.shared) };
        let request = Request { offset, len, bytes, answer, deaths: 0 };
        let Some(inbox) = &self.inbox else { return Err(Refused) };
        inbox.send(request).map_err(|mut refused| {
            refused.0.answer.then = None;
            Refused
        })
    }

    /// Memory it keeps.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.kept.bytes()
    }

    pub(super) fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.inbox = None;
        let Some(thread) = self.thread.take() else { return };
        // Whoever was answered may hold the last of the store.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

fn run(
    file: &File,
    disturb: Option<Arc<dyn Disturb>>,
    (inbox, mut requests): (WeakUnboundedSender<Request>, UnboundedReceiver<Request>),
    shared: &Arc<Shared>,
    started: mpsc::Sender<io::Result<()>>,
) {
    let mut started = Some(started);
    loop {
        let done = AtomicU64::new(0);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(ENTRIES));
            let (runtime, copy) = match runtime.and_then(|runtime| Ok((runtime, file.try_clone()?))) {
                Ok(both) => both,
                Err(error) => return Err(error),
            };
            if let Some(started) = started.take() {
                let _ = started.send(Ok(()));
            }
            let device = Rc::new(Device {
                file: tokio_uring::fs::File::from_std(copy),
                disturb: disturb.clone(),
                shared: Arc::clone(shared),
                arrivals: Arrivals::default(),
            });
            runtime.block_on(serve(&device, &inbox, &mut requests, &done));
            Ok(())
        }));
        shared.kept.clear();
        match ended {
            Ok(Ok(())) => break,
            Ok(Err(error)) => {
                if let Some(started) = started.take() {
                    let _ = started.send(Err(error));
                }
                break;
            }
            Err(_) if done.load(Ordering::Relaxed) == 0 => break,
            Err(_) => drop(shared.restarts.fetch_add(1, Ordering::Relaxed)),
        }
    }
    shared.closed.store(true, Ordering::Release);
    requests.close();
    while requests.try_recv().is_ok() {}
}

/// Takes requests until there can be no more, and sees each to its end.
async fn serve(
    device: &Rc<Device>,
    inbox: &WeakUnboundedSender<Request>,
    requests: &mut UnboundedReceiver<Request>,
    done: &AtomicU64,
) {
    let mut running = JoinSet::new();
    while let Some(request) = requests.recv().await {
        while running.try_join_next().is_some() {
            done.fetch_add(1, Ordering::Relaxed);
        }
        let (write, offset, len) = (request.bytes.is_some(), request.offset, request.len);
        let held = Held { request: Some(request), inbox: inbox.clone() };
        let fate = match &device.disturb {
            Some(disturb) => disturb.disturb(write, offset, len),
            None => Disturbance::None,
        };
        #[allow(clippy::panic, reason = "what it was asked for")]
        if fate == Disturbance::Panic {
            panic!("the ring was told to die");
        }
        running.spawn_local(Rc::clone(device).serve_one(held, fate));
    }
    while running.join_next().await.is_some() {}
}

struct Device {
    file: tokio_uring::fs::File,
    disturb: Option<Arc<dyn Disturb>>,
    shared: Arc<Shared>,
    arrivals: Arrivals,
}

impl Device {
    async fn serve_one(self: Rc<Self>, held: Held, fate: Disturbance) {
        let at_once = match fate {
            Disturbance::Fail(number) => {
                return held.give(Err(Lost::Io(io::Error::from_raw_os_error(number))));
            }
            Disturbance::Short(most) => most.next_multiple_of(BLOCK),
            _ => usize::MAX,
        };
        let Some(Request { offset, len, bytes, .. }) = &held.request else { return };
        let (offset, len) = (*offset, *len);
        if let Some(bytes) = bytes.clone() {
            let result = self.write(bytes, offset, len, at_once).await;
            return held.give(result.map(|()| &mut [][..]));
        }
        let buffer = match self.shared.kept.buffer(len) {
            Ok(buffer) => buffer,
            Err(error) => return held.give(Err(Lost::Io(error))),
        };
        self.arrivals.reading();
        let (result, buffer) = self.read(buffer, offset, len, at_once).await;
        self.arrivals.read();
        match result {
            Ok(()) => {
                let arrival = Arrival { to: held, buffer, len };
                self.arrivals.hand_over(arrival, &self.shared.kept).await;
            }
            Err(why) => {
                held.give(Err(why));
                self.shared.kept.keep(buffer);
            }
        }
    }

    async fn read(
        &self,
        mut buffer: Buffer,
        offset: u64,
        len: usize,
        at_once: usize,
    ) -> (Result<(), Lost>, Buffer) {
        let mut read = 0;
        while read < len {
            let to = len.min(read.saturating_add(at_once));
            let (result, slice) = self.file.read_at(buffer.slice(read..to), offset + read as u64).await;
            buffer = slice.into_inner();
            match result {
                // In the middle of a block only the end of the file can be.
                Ok(more) if more == 0 || (more % BLOCK != 0 && read + more < len) => {
                    return (Err(Lost::Short), buffer);
                }
                Ok(more) => read += more,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return (Err(Lost::Io(error)), buffer),
            }
        }
        (Ok(()), buffer)
    }

    async fn write(&self, mut bytes: Full, offset: u64, len: usize, at_once: usize) -> Result<(), Lost> {
        let mut written = 0;
        while written < len {
            let to = len.min(written.saturating_add(at_once));
            let (result, slice) =
                self.file.write_at(bytes.slice(written..to), offset + written as u64).submit().await;
            bytes = slice.into_inner();
            match result {
                Ok(0) => return Err(Lost::Io(io::ErrorKind::WriteZero.into())),
                // What was written of a block in part is written again.
                Ok(more) if written + more < len && more < BLOCK => {
                    return Err(Lost::Io(io::ErrorKind::StorageFull.into()));
                }
                Ok(more) if written + more < len => written += more / BLOCK * BLOCK,
                Ok(more) => written += more,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(Lost::Io(error)),
            }
        }
        Ok(())
    }
}
