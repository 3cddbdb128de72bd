//! The daemon end of one connection: taking a client on, and giving it orders.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use userswap_uffd::{Features, RawUffd, Span, Uffd};

use crate::contract::{
    Contract, GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, Method, MovePtesLeavingMapping,
};
use crate::extension::{
    Abilities, Drop, DropHow, Epoch, Hint, MAX_DROPS, MAX_MOVES, Move, MoveRange, MoveReply, Mover,
};
use crate::gate::{DaemonGate, GateError};
use crate::peer::Peer;
use crate::replies::{check_moved, check_superpages};
use crate::setup::{Handover, Offer, Setup, SetupError, Step};
use crate::transport::{Connection, Deadline, Received, TransportError, Wait};
use crate::wire::{MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};

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
    /// No gate could be made.
    #[error("taking on a client")]
    Gate(#[from] GateError),
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
    /// The gate shared with it.
    pub gate: Option<DaemonGate>,
    /// Who it is.
    pub peer: Peer,
}

/// Takes a client on: answers its calls until it has handed over its userfaultfd. Blocks for [`Terms::setup_timeout`] at most.
///
/// # Errors
/// Why it isn't taken; the connection is closed, after the reply to `TransferUserfaultFD` if that was called.
pub fn adopt(connection: Connection, terms: &Terms<'_>) -> Result<Adopted, LinkError> {
    let peer = Peer::of(&connection)?;
    let (gate, handover) = set_up(&connection, terms)?;
    let Handover { uffd, swap_area, staging, abilities } = handover;
    let uffd = RawUffd::from_fd(uffd)?;
    let link = ClientLink {
        connection,
        contract: terms.offer.contract,
        abilities,
        reply_timeout: terms.reply_timeout,
        swap_area,
        turn: Mutex::new(Turn {
            last: 0,
            broken: false,
            hints: Vec::new(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
        }),
    };
    Ok(Adopted { link, uffd, swap_area, staging, gate, peer })
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

fn set_up(
    connection: &Connection,
    terms: &Terms<'_>,
) -> Result<(Option<DaemonGate>, Handover<OwnedFd>), LinkError> {
    let mut offer = terms.offer;
    if terms.device.is_none() {
        offer.abilities -= Abilities::DEVICE;
    }
    let deadline = Deadline::new(Wait::For(terms.setup_timeout));
    let mut setup = Setup::new(offer);
    let mut gate = None;
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
                let mut memfd = None;
                if granted.contains(Abilities::GATE) {
                    let made = DaemonGate::new()?;
                    memfd = Some(made.memfd().try_clone_to_owned().map_err(duplicating)?);
                    gate = Some(made);
                }
                let welcome = setup.welcome(device.map_err(duplicating)?, memfd);
                connection.send_message(welcome, request, deadline.left())?;
            }
            Step::Reply(reply) => connection.send_message(reply, request, deadline.left())?,
            Step::Transferred(handover) => {
                let reply = ToClient::<OwnedFd>::Transferred;
                let sent = connection.send_message(reply, request, deadline.left());
                let handover = handover?;
                sent?;
                return Ok((gate, handover));
            }
            Step::Nothing if deadline.has_passed() => return Err(late()),
            Step::Nothing => {}
        }
    }
}

/// Gives a client orders. Calls from several threads take turns.
///
/// The client carries them out on a thread that may have to wait for an event to be read: **whoever calls here must not be the
/// only one who reads the client's userfaultfd.**
///
/// A link on which the client was late, lied or sent nonsense is broken: the connection is shut down, and every further call is
/// [`LinkError::Closed`].
#[derive(Debug)]
pub struct ClientLink {
    connection: Connection,
    contract: Contract,
    abilities: Abilities,
    reply_timeout: Duration,
    swap_area: Span,
    turn: Mutex<Turn>,
}

/// What belongs to whose turn it is.
#[derive(Debug)]
struct Turn {
    last: u64,
    broken: bool,
    hints: Vec<Hint>,
    buffer: Vec<u8>,
}

/// Hints that are kept until somebody asks for them; of a client that sends more the oldest are forgotten.
const MOST_HINTS: usize = 256;

/// What a client's misbehaviour led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punished {
    /// It was killed.
    Killed,
    /// It was disconnected.
    Disconnected,
}

