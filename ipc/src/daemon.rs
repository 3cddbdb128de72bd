//! Taking a client on. What follows goes over its [`ClientLink`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use userswap_uffd::{Features, RawUffd, Span, Uffd};

use crate::extension::{Abilities, AgentReply};
use crate::link::ClientLink;
use crate::peer::Peer;
use crate::setup::{Claim, Handover, Offer, Program, Setup, SetupError, Step};
use crate::transport::{Connection, Deadline, Received, TransportError, Wait};
use crate::wire::{MAX_MESSAGE_BYTES, RequestId, ToClient};

/// Why a client wasn't taken on, or an order wasn't answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The connection.
    #[error("talking to a client")]
    Transport(#[from] TransportError),
    /// What the client handed over, or when.
    #[error("taking on a client")]
    Setup(#[from] SetupError),
    /// What it handed over as a userfaultfd isn't one.
    #[error("taking on a client")]
    Uffd(#[from] userswap_uffd::Error),
    /// The client closed the connection.
    #[error("the client closed the connection")]
    Closed,
    /// The client didn't do its part in time.
    #[error("the client didn't {what} within {within:?}")]
    TimedOut {
        /// Its part.
        what: &'static str,
        /// The time it had.
        within: Duration,
    },
    /// The client answered what can't be true, or something else.
    #[error("the client's answer to {method} is wrong: {what}")]
    Lied {
        /// What was asked.
        method: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The order is larger than a message may be.
    #[error("{method} of {count} ranges, more than {most}")]
    TooMany {
        /// The order.
        method: &'static str,
        /// Its ranges.
        count: usize,
        /// How many it may have.
        most: usize,
    },
    /// The order isn't in what was agreed on with this client.
    #[error("{method} was not agreed on with this client")]
    NotAgreed {
        /// The order.
        method: &'static str,
    },
}

/// What a daemon takes a client on with.
#[derive(Debug)]
pub struct Terms<'a> {
    /// What it offers. [`Abilities::DEVICE`] is granted only if there is a device here; strict offers nothing.
    pub offer: Offer,
    /// An open `/dev/userfaultfd` to pass to this client: the caller has looked at who it is.
    pub device: Option<BorrowedFd<'a>>,
    /// How long setting up may take in all.
    pub setup_timeout: Duration,
    /// How long the client may take for an order or an answer. A stopped client takes that long to be given up.
    pub reply_timeout: Duration,
}

/// A client that was taken on.
#[derive(Debug)]
pub struct Adopted {
    /// To give it orders.
    pub link: ClientLink,
    /// Its userfaultfd, as it was handed over: usually before its handshake. [`handshake`] is next.
    pub uffd: RawUffd,
    /// Where moved memory may stand.
    pub swap_area: Span,
    /// Where UFFDIO_MOVE may move to.
    pub staging: Option<Span>,
    /// Who it is.
    pub peer: Peer,
    /// What its agent told, if it is a program that knows nothing of it. Its sentinel is to be registered before anything moves.
    pub program: Option<Program>,
}

/// A forked child of a program that knows nothing of it, asking for its userfaultfd.
#[derive(Debug)]
pub struct Child {
    /// To give it orders, once [`Child::settle`] was called.
    pub link: ClientLink,
    /// What its agent told.
    pub program: Program,
    /// Where UFFDIO_MOVE may move to.
    pub staging: Option<Span>,
    /// Who it is.
    pub peer: Peer,
    request: RequestId,
}

impl Child {
    /// Gives it its userfaultfd: the one on which the fault by [`Program::tid`] in [`Program::sentinel`] arrived.
    ///
    /// # Errors
    /// [`LinkError::Transport`]; the link is broken.
    pub fn settle(&self, uffd: BorrowedFd<'_>) -> Result<(), LinkError> {
        let uffd = uffd.try_clone_to_owned().map_err(duplicating)?;
        self.link.answer(ToClient::Enlisted(AgentReply { uffd: Some(uffd) }), self.request)
    }
}

/// Who came.
#[derive(Debug)]
pub enum Arrival {
    /// A client with a userfaultfd of its own.
    Client(Adopted),
    /// A child whose userfaultfd is here already, or will be when its parent's EVENT_FORK is read.
    Child(Child),
}

/// Takes a client on: answers its calls until it has handed over its userfaultfd. Blocks for [`Terms::setup_timeout`] at most.
///
/// # Errors
/// Why it isn't taken; the connection is closed, after the reply to `TransferUserfaultFD` if that was called.
pub fn adopt(connection: Connection, terms: &Terms<'_>) -> Result<Adopted, LinkError> {
    match receive(connection, terms)? {
        Arrival::Client(adopted) => Ok(adopted),
        Arrival::Child(_) => Err(SetupError::OutOfTurn { what: "Agent of a child" }.into()),
    }
}

/// As [`adopt`], but takes forked children, too: for a daemon that offers [`Abilities::AGENT`].
///
/// # Errors
/// As [`adopt`].
pub fn receive(connection: Connection, terms: &Terms<'_>) -> Result<Arrival, LinkError> {
    let peer = Peer::of(&connection)?;
    let came = set_up(&connection, terms)?;
    let link = |abilities, swap_area| {
        ClientLink::new(connection, terms.offer.contract, abilities, terms.reply_timeout, swap_area)
    };
    match came {
        Came::Client(handover) => {
            let Handover { uffd, swap_area, staging, abilities, program } = handover;
            let uffd = RawUffd::from_fd(uffd)?;
            let link = link(abilities, Some(swap_area));
            Ok(Arrival::Client(Adopted { link, uffd, swap_area, staging, peer, program }))
        }
        Came::Child(claim, request) => {
            let Claim { program, staging, abilities } = claim;
            let link = link(abilities, None);
            Ok(Arrival::Child(Child { link, program, staging, peer, request }))
        }
    }
}

/// How setting up ended.
enum Came {
    Client(Handover<OwnedFd>),
    Child(Claim, RequestId),
}

/// Makes the handshake on a client's userfaultfd, asking for `wanted`. One that the client has made itself is taken as it is,
/// with the three features that the contract has the client ask for.
///
/// # Errors
/// [`LinkError::Uffd`].
pub fn handshake(uffd: RawUffd, wanted: Features) -> Result<Uffd, LinkError> {
    let again = uffd.as_fd().try_clone_to_owned().map_err(duplicating)?;
    match uffd.handshake(wanted) {
        // Nothing at all was refused in the end, which a fresh one wouldn't be.
        Err(userswap_uffd::Error::Handshake { source, .. })
            if source.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(Uffd::from_handshaken(again, CONTRACT_FEATURES)?)
        }
        answer => Ok(answer?),
    }
}

/// What the contract has a client ask for that makes the handshake itself.
pub const CONTRACT_FEATURES: Features =
    Features::EVENT_UNMAP.union(Features::EVENT_REMAP).union(Features::EVENT_REMOVE);

fn set_up(connection: &Connection, terms: &Terms<'_>) -> Result<Came, LinkError> {
    let mut offer = terms.offer;
    if terms.device.is_none() {
        offer.abilities -= Abilities::DEVICE;
    }
    let deadline = Deadline::new(Wait::For(terms.setup_timeout));
    let mut setup = Setup::new(offer);
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let late = || LinkError::TimedOut { what: "set up", within: terms.setup_timeout };
    loop {
        let envelope = match connection.receive_message(&mut buffer, offer.contract, deadline.left())? {
            Received::Got(envelope) => envelope,
            Received::Closed => return Err(LinkError::Closed),
            Received::Nothing => return Err(late()),
        };
        let request = envelope.request;
        match setup.take::<OwnedFd>(envelope.message)? {
            Step::Welcome(granted) => {
                let device = terms.device.filter(|_| granted.contains(Abilities::DEVICE));
                let device = device.map(|device| device.try_clone_to_owned()).transpose();
                let welcome = setup.welcome(device.map_err(duplicating)?);
                connection.send_message(welcome, request, deadline.left())?;
            }
            Step::Reply(reply) => connection.send_message(reply, request, deadline.left())?,
            Step::Transferred(handover) => {
                let reply = ToClient::<OwnedFd>::Transferred;
                let sent = connection.send_message(reply, request, deadline.left());
                let handover = handover?;
                sent?;
                return Ok(Came::Client(handover));
            }
            Step::Child(claim) => return Ok(Came::Child(claim, request)),
            Step::Nothing if deadline.has_passed() => return Err(late()),
            Step::Nothing => {}
        }
    }
}

fn duplicating(source: std::io::Error) -> LinkError {
    TransportError::System { doing: "duplicating a descriptor for a client", source }.into()
}
