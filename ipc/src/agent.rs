//! The client's thread that serves the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use userswap_uffd::Mapping;

use crate::contract::Contract;
use crate::extension::{MAX_MOVES, MoveResult, MoveStop};
use crate::receiver::{Kill, Memory, Receiver, ReceiverError};
use crate::sys;
use crate::transport::{Connection, Received, TransportError, Wait};
use crate::wire::{
    Envelope, MAX_MESSAGE_BYTES, MoveAnswer, MoveOrder, RequestId, ToClient, ToDaemon, WireMessage,
};

/// Why the agent no longer serves.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentEnd {
    /// The connection was closed, by either side.
    #[error("the connection was closed")]
    Closed,
    /// The daemon sent what isn't a message, or the connection broke.
    #[error("the connection broke")]
    Transport(#[from] TransportError),
    /// The daemon sent a reply that nobody asked for.
    #[error("a reply that nobody asked for")]
    UnexpectedReply,
    /// The daemon gave an order that was not agreed on.
    #[error("an order that was not agreed on")]
    NotAgreed,
    /// An order couldn't be carried out, and the process wasn't killed for it.
    #[error("an order failed")]
    Order(#[from] ReceiverError),
}

/// What must outlive the connection while memory is moved out: the userfaultfd, whose last descriptor closed would wake every
/// waiting thread with zeros, and the areas.
#[derive(Debug)]
pub struct Kept {
    /// The userfaultfd.
    pub uffd: OwnedFd,
    /// The swap area.
    pub swap: Mapping,
    /// The staging area.
    pub staging: Option<Mapping>,
}

/// The thread and what it shares with its owner.
#[derive(Debug)]
pub(crate) struct Agent {
    thread: JoinHandle<()>,
    end: Arc<Mutex<Option<AgentEnd>>>,
}

impl Agent {
    /// Starts the thread, with every signal blocked: a handler of the program's could run on it otherwise, touch what is moved
    /// out, and wait while it is needed.
    ///
    /// `make` makes the receiver there, on the thread's own stack; see [`Receiver::move_ranges`] for why it must lie there.
    pub(crate) fn start<M: Memory + 'static>(
        connection: Arc<Connection>,
        contract: Contract,
        make: impl FnOnce() -> Receiver<M> + Send + 'static,
        mut kill: Box<dyn Kill>,
    ) -> io::Result<Self> {
        let end = Arc::new(Mutex::new(None));
        let shared_end = Arc::clone(&end);
        let thread = sys::with_signals_blocked(|| {
            std::thread::Builder::new().name("userswap-agent".into()).stack_size(STACK).spawn(move || {
                let mut receiver = make();
                let reason = serve(&connection, contract, &mut receiver, kill.as_mut());
                connection.shut_down();
                *shared_end.lock() = Some(reason);
            })
        })??;
        Ok(Self { thread, end })
    }

    /// Why it ended, if it has; asked once.
    pub(crate) fn end(&self) -> Option<AgentEnd> {
        self.end.lock().take()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for it to end.
    pub(crate) fn join(self) -> Option<AgentEnd> {
        // A panic there leaves no reason.
        let _ = self.thread.join();
        self.end.lock().take()
    }
}

/// A message's room, an order's, and what the calls need.
const STACK: usize = 512 * 1024;

fn serve<M: Memory>(
    connection: &Connection,
    contract: Contract,
    receiver: &mut Receiver<M>,
    kill: &mut dyn Kill,
) -> AgentEnd {
    let mut buffer = [0_u8; MAX_MESSAGE_BYTES];
    loop {
        if let Err(end) = serve_next(connection, contract, receiver, kill, &mut buffer) {
            return end;
        }
    }
}

fn serve_next<M: Memory>(
    connection: &Connection,
    contract: Contract,
    receiver: &mut Receiver<M>,
    kill: &mut dyn Kill,
    buffer: &mut [u8],
) -> Result<(), AgentEnd> {
    let packet = match connection.receive(buffer, Wait::Forever)? {
        Received::Got(packet) => packet,
        Received::Nothing => return Ok(()),
        Received::Closed => return Err(AgentEnd::Closed),
    };
    let bytes = buffer.get(..packet.len).unwrap_or_default();
    if packet.handles.is_empty()
        && let Some(order) = MoveOrder::read(bytes, contract).map_err(TransportError::from)?
    {
        return move_ranges(connection, receiver, &order);
    }
    let envelope = ToClient::decode(bytes, packet.handles, contract).map_err(TransportError::from)?;
    match handle(receiver, envelope, kill)? {
        Some((reply, request)) => sent(connection.send_message(reply, request, Wait::Forever)),
        None => Ok(()),
    }
}

/// Carries out a `Move`, on the stack alone.
fn move_ranges<M: Memory>(
    connection: &Connection,
    receiver: &mut Receiver<M>,
    order: &MoveOrder,
) -> Result<(), AgentEnd> {
    let mut results = [MoveResult { moved: 0, stop: MoveStop::Refused }; MAX_MOVES];
    receiver.move_ranges(order.mover, order.moves(), &mut results);
    let answer = MoveAnswer::new(order.request, results.get(..order.moves().len()).unwrap_or_default());
    sent(connection.send(answer.bytes(), &[], Wait::Forever))
}

fn sent(sent: Result<(), TransportError>) -> Result<(), AgentEnd> {
    sent.map_err(|error| match error {
        TransportError::Closed => AgentEnd::Closed,
        other => other.into(),
    })
}

/// Carries out one message; gives the reply it wants.
fn handle<M: Memory>(
    receiver: &mut Receiver<M>,
    envelope: Envelope<ToClient<OwnedFd>>,
    kill: &mut dyn Kill,
) -> Result<Option<(ToDaemon<OwnedFd>, RequestId)>, AgentEnd> {
    // The mirror's one-way orders have no other way to fail.
    let mut or_kill = |answer: Result<(), ReceiverError>| {
        answer.map(|()| None).map_err(|reason| {
            kill.kill(&reason);
            AgentEnd::Order(reason)
        })
    };
    let reply = match envelope.message {
        ToClient::MovePtesLeavingMapping(order) => return or_kill(receiver.move_ptes(&order)),
        ToClient::MapArea(order) => return or_kill(receiver.map_area(&order)),
        ToClient::GetPartitionAllocSuperPagesUsed(question) => {
            ToDaemon::SuperPagesUsed(receiver.superpages_used(&question)?)
        }
        ToClient::Drop(order) => {
            receiver.drop_areas(&order)?;
            ToDaemon::Dropped
        }
        // A `Move` without descriptors was carried out, and one with any isn't a message.
        ToClient::Move(_) | ToClient::Unshare(_) => return Err(AgentEnd::NotAgreed),
        ToClient::Transferred
        | ToClient::Welcome(_)
        | ToClient::Staged
        | ToClient::Enlisted(_)
        | ToClient::Excluded
        | ToClient::Retired => return Err(AgentEnd::UnexpectedReply),
    };
    Ok(Some((reply, envelope.request)))
}