impl ClientLink {
    /// `MovePTEsLeavingMapping`: one-way. Done when the REMAP event says so; a client that can't do it ends.
    ///
    /// # Errors
    /// [`LinkError::Transport`].
    pub fn move_ptes(&self, src: Span, dest: u64) -> Result<(), LinkError> {
        let src = MemoryRegion::new(src.start(), src.len());
        self.tell(ToClient::MovePtesLeavingMapping(MovePtesLeavingMapping { src, dest }))
    }

    /// `MapArea`: one-way. Done when the UNMAP event says so, if the area is registered.
    ///
    /// # Errors
    /// [`LinkError::Transport`].
    pub fn map_area(&self, area: Span) -> Result<(), LinkError> {
        let area = MemoryRegion::new(area.start(), area.len());
        self.tell(ToClient::MapArea(MapArea { area }))
    }

    /// `GetPartitionAllocSuperPagesUsed`: at most `most` superpages (`None`: all). The ranges are of whole pages, together no larger
    /// than was asked for, not in the swap area, in order and without overlap; whether anything is there is for the client's maps
    /// to say.
    ///
    /// # Errors
    /// [`LinkError::Lied`], [`LinkError::TimedOut`], [`LinkError::Transport`].
    pub fn superpages(&self, most: Option<u32>) -> Result<Vec<Span>, LinkError> {
        let method = Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED.name;
        let max_superpages = most.map_or(-1, |most| i32::try_from(most).unwrap_or(i32::MAX));
        let question =
            ToClient::GetPartitionAllocSuperPagesUsed(GetPartitionAllocSuperPagesUsed { max_superpages });
        self.ask(method, question, |reply| match reply {
            ToDaemon::SuperPagesUsed(regions) => check_superpages(&regions, most, &self.swap_area)
                .map_err(|what| LinkError::Lied { method, what }),
            _ => Err(LinkError::Lied { method, what: "another reply" }),
        })
    }

    /// Extension `Move`: at most [`MAX_MOVES`] ranges, acknowledged.
    ///
    /// # Errors
    /// [`LinkError::NotAgreed`], [`LinkError::TooMany`], and as [`ClientLink::superpages`].
    pub fn move_ranges(
        &self,
        epoch: Epoch,
        mover: Mover,
        moves: &[MoveRange],
    ) -> Result<MoveReply, LinkError> {
        let method = Method::MOVE.name;
        let needs = match mover {
            Mover::Remap => Abilities::ORDERS,
            Mover::UffdMove => Abilities::ORDERS | Abilities::UFFD_MOVE,
        };
        self.check_order(method, needs, moves.len(), MAX_MOVES)?;
        let order = ToClient::Move(Move { epoch, mover, moves: moves.to_vec() });
        self.ask(method, order, |reply| match reply {
            ToDaemon::Moved(reply) => match check_moved(&reply, moves) {
                Ok(()) => Ok(reply),
                Err(what) => Err(LinkError::Lied { method, what }),
            },
            _ => Err(LinkError::Lied { method, what: "another reply" }),
        })
    }

    /// Extension `Drop`: at most [`MAX_DROPS`] areas, acknowledged.
    ///
    /// # Errors
    /// As [`ClientLink::move_ranges`].
    pub fn drop_areas(&self, areas: &[Span], how: DropHow) -> Result<(), LinkError> {
        let method = Method::DROP.name;
        self.check_order(method, Abilities::ORDERS, areas.len(), MAX_DROPS)?;
        let areas = areas.iter().map(|area| MemoryRegion::new(area.start(), area.len())).collect();
        self.ask(method, ToClient::Drop(Drop { areas, how }), |reply| match reply {
            ToDaemon::Dropped => Ok(()),
            _ => Err(LinkError::Lied { method, what: "another reply" }),
        })
    }

    /// The hints that came. Reads what is there if nobody else is reading; to be called when the descriptor is readable.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the client has gone, and why the link broke.
    pub fn hints(&self) -> Result<Vec<Hint>, LinkError> {
        // Whoever has the turn reads, and keeps the hints for the next call.
        let Some(mut turn) = self.turn.try_lock() else { return Ok(Vec::new()) };
        self.within(&mut turn, |turn| {
            // A client that never stops is read on the next call.
            for _ in 0..MOST_HINTS {
                match self.connection.receive_message(&mut turn.buffer, self.contract, Wait::No)? {
                    Received::Got(envelope) => self.keep_hint(&mut turn.hints, envelope.message)?,
                    Received::Nothing => return Ok(()),
                    Received::Closed => return Err(LinkError::Closed),
                }
            }
            Ok(())
        })?;
        Ok(std::mem::take(&mut turn.hints))
    }

