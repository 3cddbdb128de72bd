//! Who is taken on, and with what.

use super::reach::ClientReach;
use super::server::ServerError;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use userswap_engine::Watched;
use userswap_ipc::{Abilities, ClientLink, Connection, Contract, Offer, Peer, Terms};
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
}

/// A client that was taken on.
pub(crate) struct Admitted {
    pub(crate) link: Arc<ClientLink>,
    pub(crate) peer: Peer,
    pub(crate) memory: Arc<Watched<ClientReach>>,
}

/// The largest swap area a client may hand over.
const MAX_SWAP_AREA: u64 = 1 << 30;

/// Pages moved by one order of an extended client: a round trip costs little a page then.
const MOVE_PAGES: u32 = 256;

impl Admission {
    /// Takes a client on, or says why not. Blocks for as long as the client takes, ten seconds at most.
    pub(crate) fn admit(&self, connection: Connection) -> Result<Admitted, ServerError> {
        let peer = Peer::of(&connection).map_err(userswap_ipc::LinkError::from)?;
        let own = rustix::process::geteuid().as_raw();
        if ![0, own].contains(&peer.uid()) && !self.allowed.contains(&peer.uid()) {
            return Err(ServerError::NotAllowed { pid: peer.pid(), uid: peer.uid() });
        }
        let abilities = match self.contract {
            Contract::Strict => Abilities::empty(),
            Contract::Extended => {
                Abilities::ORDERS | Abilities::UFFD_MOVE | Abilities::DEVICE | Abilities::HINTS
            }
        };
        let terms = Terms {
            offer: Offer {
                contract: self.contract,
                abilities,
                staging_pages: self.staging_pages,
                max_swap_area: MAX_SWAP_AREA,
            },
            device: self.device.as_ref().map(AsFd::as_fd),
            setup_timeout: Duration::from_secs(10),
            // A stopped client answers when it goes on; nobody but itself waits for it. A dead one closes the connection.
            reply_timeout: Duration::from_secs(7 * 24 * 3600),
        };
        let adopted = userswap_ipc::adopt(connection, &terms)?;
        let process = Process::from_pidfd(
            peer.pidfd()
                .try_clone_to_owned()
                .map_err(|source| ServerError::Start { doing: "duplicating a pidfd", source })?,
        )?;
        let pagemap = Pagemap::open(peer.pid())
            .map_err(|source| ServerError::NoPagemap { pid: peer.pid(), source })?;
        let uffd = adopted.uffd.handshake(wanted())?;
        let (slots, sentinel, slot_pages) = self.cut(adopted.staging, adopted.swap_area)?;
        let link = Arc::new(adopted.link);
        register_sentinel(&uffd, sentinel)?;
        let reach = ClientReach::new(Arc::clone(&link), process, pagemap, slots, slot_pages);
        let memory = Arc::new(
            Watched::new(uffd, reach).map_err(|source| ServerError::Start { doing: "making a ring", source })?,
        );
        Ok(Admitted { link, peer, memory })
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

#[allow(unsafe_code)]
fn register_sentinel(uffd: &userswap_uffd::Uffd, sentinel: Span) -> Result<(), ServerError> {
    // SAFETY: needed because its missing pages become ours to fill. It is a page of the swap area of another process, which maps
    // it with no access and never uses it.
    unsafe { uffd.register(sentinel, RegisterMode::MISSING) }?;
    Ok(())
}
