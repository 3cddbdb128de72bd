//! Who is taken on, and with what.

use super::divisions::Divisions;
use super::error::ServerError;
use super::heir::{REPLY_TIMEOUT, note};
use super::notes;
use super::reach::{ClientReach, Told};
use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::{Ledger, Memory, Roster, Watched};
use userswap_ipc::setup::Program;
use userswap_ipc::{Abilities, Arrival, Child, ClientLink, Connection, Contract, Offer, Peer, Terms};
use userswap_uffd::{Features, Pagemap, Process, RegisterMode, Span, page_bytes};

/// What every client's userfaultfd is asked for; what the kernel hasn't isn't granted.
fn wanted() -> Features {
    Features::EVENT_FORK
        | Features::EVENT_REMAP
        | Features::EVENT_REMOVE
        | Features::EVENT_UNMAP
        | Features::THREAD_ID
        | Features::MOVE
        | Features::POISON
}

/// The rules for taking clients on.
pub(crate) struct Admission {
    pub(crate) contract: Contract,
    /// Users beside root and the daemon's own.
    pub(crate) allowed: Vec<u32>,
    /// For clients that may not open it themselves.
    pub(crate) device: Option<OwnedFd>,
    pub(crate) staging_pages: u64,
    /// Pages of a slot in a strict client's swap area.
    pub(crate) pages_per_region: u32,
    /// Whether programs that know nothing of us are taken on.
    pub(crate) unmodified: bool,
    /// Where clients are listed for a successor, if there may be one.
    pub(crate) roster: Option<Arc<Roster>>,
}

/// Who was let in.
pub(crate) enum Admitted {
    /// A client with memory of its own.
    Client(Newcomer),
    /// A forked child's agent, whose address space is here already or will be: the one whose sentinel it touches.
    Child(Child),
}

/// A client that was taken on.
pub(crate) struct Newcomer {
    pub(crate) link: Arc<ClientLink>,
    pub(crate) peer: Peer,
    pub(crate) memory: Arc<Watched<ClientReach>>,
    pub(crate) sentinel: Span,
    /// What its agent told, if it knows nothing of us.
    pub(crate) program: Option<Program>,
}

/// The largest swap area a client may hand over.
const MAX_SWAP_AREA: u64 = 1 << 30;

/// Pages moved by one order of an extended client: a round trip costs little a page then.
pub(crate) const MOVE_PAGES: u32 = 256;