    /// A range of the client's was unmapped while it was being moved, and not by an order. The contract ends a strict client for
    /// that; an extended one, which may not know that it is one, is disconnected.
    ///
    /// # Errors
    /// [`LinkError::Transport`] if it can't be killed; it is disconnected then.
    pub fn unexpected_unmap(&self, peer: &Peer) -> Result<Punished, LinkError> {
        self.disconnect();
        if self.contract == Contract::Extended {
            return Ok(Punished::Disconnected);
        }
        peer.kill()?;
        Ok(Punished::Killed)
    }

    /// Ends the connection, also for whoever waits on it now.
    pub fn disconnect(&self) {
        self.connection.shut_down();
    }

    /// What was agreed on.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// The contract spoken here.
    pub fn contract(&self) -> Contract {
        self.contract
    }

    fn tell(&self, message: ToClient<OwnedFd>) -> Result<(), LinkError> {
        let mut turn = self.turn.lock();
        let wait = Wait::For(self.reply_timeout);
        self.within(&mut turn, |_| Ok(self.connection.send_message(message, RequestId(0), wait)?))
    }

    fn ask<R>(
        &self,
        method: &'static str,
        message: ToClient<OwnedFd>,
        judge: impl FnOnce(ToDaemon<OwnedFd>) -> Result<R, LinkError>,
    ) -> Result<R, LinkError> {
        let mut turn = self.turn.lock();
        let deadline = Deadline::new(Wait::For(self.reply_timeout));
        let late = || LinkError::TimedOut { what: method, within: self.reply_timeout };
        self.within(&mut turn, |turn| {
            turn.last += 1;
            let request = RequestId(turn.last);
            self.connection.send_message(message, request, deadline.left())?;
            loop {
                let received =
                    self.connection.receive_message(&mut turn.buffer, self.contract, deadline.left())?;
                match received {
                    Received::Got(envelope) if envelope.request == request => {
                        return judge(envelope.message);
                    }
                    Received::Got(envelope) => self.keep_hint(&mut turn.hints, envelope.message)?,
                    Received::Nothing => return Err(late()),
                    Received::Closed => return Err(LinkError::Closed),
                }
                // Hints don't buy time.
                if deadline.has_passed() {
                    return Err(late());
                }
            }
        })
    }

    /// Does something with the link; an error breaks it.
    fn within<R>(
        &self,
        turn: &mut Turn,
        act: impl FnOnce(&mut Turn) -> Result<R, LinkError>,
    ) -> Result<R, LinkError> {
        if turn.broken {
            return Err(LinkError::Closed);
        }
        act(turn).inspect_err(|_| {
            turn.broken = true;
            self.connection.shut_down();
        })
    }

    /// Anything but a hint comes out of turn here.
    fn keep_hint(&self, hints: &mut Vec<Hint>, message: ToDaemon<OwnedFd>) -> Result<(), LinkError> {
        let what = match message {
            ToDaemon::Hint(hint) if self.abilities.contains(Abilities::HINTS) => {
                if hints.len() == MOST_HINTS {
                    hints.remove(0);
                }
                hints.push(hint);
                return Ok(());
            }
            ToDaemon::Hint(_) => "Hint",
            ToDaemon::TransferUserfaultFd(_) => "TransferUserfaultFD",
            ToDaemon::Hello(_) => "Hello",
            ToDaemon::Staging(_) => "Staging",
            ToDaemon::SuperPagesUsed(_) | ToDaemon::Moved(_) | ToDaemon::Dropped => "a reply",
        };
        Err(SetupError::OutOfTurn { what }.into())
    }

    fn check_order(
        &self,
        method: &'static str,
        needs: Abilities,
        count: usize,
        most: usize,
    ) -> Result<(), LinkError> {
        if !self.abilities.contains(needs) {
            return Err(LinkError::NotAgreed { method });
        }
        if count > most {
            return Err(LinkError::TooMany { method, count, most });
        }
        Ok(())
    }
}

impl AsFd for ClientLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn duplicating(source: std::io::Error) -> LinkError {
    TransportError::System { doing: "duplicating a descriptor for a client", source }.into()
}
