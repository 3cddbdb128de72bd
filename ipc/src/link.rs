//! The daemon's end of a connection once the client was taken on: orders, answers, wishes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use userswap_uffd::Span;

use crate::contract::{
    Contract, GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, Method, MovePtesLeavingMapping,
};
use crate::daemon::LinkError;
use crate::extension::{
    Abilities, Drop, DropHow, Hint, MAX_DROPS, MAX_MOVES, Move, MoveRange, MoveReply, Mover, Unshare,
};
use crate::inbox::{Inbox, MOST_HINTS, Wish, is_reply};
use crate::peer::Peer;
use crate::replies::{check_moved, check_superpages};
use crate::transport::{Connection, Deadline, Received, Wait};
use crate::wire::{Envelope, MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};

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
    swap_area: Option<Span>,
    turn: Mutex<Turn>,
}

/// What belongs to whose turn it is.
#[derive(Debug)]
struct Turn {
    last: u64,
    /// Answers to requests up to this one were for a daemon that is dead.
    others: u64,
    broken: bool,
    inbox: Inbox,
    buffer: Vec<u8>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            last: 0,
            others: 0,
            broken: false,
            inbox: Inbox::default(),
            buffer: vec![0; MAX_MESSAGE_BYTES],
        }
    }
}

impl Turn {
    /// Whether it answers what a daemon before this one asked.
    fn is_for_another(&self, envelope: &Envelope<ToDaemon<OwnedFd>>) -> bool {
        is_reply(&envelope.message) && (1..=self.others).contains(&envelope.request.0)
    }
}

/// What was agreed on with a client by a daemon that is dead.
#[derive(Clone, Copy, Debug)]
pub struct Resumed {
    /// The contract spoken.
    pub contract: Contract,
    /// What was granted.
    pub abilities: Abilities,
    /// As [`Terms::reply_timeout`](crate::Terms::reply_timeout).
    pub reply_timeout: Duration,
    /// The client's swap area.
    pub swap_area: Option<Span>,
    /// How many daemons had the connection before this one, below 2²³.
    pub epoch: u64,
}

/// What a client's misbehaviour led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punished {
    /// It was killed.
    Killed,
    /// It was disconnected.
    Disconnected,
}

impl ClientLink {
    pub(crate) fn new(
        connection: Connection,
        contract: Contract,
        abilities: Abilities,
        reply_timeout: Duration,
        swap_area: Option<Span>,
    ) -> Self {
        Self { connection, contract, abilities, reply_timeout, swap_area, turn: Mutex::new(Turn::default()) }
    }

    /// The link of a daemon that is dead, taken up by the next one, the `epoch`-th on this connection: answers to what the ones before it asked are
    /// known by their numbers, and dropped.
    pub fn resume(connection: Connection, terms: &Resumed) -> Self {
        let others = terms.epoch << 40;
        let turn = Turn { last: others, others, ..Turn::default() };
        Self {
            connection,
            contract: terms.contract,
            abilities: terms.abilities,
            reply_timeout: terms.reply_timeout,
            swap_area: terms.swap_area,
            turn: Mutex::new(turn),
        }
    }