impl Admission {
    /// Takes a client on, or says why not. Blocks for as long as the client takes, ten seconds at most.
    pub(crate) fn admit(&self, connection: Connection) -> Result<Admitted, ServerError> {
        let peer = Peer::of(&connection).map_err(userswap_ipc::LinkError::from)?;
        let own = rustix::process::geteuid().as_raw();
        if ![0, own].contains(&peer.uid()) && !self.allowed.contains(&peer.uid()) {
            return Err(ServerError::NotAllowed { pid: peer.pid(), uid: peer.uid() });
        }
        let mut abilities = match self.contract {
            Contract::Strict => Abilities::empty(),
            Contract::Extended => {
                Abilities::ORDERS | Abilities::UFFD_MOVE | Abilities::DEVICE | Abilities::HINTS
            }
        };
        if self.unmodified && self.contract == Contract::Extended {
            abilities |= Abilities::AGENT;
        }
        let terms = Terms {
            offer: Offer {
                contract: self.contract,
                abilities,
                staging_pages: self.staging_pages,
                max_swap_area: MAX_SWAP_AREA,
            },
            device: self.device.as_ref().map(AsFd::as_fd),
            setup_timeout: Duration::from_secs(10),
            // A stopped client answers when it goes on. A dead one closes the connection.
            reply_timeout: REPLY_TIMEOUT,
        };
        let adopted = match userswap_ipc::receive(connection, &terms)? {
            Arrival::Client(adopted) => adopted,
            Arrival::Child(child) => return Ok(Admitted::Child(child)),
        };
        let uffd = userswap_ipc::handshake(adopted.uffd, wanted())?;
        let (slots, mut sentinel, slot_pages) = self.cut(adopted.staging, adopted.swap_area)?;
        if let Some(program) = &adopted.program {
            sentinel = program.sentinel;
        }
        let link = Arc::new(adopted.link);
        let told = told(Arc::clone(&link), &peer, slots, slot_pages)?;
        let program = adopted.program;
        let failed = |source| ServerError::Start { doing: "making a ring", source };
        let memory = match &self.roster {
            None => Watched::new(uffd, ClientReach::new(told)).map_err(failed)?,
            Some(roster) => {
                let ledger = Ledger::create(roster).map_err(failed)?;
                let ranges = program
                    .as_ref()
                    .map(|program| notes::Ranges { ours: program.ours.clone(), ..notes::Ranges::default() });
                notes::write(&ledger, &note(&told, &peer, ranges));
                ledger.note_sentinel(sentinel.start());
                Watched::kept(uffd, ClientReach::new(told), ledger)
            }
        };
        // From the moment on that anything is registered its events want reading, whoever is there to do it.
        if let Some(ledger) = memory.ledger() {
            ledger.enter();
        }
        if let Err(error) = register_sentinel(memory.uffd(), sentinel) {
            if let Some(ledger) = memory.ledger() {
                ledger.leave();
            }
            return Err(error);
        }
        Ok(Admitted::Client(Newcomer { link, peer, memory: Arc::new(memory), sentinel, program }))
    }

    /// Where slots are cut from, the sentinel page, and the pages of a slot. The sentinel is the last page of the swap area: it is
    /// registered for as long as the client lives, since without anything registered a fork goes by unseen.
    fn cut(&self, staging: Option<Span>, swap: Span) -> Result<(Span, Span, u32), ServerError> {
        let page = page_bytes();
        let small = ServerError::SmallArea { bytes: swap.len() };
        let Some((rest, sentinel)) = swap.split_at(swap.end() - page) else {
            // A swap area of one page is all sentinel; slots are in the staging area then.
            return match staging {
                Some(staging) => Ok((staging, swap, MOVE_PAGES)),
                None => Err(small),
            };
        };
        match staging {
            Some(staging) => Ok((staging, sentinel, MOVE_PAGES)),
            None if rest.pages() >= u64::from(self.pages_per_region) => {
                Ok((rest, sentinel, self.pages_per_region))
            }
            None => Err(small),
        }
    }
}

/// Opens what a process is reached through.
pub(crate) fn told(
    link: Arc<ClientLink>,
    peer: &Peer,
    slots: Span,
    slot_pages: u32,
) -> Result<Told, ServerError> {
    let pidfd = peer
        .pidfd()
        .try_clone_to_owned()
        .map_err(|source| ServerError::Start { doing: "duplicating a pidfd", source })?;
    let process = Process::from_pidfd(pidfd)?;
    let pagemap =
        Pagemap::open(peer.pid()).map_err(|source| ServerError::NoPagemap { pid: peer.pid(), source })?;
    // Was it alive when that was opened, it is its own, and not that of whoever has the number now.
    if process.has_exited()? {
        return Err(userswap_uffd::Error::Gone { pid: peer.pid() }.into());
    }
    Ok(Told {
        link,
        process,
        pagemap,
        slots,
        slot_pages,
        was_shared: Mutex::default(),
        divisions: Divisions::default(),
    })
}

#[allow(unsafe_code)]
pub(crate) fn register_sentinel(uffd: &userswap_uffd::Uffd, sentinel: Span) -> Result<(), ServerError> {
    // SAFETY: needed because its missing pages become ours to fill. It is another process's page, named by it for this: the last of its
    // swap area, or its agent's.
    unsafe { uffd.register(sentinel, RegisterMode::MISSING) }?;
    Ok(())
}
