//! The daemon's part: a client process taken on, and a thread that reads its events and serves its faults.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use userswap_ipc::setup::SetupError;
use userswap_ipc::{
    Abilities, Adopted, ClientLink, Contract, LinkError, Listener, Offer, Peer, Received, Terms, Wait, adopt,
    handshake,
};
use userswap_uffd::{
    CopyMode, Event, Features, Message, RegisterMode, Span, Stop, Uffd, open_device, page_bytes, page_size,
};

use crate::client::PAGES;

/// Longer than anything here takes; only a failure waits that long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const STAGING_PAGES: u64 = 64;

/// A client process.
pub(crate) struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start(args: &[&str], uid: Option<u32>) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--client").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Ok(Self { child, lines })
    }

    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Waits for its end, its input open: closing that would be one more reason to end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let input = self.child.stdin.take();
        let status = self.child.wait().unwrap();
        drop(input);
        status
    }

    pub(crate) fn hear(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket path of its own, removed with the listener on it.
pub(crate) fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("userswap-ipc-{}-{number}.sock", std::process::id()))
}

pub(crate) fn offer(contract: Contract) -> Offer {
    Offer { contract, abilities: Abilities::all(), staging_pages: STAGING_PAGES, max_swap_area: 1 << 30 }
}

/// A client that was taken on, and its memory.
pub(crate) struct Taken {
    /// Gone once it outlives its daemon.
    process: Option<Process>,
    pub(crate) link: ClientLink,
    pub(crate) swap_area: Span,
    pub(crate) staging: Option<Span>,
    pub(crate) peer: Peer,
    pub(crate) uffd: Arc<Uffd>,
    pub(crate) memory: Span,
    pub(crate) events: Receiver<Event>,
    pub(crate) saved: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Taken {
    /// Starts a client and takes it on; `Err` says what this machine lacks.
    pub(crate) fn new(contract: Contract, uid: Option<u32>) -> Result<Self, String> {
        let name = if contract == Contract::Strict { "strict" } else { "extended" };
        Self::named(name, contract, uid)
    }

    /// The same with a client that is told `name` as its way to connect.
    pub(crate) fn named(name: &str, contract: Contract, uid: Option<u32>) -> Result<Self, String> {
        let path = socket_path();
        let listener = Listener::bind(&path, if uid.is_some() { 0o666 } else { 0o600 }).unwrap();
        let mut process = Process::start(&["cooperate", name, path.to_str().unwrap()], uid)
            .map_err(|e| format!("the client can't be started: {e}"))?;
        let Received::Got(connection) = listener.accept(Wait::For(LONG)).unwrap() else {
            panic!("no client came");
        };
        let device = open_device().ok();
        let terms = Terms {
            offer: offer(contract),
            device: device.as_ref().map(AsFd::as_fd),
            setup_timeout: LONG,
            reply_timeout: LONG,
        };
        let adopted = match adopt(connection, &terms) {
            Ok(adopted) => adopted,
            // The one thing that this machine may lack.
            Err(LinkError::Setup(SetupError::ClientUffd { .. })) => return Err(process.hear()),
            Err(e) => panic!("{e:?}: {}", process.hear()),
        };
        let said = process.hear();
        let start = said.strip_prefix("ready ").unwrap_or_else(|| panic!("{said}")).parse().unwrap();
        let memory = Span::from_pages(start, PAGES as u64).unwrap();
        let Adopted { link, uffd: raw, swap_area, staging, peer, .. } = adopted;
        let wanted = Features::EVENT_REMAP | Features::EVENT_UNMAP | Features::EVENT_REMOVE | Features::MOVE;
        let uffd = Arc::new(handshake(raw, wanted).unwrap());
        let saved = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (send, events) = channel();
        let server = {
            let (uffd, saved, stop) = (Arc::clone(&uffd), Arc::clone(&saved), Arc::clone(&stop));
            std::thread::spawn(move || serve(&uffd, &saved, &stop, &send))
        };
        let (process, server) = (Some(process), Some(server));
        Ok(Self { process, link, swap_area, staging, peer, uffd, memory, events, saved, stop, server })
    }

    pub(crate) fn register(&self, span: Span) {
        // SAFETY: the client agreed to it by connecting; what is moved out is saved and served.
        unsafe { self.uffd.register(span, RegisterMode::MISSING) }.unwrap();
    }

    /// Saves what stands at `from` as the pages of `home`.
    pub(crate) fn save(&self, from: u64, home: Span) {
        let process = userswap_uffd::Process::open(self.peer.pid()).unwrap();
        let mut bytes = vec![0; home.bytes()];
        assert_eq!(process.read_memory(from, &mut bytes).unwrap(), bytes.len());
        let mut saved = self.saved.lock().unwrap();
        for (index, page) in bytes.chunks(page_size()).enumerate() {
            saved.insert(home.start() + index as u64 * page_bytes(), page.to_vec());
        }
    }

    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(LONG).unwrap()
    }

    /// The client's memory reads as it was.
    pub(crate) fn assert_intact(&mut self) {
        assert_eq!(self.ask("check"), "intact");
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Tells the client something and hears its answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.process().tell(command);
        self.process().hear()
    }

    /// Lets go of everything a daemon holds, as its death would.
    pub(crate) fn die(mut self) -> Process {
        self.process.take().unwrap()
    }

    fn end_server(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.end_server();
    }
}

/// Reads messages and serves faults until told to stop.
fn serve(uffd: &Uffd, saved: &Mutex<HashMap<u64, Vec<u8>>>, stop: &AtomicBool, events: &Sender<Event>) {
    let mut messages = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(uffd, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        if rustix::event::poll(&mut fds, Some(&moment)) == Ok(0) {
            continue;
        }
        messages.clear();
        uffd.read_messages(&mut messages).unwrap();
        for message in messages.drain(..) {
            match message {
                Message::Fault(fault) => {
                    let saved = saved.lock().unwrap();
                    let page =
                        saved.get(&fault.addr).unwrap_or_else(|| panic!("{:#x} isn't out", fault.addr));
                    match uffd.copy(fault.addr, page, CopyMode::default()).stop {
                        None => {}
                        // Whoever brought it may have woken its waiters before this one slept. And who is to try again because an
                        // event stands before the page had better fault again: it may be the next that is read.
                        Some(Stop::Present | Stop::Busy) => {
                            uffd.wake(Span::page_of(fault.addr).unwrap()).unwrap();
                        }
                        Some(stop) => panic!("{stop:?}"),
                    }
                }
                Message::Event(event) => drop(events.send(event)),
            }
        }
    }
}
