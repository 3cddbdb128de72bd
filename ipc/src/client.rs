//! The client end, for a program that takes part.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use userswap_uffd::{Features, Mapping, OpenMode, Protection, RawUffd, Span, Uffd, page_bytes};

use crate::agent::{Agent, AgentEnd, Kept};
use crate::contract::{Contract, MemoryRegion, TransferUserfaultFd};
use crate::extension::{Abilities, Hello, HelloReply, Hint, HintKind, Staging, VERSION};
use crate::receiver::{Abort, Areas, Kill, Receiver};
use crate::superpages::{Offered, Superpages, own_stack};
use crate::sys::{OwnMemory, keep_out_of_dumps};
use crate::transport::{Connection, Received, TransportError, Wait};
use crate::vigil::{Over, Vigil};
use crate::wire::{MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};

/// Why a program couldn't become a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection.
    #[error("talking to the swap daemon")]
    Transport(#[from] TransportError),
    /// The daemon closed the connection, or knows nothing of what it was asked.
    #[error("the swap daemon closed the connection when it was sent {sent}")]
    Closed {
        /// What it was sent.
        sent: &'static str,
    },
    /// The daemon didn't answer.
    #[error("the swap daemon didn't answer {sent} in time")]
    NoAnswer {
        /// What it was sent.
        sent: &'static str,
    },
    /// The daemon answered something else.
    #[error("the swap daemon answered {sent} with something else")]
    WrongAnswer {
        /// What it was sent.
        sent: &'static str,
    },
    /// No userfaultfd could be made. The daemon has been told.
    #[error("making a userfaultfd")]
    Userfaultfd(#[source] userswap_uffd::Error),
    /// No swap area could be mapped. The daemon has been told.
    #[error("mapping a swap area")]
    SwapArea(#[source] userswap_uffd::Error),
    /// No staging area could be mapped.
    #[error("mapping a staging area")]
    Staging(#[source] userswap_uffd::Error),
    /// The agent couldn't be started.
    #[error("starting the agent thread")]
    Agent(#[source] io::Error),
    /// No randomness for the swap area's address.
    #[error("drawing a random address")]
    Random(#[source] io::Error),
}

/// Where the userfaultfd comes from, unless the daemon grants a device.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum UffdSource {
    /// `/dev/userfaultfd`, else the system call.
    #[default]
    Auto,
    /// An open `/dev/userfaultfd`.
    Device(OwnedFd),
    /// The system call.
    Syscall,
}

/// How big the swap area is, in the units the daemon cuts it into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapAreaSize {
    /// Pages of a region, and so of a slot.
    pub pages_per_region: u64,
    /// Slots: regions that may stand there at once.
    pub regions: u64,
}

impl Default for SwapAreaSize {
    fn default() -> Self {
        Self { pages_per_region: 16, regions: 100 }
    }
}

impl SwapAreaSize {
    /// In bytes; no more than there are addresses.
    pub fn bytes(self) -> u64 {
        self.pages_per_region.saturating_mul(page_bytes()).saturating_mul(self.regions)
    }
}

/// What a client is made with.
pub struct Builder {
    path: PathBuf,
    contract: Contract,
    wants: Abilities,
    uffd: UffdSource,
    handshake: Option<Features>,
    size: SwapAreaSize,
    superpages: Option<Box<dyn Superpages>>,
    kill: Box<dyn Kill>,
    timeout: Duration,
    patience: Option<Duration>,
    random: Option<Box<dyn FnMut() -> u64>>,
}

impl Builder {
    /// Which contract to speak; [`Contract::Extended`] unless said otherwise.
    pub fn contract(self, contract: Contract) -> Self {
        Self { contract, ..self }
    }

    /// Which abilities to ask for in an extended connection; all that are for programs that take part, unless said otherwise.
    pub fn wants(self, wants: Abilities) -> Self {
        Self { wants, ..self }
    }

    /// Where the userfaultfd comes from.
    pub fn uffd(self, uffd: UffdSource) -> Self {
        Self { uffd, ..self }
    }

    /// Makes the handshake here, asking for these features. Unless told so the client leaves it to the daemon, which may have the
    /// privilege for features that the client may not ask for.
    pub fn handshake(self, features: Features) -> Self {
        Self { handshake: Some(features), ..self }
    }

    /// How big the swap area is; 100 regions of 16 pages unless said otherwise.
    pub fn swap_area(self, size: SwapAreaSize) -> Self {
        Self { size, ..self }
    }

    /// Which areas to offer; what is registered by [`Client::offer`] unless said otherwise.
    pub fn superpages(self, superpages: impl Superpages + 'static) -> Self {
        Self { superpages: Some(Box::new(superpages)), ..self }
    }

    /// What to do when a one-way order fails; [`Abort`] unless said otherwise.
    pub fn kill(self, kill: impl Kill + 'static) -> Self {
        Self { kill: Box::new(kill), ..self }
    }

    /// How long to wait for each of the daemon's answers while connecting; 10 s unless said otherwise.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long threads of this process may wait for memory that nobody can bring back: the process that listens has ended without. Then this process is
    /// ended, with a line on standard error. `None`: they wait for ever. A minute unless said otherwise; no effect before Linux 6.5.
    pub fn patience(self, patience: Option<Duration>) -> Self {
        Self { patience, ..self }
    }

    /// Where the random bits of the swap area's address come from; the kernel unless said otherwise.
    pub fn random(self, random: impl FnMut() -> u64 + 'static) -> Self {
        Self { random: Some(Box::new(random)), ..self }
    }

    /// Connects, hands over a userfaultfd and a swap area, and starts to serve.
    ///
    /// # Errors
    /// What failed; [`ClientError::Userfaultfd`] and [`ClientError::SwapArea`] were reported to the daemon, too.
    pub fn connect(self) -> Result<Client, ClientError> {
        let connection = Connection::connect(&self.path)?;
        self.connect_over(connection)
    }

    /// The same over a connection that is there already.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub fn connect_over(mut self, connection: Connection) -> Result<Client, ClientError> {
        let mut caller =
            Caller { connection: &connection, contract: self.contract, wait: self.timeout, last: 0 };
        let mut welcome = Welcome::default();
        let mut staging = None;
        if self.contract == Contract::Extended {
            welcome = caller.hello(self.wants)?;
            if welcome.abilities.contains(Abilities::UFFD_MOVE) {
                staging = Some(caller.announce_staging(welcome.staging_pages)?);
            }
        }
        let uffd = match self.make_uffd(welcome.device) {
            Ok(uffd) => uffd,
            Err(e) => {
                caller.transfer(errno(&e), None, 0, MemoryRegion::default())?;
                return Err(ClientError::Userfaultfd(e));
            }
        };
        let swap = match self.make_swap_area()? {
            Ok(swap) => swap,
            Err(e) => {
                caller.transfer(0, None, errno(&e), MemoryRegion::default())?;
                return Err(ClientError::SwapArea(e));
            }
        };
        let area = swap.span();
        let handed_over = clone(&uffd)?;
        // Kept before it is handed over: from then on the daemon may register ranges with it.
        let own = Uffd::from_handshaken(clone(&uffd)?, Features::MOVE).map_err(ClientError::Userfaultfd)?;
        caller.transfer(0, Some(handed_over), 0, MemoryRegion::new(area.start(), area.len()))?;

        let kept = Kept { uffd, swap, staging };
        let offered = Offered::default();
        let superpages = self.superpages.take().unwrap_or_else(|| Box::new(offered.clone()));
        let staging = kept.staging.as_ref().map(Mapping::span);
        let make = move || {
            let areas = Areas { swap: area, staging, stack: own_stack() };
            Receiver::new(OwnMemory::new(own), areas, superpages)
        };
        let over = Over::new().map_err(ClientError::Agent)?;
        let connection = Arc::new(connection);
        if let Some(patience) = self.patience
            // Before Linux 6.5 nobody can tell who listens: it isn't watched then.
            && let Ok(vigil) = Vigil::new(&connection, &kept.uffd, patience, &over)
        {
            vigil.start().map_err(ClientError::Agent)?;
        }
        let agent = Agent::start(Arc::clone(&connection), self.contract, make, self.kill);
        match agent {
            Ok(agent) => Ok(Client {
                connection,
                inner: Some(Inner { agent, kept, over }),
                swap_area: area,
                abilities: welcome.abilities,
                offered,
                timeout: self.timeout,
            }),
            Err(e) => Err(ClientError::Agent(e)),
        }
    }

    fn make_uffd(&self, granted: Option<OwnedFd>) -> Result<OwnedFd, userswap_uffd::Error> {
        let device;
        let mode = match (&granted, &self.uffd) {
            (Some(granted), _) => OpenMode::Device(granted.as_fd()),
            (None, UffdSource::Device(own)) => {
                device = own.as_fd();
                OpenMode::Device(device)
            }
            (None, UffdSource::Auto) => OpenMode::Auto,
            (None, UffdSource::Syscall) => OpenMode::Syscall,
        };
        let raw = RawUffd::create(mode)?;
        match self.handshake {
            Some(features) => raw.handshake(features)?.try_clone_fd(),
            None => Ok(raw.into_fd()),
        }
    }

    /// The outer error is the client's alone, the inner one is to be reported.
    fn make_swap_area(&mut self) -> Result<Result<Mapping, userswap_uffd::Error>, ClientError> {
        let len = self.size.bytes();
        if let Some(random) = &mut self.random {
            return Ok(Mapping::at_random_noreplace(len, Protection::NONE, random));
        }
        let mut kernel = KernelRandom::open().map_err(ClientError::Random)?;
        let mapping = Mapping::at_random_noreplace(len, Protection::NONE, &mut || kernel.draw());
        match kernel.failed {
            Some(e) => Err(ClientError::Random(e)),
            None => Ok(mapping),
        }
    }
}

/// A program that takes part in swapping, as long as this lives and, unless [`Client::disconnect`] is called, until it ends.
///
/// Dropping it changes nothing: the agent serves on, and memory that is moved out stays with the daemon. If the daemon dies,
/// whoever touches such memory waits; nobody ever reads zeros. [`Builder::patience`] ends that.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Connection>,
    /// Gone only in the midst of being dropped.
    inner: Option<Inner>,
    swap_area: Span,
    abilities: Abilities,
    offered: Offered,
    timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    agent: Agent,
    kept: Kept,
    over: Over,
}

impl Client {
    /// A client of the daemon at `path`.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder {
            path: path.as_ref().to_path_buf(),
            contract: Contract::default(),
            wants: Abilities::all() - Abilities::AGENT,
            uffd: UffdSource::default(),
            handshake: None,
            size: SwapAreaSize::default(),
            superpages: None,
            kill: Box::new(Abort),
            timeout: Duration::from_secs(10),
            patience: Some(Duration::from_secs(60)),
            random: None,
        }
    }

    /// Offers `area`, which lies within one private anonymous mapping and stays mapped. `false` if some of it is offered
    /// already. Without effect if the builder was given another provider.
    pub fn offer(&self, area: Span) -> bool {
        self.offered.offer(area)
    }

    /// See [`Offered::withdraw`].
    pub fn withdraw(&self, area: Span) -> bool {
        self.offered.withdraw(area)
    }

    /// Tells the daemon something about this program; nothing if it doesn't listen.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn hint(&self, kind: HintKind, value: u64) -> Result<(), TransportError> {
        if !self.abilities.contains(Abilities::HINTS) {
            return Ok(());
        }
        let hint = ToDaemon::Hint(Hint { kind, value });
        self.connection.send_message(hint, RequestId(0), Wait::For(self.timeout))
    }

    /// What the daemon granted.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Where the swap area is.
    pub fn swap_area(&self) -> Span {
        self.swap_area
    }

    /// Whether the agent serves.
    pub fn is_served(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| !inner.agent.has_ended())
    }

    /// Why the agent no longer serves; told once.
    pub fn end(&self) -> Option<AgentEnd> {
        self.inner.as_ref().and_then(|inner| inner.agent.end())
    }

    /// Ends the connection and the agent. What is given back is to be dropped only if nothing is moved out any more, else
    /// that memory reads as zeros.
    #[must_use = "dropping it while memory is moved out loses that memory"]
    pub fn disconnect(mut self) -> Option<Kept> {
        self.connection.shut_down();
        let Inner { agent, kept, over } = self.inner.take()?;
        over.set();
        agent.join();
        Some(kept)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The program may have memory out that nobody but the daemon has: see the type.
        if let Some(Inner { kept, .. }) = self.inner.take() {
            std::mem::forget(kept);
        }
    }
}

