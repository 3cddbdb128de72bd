//! The daemon end: takes clients and their children on, moves out what it is told to, grants wishes.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use userswap_ipc::extension::RetireReason;
use userswap_ipc::{
    Abilities, Arrival, ClientLink, Connection, Contract, LinkError, Listener, Offer, Received, Terms, Wait,
    Wanted, handshake, receive,
};
use userswap_uffd::{Process, Span};

use crate::space::{FEATURES, LONG, Space};

pub(crate) struct Daemon {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

struct Shared {
    listener: Listener,
    device: Option<OwnedFd>,
    clients: Mutex<HashMap<u32, Arc<Client>>>,
    came: Condvar,
    claims: Arc<Claims>,
    retired: Mutex<Vec<RetireReason>>,
    over: AtomicBool,
}

struct Client {
    link: ClientLink,
    space: Arc<Space>,
    staging: Span,
    process: Process,
    forked: bool,
}

/// Children's userfaultfds, and who touched which sentinel.
#[derive(Default)]
pub(crate) struct Claims {
    spaces: Mutex<Vec<Arc<Space>>>,
    /// By thread id; the space's number.
    touched: Mutex<HashMap<u32, u64>>,
    changed: Condvar,
}

impl Claims {
    pub(crate) fn born(&self, space: Arc<Space>) {
        self.spaces.lock().unwrap().push(space);
    }

    pub(crate) fn touched(&self, thread: u32, space: u64) {
        self.touched.lock().unwrap().insert(thread, space);
        self.changed.notify_all();
    }

    /// The space of the agent of this thread id, once it has touched its sentinel.
    fn claim(&self, thread: u32) -> Arc<Space> {
        let deadline = Instant::now() + LONG;
        let mut touched = self.touched.lock().unwrap();
        let number = loop {
            if let Some(number) = touched.remove(&thread) {
                break number;
            }
            assert!(Instant::now() < deadline, "the sentinel was never touched by {thread}");
            touched = self.changed.wait_timeout(touched, Duration::from_millis(100)).unwrap().0;
        };
        drop(touched);
        let spaces = self.spaces.lock().unwrap();
        Arc::clone(spaces.iter().find(|space| space.number == number).unwrap())
    }
}

impl Daemon {
    pub(crate) fn start() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("userswap-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let listener = Listener::bind_abstract(&name).unwrap();
        let address = listener.path().to_str().unwrap().to_owned();
        let shared = Arc::new(Shared {
            listener,
            device: userswap_uffd::open_device().ok(),
            clients: Mutex::default(),
            came: Condvar::new(),
            claims: Arc::default(),
            retired: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let listening = Arc::clone(&shared);
        std::thread::spawn(move || listening.listen());
        Self { address, shared }
    }

    /// Moves out what can be moved of a client's range; how many pages that were. Waits until the client is there.
    pub(crate) fn move_out(&self, pid: u32, span: Span) -> u64 {
        let client = self.shared.client(pid);
        client.space.move_out(&client.link, &client.process, client.staging, span)
    }

    /// How many pages of the range are out.
    pub(crate) fn out_in(&self, pid: u32, span: Span) -> usize {
        self.shared.client(pid).space.out_in(span)
    }

    pub(crate) fn is_excluded(&self, pid: u32, addr: u64) -> bool {
        self.shared.client(pid).space.is_excluded(addr)
    }

    /// Goes away from one client without a word: its userfaultfd and its connection are closed here.
    pub(crate) fn vanish(&self, pid: u32) {
        let client = self.shared.clients.lock().unwrap().remove(&pid).unwrap();
        client.space.end();
        client.link.disconnect();
        let deadline = Instant::now() + LONG;
        // Until nobody here holds it any more.
        while Arc::strong_count(&client) + Arc::strong_count(&client.space) > 2 {
            assert!(Instant::now() < deadline, "somebody keeps the client");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn is_child(&self, pid: u32) -> bool {
        self.shared.client(pid).forked
    }

    pub(crate) fn retired(&self) -> Vec<RetireReason> {
        self.shared.retired.lock().unwrap().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.shared.listener.shut_down();
        for client in self.shared.clients.lock().unwrap().values() {
            client.link.disconnect();
            client.space.end();
        }
        self.shared.claims.spaces.lock().unwrap().iter().for_each(|space| space.end());
    }
}

impl Shared {
    fn client(&self, pid: u32) -> Arc<Client> {
        let deadline = Instant::now() + LONG;
        let mut clients = self.clients.lock().unwrap();
        loop {
            if let Some(client) = clients.get(&pid) {
                return Arc::clone(client);
            }
            assert!(Instant::now() < deadline, "{pid} never connected");
            clients = self.came.wait_timeout(clients, Duration::from_millis(100)).unwrap().0;
        }
    }

    fn listen(self: Arc<Self>) {
        while let Ok(Received::Got(connection)) = self.listener.accept(Wait::Forever) {
            let shared = Arc::clone(&self);
            std::thread::spawn(move || shared.attend(connection));
        }
    }

    /// Takes a client on and grants its wishes until it goes.
    fn attend(&self, connection: Connection) {
        let abilities = Abilities::ORDERS | Abilities::UFFD_MOVE | Abilities::DEVICE | Abilities::AGENT;
        let offer =
            Offer { contract: Contract::Extended, abilities, staging_pages: 64, max_swap_area: 1 << 30 };
        let device = self.device.as_ref().map(AsFd::as_fd);
        let terms = Terms { offer, device, setup_timeout: LONG, reply_timeout: LONG };
        let client = match receive(connection, &terms) {
            Ok(Arrival::Client(adopted)) => {
                let program = adopted.program.unwrap();
                let uffd = handshake(adopted.uffd, FEATURES).unwrap();
                let space = Space::new(uffd, program.sentinel, &self.claims);
                space.register(program.sentinel);
                let process = Process::open(adopted.peer.pid()).unwrap();
                let staging = adopted.staging.unwrap();
                assert!(program.ours.contains(&staging) && program.ours.contains(&program.sentinel));
                Client { link: adopted.link, space, staging, process, forked: false }
            }
            Ok(Arrival::Child(child)) => {
                let space = self.claims.claim(child.program.tid);
                child.settle(space.uffd.as_fd()).unwrap();
                let process = Process::open(child.peer.pid()).unwrap();
                Client { link: child.link, space, staging: child.staging.unwrap(), process, forked: true }
            }
            // Gone before it was set up: programs end when they like.
            Err(_) => return,
        };
        client.space.register(client.staging);
        let client = Arc::new(client);
        self.clients.lock().unwrap().insert(client.process.pid(), Arc::clone(&client));
        self.came.notify_all();
        while !self.over.load(Ordering::Acquire) {
            let mut fds = [PollFd::from_borrowed_fd(client.link.as_fd(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
            match client.link.wishes() {
                Ok(wishes) => wishes.into_iter().for_each(|wish| self.grant(&client, wish)),
                Err(LinkError::Closed) => break,
                Err(e) => panic!("a client's wishes: {e:?}"),
            }
        }
        client.space.end();
    }

    fn grant(&self, client: &Client, wish: userswap_ipc::Wish) {
        match wish.what {
            Wanted::Exclude(span) => client.space.bring_back(Some(span), true),
            Wanted::Retire(why) => {
                client.space.bring_back(None, false);
                self.retired.lock().unwrap().push(why);
            }
        }
        client.link.grant(wish).unwrap();
    }
}