    /// Where the client's own swap area is, if it has one.
    pub fn swap_area(&self) -> Option<Span> {
        self.swap_area
    }

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
            ToDaemon::SuperPagesUsed(regions) => check_superpages(&regions, most, self.swap_area.as_ref())
                .map_err(|what| LinkError::Lied { method, what }),
            _ => Err(LinkError::Lied { method, what: "another reply" }),
        })
    }

    /// Extension `Move`: at most [`MAX_MOVES`] ranges, acknowledged.
    ///
    /// # Errors
    /// [`LinkError::NotAgreed`], [`LinkError::TooMany`], and as [`ClientLink::superpages`].
    pub fn move_ranges(&self, mover: Mover, moves: &[MoveRange]) -> Result<MoveReply, LinkError> {
        let method = Method::MOVE.name;
        let needs = match mover {
            Mover::Remap => Abilities::ORDERS,
            Mover::UffdMove => Abilities::ORDERS | Abilities::UFFD_MOVE,
        };
        self.check_order(method, needs, moves.len(), MAX_MOVES)?;
        let order = ToClient::Move(Move { mover, moves: moves.to_vec() });
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

    /// Extension `Unshare`: at most [`MAX_DROPS`] areas, acknowledged. Touches the program's memory: **the client's userfaultfd must
    /// be read meanwhile**, so the caller holds no gate.
    ///
    /// # Errors
    /// As [`ClientLink::move_ranges`].
    pub fn unshare(&self, areas: &[Span]) -> Result<(), LinkError> {
        let method = Method::UNSHARE.name;
        self.check_order(method, Abilities::AGENT, areas.len(), MAX_DROPS)?;
        let areas = areas.iter().map(|area| MemoryRegion::new(area.start(), area.len())).collect();
        self.ask(method, ToClient::Unshare(Unshare { areas }), |reply| match reply {
            ToDaemon::Unshared => Ok(()),
            _ => Err(LinkError::Lied { method, what: "another reply" }),
        })
    }

    /// The hints that came. Reads what is there if nobody else is reading; to be called when the descriptor is readable.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the client has gone, and why the link broke.
    pub fn hints(&self) -> Result<Vec<Hint>, LinkError> {
        self.collect(|inbox| std::mem::take(&mut inbox.hints))
    }

    /// The wishes that came, each to be granted by [`ClientLink::grant`]. Reads as [`ClientLink::hints`] does. A wish may also have come
    /// while somebody waited for an answer here, and the descriptor isn't readable for it then: call this after orders, too.
    ///
    /// # Errors
    /// As [`ClientLink::hints`].
    pub fn wishes(&self) -> Result<Vec<Wish>, LinkError> {
        self.collect(|inbox| std::mem::take(&mut inbox.wishes))
    }

    /// Tells the client that what it wished for is so.
    ///
    /// # Errors
    /// [`LinkError::Transport`].
    pub fn grant(&self, wish: Wish) -> Result<(), LinkError> {
        let (answer, request) = wish.granted();
        self.answer(answer, request)
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

    /// Whoever has the turn reads, and keeps for the next call what isn't asked for.
    fn collect<R: Default>(&self, take: impl FnOnce(&mut Inbox) -> R) -> Result<R, LinkError> {
        let Some(mut turn) = self.turn.try_lock() else { return Ok(R::default()) };
        self.within(&mut turn, |turn| {
            // A client that never stops is read on the next call.
            for _ in 0..MOST_HINTS {
                match self.connection.receive_message(&mut turn.buffer, self.contract, Wait::No)? {
                    Received::Got(envelope) if turn.is_for_another(&envelope) => {}
                    Received::Got(envelope) => turn.inbox.keep(self.abilities, envelope)?,
                    Received::Nothing => return Ok(()),
                    Received::Closed => return Err(LinkError::Closed),
                }
            }
            Ok(())
        })?;
        Ok(take(&mut turn.inbox))
    }

    pub(crate) fn answer(&self, message: ToClient<OwnedFd>, request: RequestId) -> Result<(), LinkError> {
        let mut turn = self.turn.lock();
        let wait = Wait::For(self.reply_timeout);
        self.within(&mut turn, |_| Ok(self.connection.send_message(message, request, wait)?))
    }

    fn tell(&self, message: ToClient<OwnedFd>) -> Result<(), LinkError> {
        self.answer(message, RequestId(0))
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
                    Received::Got(envelope) if envelope.request == request && is_reply(&envelope.message) => {
                        return judge(envelope.message);
                    }
                    Received::Got(envelope) if turn.is_for_another(&envelope) => {}
                    Received::Got(envelope) => turn.inbox.keep(self.abilities, envelope)?,
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