/// What came of `Hello`.
struct Welcome {
    abilities: Abilities,
    device: Option<OwnedFd>,
    staging_pages: u64,
}

impl Default for Welcome {
    fn default() -> Self {
        Self { abilities: Abilities::empty(), device: None, staging_pages: 0 }
    }
}

/// Makes the calls of setting up, one after the other.
struct Caller<'a> {
    connection: &'a Connection,
    contract: Contract,
    wait: Duration,
    last: u64,
}

impl Caller<'_> {
    fn hello(&mut self, wants: Abilities) -> Result<Welcome, ClientError> {
        let hello = Hello { version: VERSION, wants: wants.bits() };
        let ToClient::Welcome(reply) = self.call("Hello", ToDaemon::Hello(hello))? else {
            return Err(ClientError::WrongAnswer { sent: "Hello" });
        };
        let HelloReply { version, granted, uffd_device, staging_pages } = reply;
        if version != VERSION {
            return Ok(Welcome::default());
        }
        let abilities = Abilities::from_bits_truncate(granted) & wants;
        let device = uffd_device.filter(|_| abilities.contains(Abilities::DEVICE));
        Ok(Welcome { abilities, device, staging_pages })
    }

    fn announce_staging(&mut self, pages: u64) -> Result<Mapping, ClientError> {
        let len = pages.saturating_mul(page_bytes());
        let staging = Mapping::new(len, Protection::READ_WRITE).map_err(ClientError::Staging)?;
        keep_out_of_dumps(staging.span()).map_err(ClientError::Staging)?;
        let area = MemoryRegion::new(staging.span().start(), staging.span().len());
        match self.call("Staging", ToDaemon::Staging(Staging { area }))? {
            ToClient::Staged => Ok(staging),
            _ => Err(ClientError::WrongAnswer { sent: "Staging" }),
        }
    }

    fn transfer(
        &mut self,
        uffd_error: u64,
        uffd_handle: Option<OwnedFd>,
        mmap_error: u64,
        swap_area: MemoryRegion,
    ) -> Result<(), ClientError> {
        let sent = "TransferUserfaultFD";
        let transfer = TransferUserfaultFd { uffd_error, uffd_handle, mmap_error, swap_area };
        match self.call(sent, ToDaemon::TransferUserfaultFd(transfer))? {
            ToClient::Transferred => Ok(()),
            _ => Err(ClientError::WrongAnswer { sent }),
        }
    }

    fn call(
        &mut self,
        sent: &'static str,
        message: ToDaemon<OwnedFd>,
    ) -> Result<ToClient<OwnedFd>, ClientError> {
        self.last += 1;
        let request = RequestId(self.last);
        let wait = Wait::For(self.wait);
        match self.connection.send_message(message, request, wait) {
            Err(TransportError::Closed) => return Err(ClientError::Closed { sent }),
            answer => answer?,
        }
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match self.connection.receive_message(&mut buffer, self.contract, wait)? {
            Received::Got(envelope) if envelope.request == request => Ok(envelope.message),
            Received::Got(_) => Err(ClientError::WrongAnswer { sent }),
            Received::Nothing => Err(ClientError::NoAnswer { sent }),
            Received::Closed => Err(ClientError::Closed { sent }),
        }
    }
}

/// Random numbers from the kernel; the first failure is kept, and zeros are drawn from then on.
struct KernelRandom {
    file: std::fs::File,
    failed: Option<io::Error>,
}

impl KernelRandom {
    fn open() -> io::Result<Self> {
        Ok(Self { file: std::fs::File::open("/dev/urandom")?, failed: None })
    }

    fn draw(&mut self) -> u64 {
        use std::io::Read;
        let mut bytes = [0; 8];
        if let Err(e) = self.file.read_exact(&mut bytes) {
            self.failed = Some(e);
        }
        u64::from_ne_bytes(bytes)
    }
}

/// The error's number as the contract carries it. There is always one to tell: 0 would say that there was none.
fn errno(error: &userswap_uffd::Error) -> u64 {
    let number = error.errno().and_then(|number| u64::try_from(number).ok());
    number.filter(|number| *number != 0).unwrap_or(libc::EINVAL.unsigned_abs().into())
}

fn clone(uffd: &OwnedFd) -> Result<OwnedFd, ClientError> {
    let failed = |source| TransportError::System { doing: "duplicating the userfaultfd", source };
    uffd.try_clone().map_err(|e| failed(e).into())
}
