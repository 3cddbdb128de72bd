//! The client's thread that serves the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use userswap_uffd::Mapping;

use crate::contract::Contract;
use crate::receiver::{Kill, Memory, Receiver, ReceiverError};
use crate::sys;
use crate::transport::{Connection, Received, TransportError, Wait};
use crate::wire::{Envelope, MAX_MESSAGE_BYTES, RequestId, ToClient, ToDaemon};

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
        let message = match connection.receive_message(&mut buffer, contract, Wait::Forever) {
            Ok(Received::Got(envelope)) => envelope,
            Ok(Received::Nothing) => continue,
            Ok(Received::Closed) => return AgentEnd::Closed,
            Err(e) => return e.into(),
        };
        match handle(receiver, message, kill) {
            Ok(None) => {}
            Ok(Some((reply, request))) => match connection.send_message(reply, request, Wait::Forever) {
                Ok(()) => {}
                Err(TransportError::Closed) => return AgentEnd::Closed,
                Err(e) => return e.into(),
            },
            Err(end) => return end,
        }
    }
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
        ToClient::Move(order) => ToDaemon::Moved(receiver.move_ranges(&order)?),
        ToClient::Drop(order) => {
            receiver.drop_areas(&order)?;
            ToDaemon::Dropped
        }
        ToClient::Unshare(_) => return Err(AgentEnd::NotAgreed),
        ToClient::Transferred
        | ToClient::Welcome(_)
        | ToClient::Staged
        | ToClient::Enlisted(_)
        | ToClient::Excluded
        | ToClient::Retired => return Err(AgentEnd::UnexpectedReply),
    };
    Ok(Some((reply, envelope.request)))
}
