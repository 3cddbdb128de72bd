//! Which messages there are, and which fields each of them has where.

use super::decode::{Decoder, Header};
use super::encode::{Encoder, Room};
use super::{MAX_REGIONS, ValidationError};
use crate::contract::{
    Contract, GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, Method, MovePtesLeavingMapping,
    TransferUserfaultFd,
};
use crate::extension::{
    Agent, AgentReply, Code, Drop, Exclude, Hello, HelloReply, Hint, MAX_DROPS, MAX_MOVES, MAX_OURS, Move,
    MoveRange, MoveReply, MoveResult, Mover, Retire, Staging, Unshare,
};

/// Names a call so that its reply can be told. The caller's choice; never 0 in a call that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RequestId(pub u64);

/// A message and the id of the call it makes or answers; 0 in a one-way message, which has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<M> {
    /// The call's id.
    pub request: RequestId,
    /// The message.
    pub message: M,
}

/// A message's bytes and the handles that go with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded<H> {
    /// At most [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES) for what a decoder takes.
    pub bytes: Vec<u8>,
    /// In the order of their indexes.
    pub handles: Vec<H>,
}

/// All messages that one side receives.
pub trait WireMessage<H>: Sized {
    /// The bytes of this message. `request` is its call's id and unused in a one-way message.
    fn encode(self, request: RequestId) -> Encoded<H>;

    /// The message of which these are the bytes and handles.
    ///
    /// # Errors
    /// [`ValidationError`] says what is wrong with them; the handles are dropped.
    fn decode(bytes: &[u8], handles: Vec<H>, contract: Contract) -> Result<Envelope<Self>, ValidationError>;
}

/// What a daemon receives: a client's calls, and its replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToDaemon<H> {
    /// `UserspaceSwapInitialization.TransferUserfaultFD`
    TransferUserfaultFd(TransferUserfaultFd<H>),
    /// The reply to `UserspaceSwap.GetPartitionAllocSuperPagesUsed`: the superpages in use.
    SuperPagesUsed(Vec<MemoryRegion>),
    /// Extension: `Hello`.
    Hello(Hello),
    /// Extension: `Staging`.
    Staging(Staging),
    /// Extension: `Hint`.
    Hint(Hint),
    /// Extension: `Agent`.
    Agent(Agent),
    /// Extension: `Exclude`.
    Exclude(Exclude),
    /// Extension: `Retire`.
    Retire(Retire),
    /// Extension: the reply to `Move`.
    Moved(MoveReply),
    /// Extension: the reply to `Drop`.
    Dropped,
    /// Extension: the reply to `Unshare`.
    Unshared,
}

/// What a client receives: the daemon's calls, and its replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient<H> {
    /// The empty reply to `UserspaceSwapInitialization.TransferUserfaultFD`.
    Transferred,
    /// `UserspaceSwap.MovePTEsLeavingMapping`
    MovePtesLeavingMapping(MovePtesLeavingMapping),
    /// `UserspaceSwap.MapArea`
    MapArea(MapArea),
    /// `UserspaceSwap.GetPartitionAllocSuperPagesUsed`
    GetPartitionAllocSuperPagesUsed(GetPartitionAllocSuperPagesUsed),
    /// Extension: the reply to `Hello`.
    Welcome(HelloReply<H>),
    /// Extension: the reply to `Staging`.
    Staged,
    /// Extension: `Move`.
    Move(Move),
    /// Extension: the reply to `Agent`.
    Enlisted(AgentReply<H>),
    /// Extension: the reply to `Exclude`.
    Excluded,
    /// Extension: the reply to `Retire`.
    Retired,
    /// Extension: `Drop`.
    Drop(Drop),
    /// Extension: `Unshare`.
    Unshare(Unshare),
}

impl<H> WireMessage<H> for ToDaemon<H> {
    fn encode(self, request: RequestId) -> Encoded<H> {
        let encoder = match self {
            Self::TransferUserfaultFd(transfer) => {
                let mut encoder = Encoder::call(Method::TRANSFER_USERFAULT_FD, request);
                let at = encoder.structure(transfer_layout::SIZE);
                encoder.u64(at, transfer_layout::UFFD_ERROR, transfer.uffd_error);
                encoder.handle(at, transfer_layout::UFFD_HANDLE, transfer.uffd_handle);
                encoder.u64(at, transfer_layout::MMAP_ERROR, transfer.mmap_error);
                encoder.region(at, transfer_layout::SWAP_AREA, transfer.swap_area);
                encoder
            }
            Self::SuperPagesUsed(superpages) => {
                let mut encoder = Encoder::reply(Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED, request);
                let at = encoder.structure(8);
                encoder.regions(at, 0, &superpages);
                encoder
            }
            Self::Hello(hello) => {
                let mut encoder = Encoder::call(Method::HELLO, request);
                let at = encoder.structure(16);
                encoder.u32(at, 0, hello.version);
                encoder.u64(at, 8, hello.wants);
                encoder
            }
            Self::Staging(staging) => {
                let mut encoder = Encoder::call(Method::STAGING, request);
                let at = encoder.structure(8);
                encoder.region(at, 0, staging.area);
                encoder
            }
            Self::Hint(hint) => {
                let mut encoder = Encoder::call(Method::HINT, request);
                let at = encoder.structure(16);
                encoder.code(at, 0, hint.kind);
                encoder.u64(at, 8, hint.value);
                encoder
            }
            Self::Agent(agent) => {
                let mut encoder = Encoder::call(Method::AGENT, request);
                let at = encoder.structure(agent_layout::SIZE);
                encoder.code(at, agent_layout::KIND, agent.kind);
                encoder.u32(at, agent_layout::PID, agent.pid);
                encoder.u32(at, agent_layout::TID, agent.tid);
                encoder.region(at, agent_layout::SENTINEL, agent.sentinel);
                encoder.regions(at, agent_layout::OURS, &agent.ours);
                encoder
            }
            Self::Exclude(exclude) => {
                let mut encoder = Encoder::call(Method::EXCLUDE, request);
                let at = encoder.structure(8);
                encoder.region(at, 0, exclude.area);
                encoder
            }
            Self::Retire(retire) => {
                let mut encoder = Encoder::call(Method::RETIRE, request);
                let at = encoder.structure(8);
                encoder.code(at, 0, retire.why);
                encoder
            }
            Self::Moved(reply) => encode_moved(Encoder::reply(Method::MOVE, request), &reply.results),
            Self::Dropped => empty_reply(Method::DROP, request),
            Self::Unshared => empty_reply(Method::UNSHARE, request),
        };
        finish(encoder)
    }

    fn decode(bytes: &[u8], handles: Vec<H>, contract: Contract) -> Result<Envelope<Self>, ValidationError> {
        let (mut decoder, header) = Decoder::begin(bytes, handles, contract)?;
        let d = &mut decoder;
        let (request, message) = match find(&header, &DAEMON_RECEIVES)? {
            Receives::Call(method @ Method::TRANSFER_USERFAULT_FD) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(transfer_layout::SIZE)?;
                let transfer = TransferUserfaultFd {
                    uffd_error: d.u64(at, transfer_layout::UFFD_ERROR),
                    uffd_handle: d.handle(at, transfer_layout::UFFD_HANDLE)?,
                    mmap_error: d.u64(at, transfer_layout::MMAP_ERROR),
                    swap_area: d.region(at, transfer_layout::SWAP_AREA)?,
                };
                (request, Self::TransferUserfaultFd(transfer))
            }
            Receives::Reply(method @ Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED) => {
                let request = header.expect(method, true)?;
                let at = d.parameters(8)?;
                (request, Self::SuperPagesUsed(d.regions(at, 0, MAX_REGIONS)?))
            }
            Receives::Call(method @ Method::HELLO) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(16)?;
                (request, Self::Hello(Hello { version: d.u32(at, 0), wants: d.u64(at, 8) }))
            }
            Receives::Call(method @ Method::STAGING) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                (request, Self::Staging(Staging { area: d.region(at, 0)? }))
            }
            Receives::Call(method @ Method::HINT) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(16)?;
                (request, Self::Hint(Hint { kind: d.code(at, 0)?, value: d.u64(at, 8) }))
            }
            Receives::Call(method @ Method::AGENT) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(agent_layout::SIZE)?;
                let agent = Agent {
                    kind: d.code(at, agent_layout::KIND)?,
                    pid: d.u32(at, agent_layout::PID),
                    tid: d.u32(at, agent_layout::TID),
                    sentinel: d.region(at, agent_layout::SENTINEL)?,
                    ours: d.regions(at, agent_layout::OURS, MAX_OURS)?,
                };
                (request, Self::Agent(agent))
            }
            Receives::Call(method @ Method::EXCLUDE) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                (request, Self::Exclude(Exclude { area: d.region(at, 0)? }))
            }
            Receives::Call(method @ Method::RETIRE) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                (request, Self::Retire(Retire { why: d.code(at, 0)? }))
            }
            Receives::Reply(method @ Method::MOVE) => {
                let request = header.expect(method, true)?;
                (request, Self::Moved(decode_moved(d)?))
            }
            Receives::Reply(method @ Method::DROP) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Dropped)
            }
            Receives::Reply(method @ Method::UNSHARE) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Unshared)
            }
            _ => return Err(header.unknown()),
        };
        decoder.finish()?;
        Ok(Envelope { request, message })
    }
}

impl<H> WireMessage<H> for ToClient<H> {
    fn encode(self, request: RequestId) -> Encoded<H> {
        let encoder = match self {
            Self::Transferred => empty_reply(Method::TRANSFER_USERFAULT_FD, request),
            Self::MovePtesLeavingMapping(order) => {
                let mut encoder = Encoder::call(Method::MOVE_PTES_LEAVING_MAPPING, request);
                let at = encoder.structure(16);
                encoder.u64(at, 8, order.dest);
                encoder.region(at, 0, order.src);
                encoder
            }
            Self::MapArea(order) => {
                let mut encoder = Encoder::call(Method::MAP_AREA, request);
                let at = encoder.structure(8);
                encoder.region(at, 0, order.area);
                encoder
            }
            Self::GetPartitionAllocSuperPagesUsed(question) => {
                let mut encoder = Encoder::call(Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED, request);
                let at = encoder.structure(8);
                encoder.i32(at, 0, question.max_superpages);
                encoder
            }
            Self::Welcome(reply) => {
                let mut encoder = Encoder::reply(Method::HELLO, request);
                let at = encoder.structure(welcome_layout::SIZE);
                encoder.u32(at, welcome_layout::VERSION, reply.version);
                encoder.u64(at, welcome_layout::GRANTED, reply.granted);
                encoder.handle(at, welcome_layout::UFFD_DEVICE, reply.uffd_device);
                encoder.u64(at, welcome_layout::STAGING_PAGES, reply.staging_pages);
                encoder
            }
            Self::Staged => empty_reply(Method::STAGING, request),
            Self::Enlisted(reply) => {
                let mut encoder = Encoder::reply(Method::AGENT, request);
                let at = encoder.structure(8);
                encoder.handle(at, 0, reply.uffd);
                encoder
            }
            Self::Excluded => empty_reply(Method::EXCLUDE, request),
            Self::Retired => empty_reply(Method::RETIRE, request),
            Self::Move(order) => encode_move(request, &order),
            Self::Unshare(order) => {
                let mut encoder = Encoder::call(Method::UNSHARE, request);
                let at = encoder.structure(8);
                encoder.regions(at, 0, &order.areas);
                encoder
            }
            Self::Drop(order) => {
                let mut encoder = Encoder::call(Method::DROP, request);
                let at = encoder.structure(16);
                encoder.code(at, 8, order.how);
                encoder.regions(at, 0, &order.areas);
                encoder
            }
        };
        finish(encoder)
    }

    fn decode(bytes: &[u8], handles: Vec<H>, contract: Contract) -> Result<Envelope<Self>, ValidationError> {
        let (mut decoder, header) = Decoder::begin(bytes, handles, contract)?;
        let d = &mut decoder;
        let (request, message) = match find(&header, &CLIENT_RECEIVES)? {
            Receives::Reply(method @ Method::TRANSFER_USERFAULT_FD) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Transferred)
            }
            Receives::Call(method @ Method::MOVE_PTES_LEAVING_MAPPING) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(16)?;
                let order = MovePtesLeavingMapping { dest: d.u64(at, 8), src: d.region(at, 0)? };
                (request, Self::MovePtesLeavingMapping(order))
            }
            Receives::Call(method @ Method::MAP_AREA) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                (request, Self::MapArea(MapArea { area: d.region(at, 0)? }))
            }
            Receives::Call(method @ Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                let question = GetPartitionAllocSuperPagesUsed { max_superpages: d.i32(at, 0) };
                (request, Self::GetPartitionAllocSuperPagesUsed(question))
            }
            Receives::Reply(method @ Method::HELLO) => {
                let request = header.expect(method, true)?;
                let at = d.parameters(welcome_layout::SIZE)?;
                let reply = HelloReply {
                    version: d.u32(at, welcome_layout::VERSION),
                    granted: d.u64(at, welcome_layout::GRANTED),
                    uffd_device: d.handle(at, welcome_layout::UFFD_DEVICE)?,
                    staging_pages: d.u64(at, welcome_layout::STAGING_PAGES),
                };
                (request, Self::Welcome(reply))
            }
            Receives::Reply(method @ Method::STAGING) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Staged)
            }
            Receives::Reply(method @ Method::AGENT) => {
                let request = header.expect(method, true)?;
                let at = d.parameters(8)?;
                (request, Self::Enlisted(AgentReply { uffd: d.handle(at, 0)? }))
            }
            Receives::Reply(method @ Method::EXCLUDE) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Excluded)
            }
            Receives::Reply(method @ Method::RETIRE) => {
                let request = header.expect(method, true)?;
                d.parameters(0)?;
                (request, Self::Retired)
            }
            Receives::Call(method @ Method::MOVE) => {
                let request = header.expect(method, false)?;
                (request, Self::Move(decode_move(d)?))
            }
            Receives::Call(method @ Method::UNSHARE) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(8)?;
                (request, Self::Unshare(Unshare { areas: d.regions(at, 0, MAX_DROPS)? }))
            }
            Receives::Call(method @ Method::DROP) => {
                let request = header.expect(method, false)?;
                let at = d.parameters(16)?;
                let order = Drop { how: d.code(at, 8)?, areas: d.regions(at, 0, MAX_DROPS)? };
                (request, Self::Drop(order))
            }
            _ => return Err(header.unknown()),
        };
        decoder.finish()?;
        Ok(Envelope { request, message })
    }
}

/// A method as one side sees it.
#[derive(Clone, Copy)]
enum Receives {
    Call(Method),
    Reply(Method),
}

impl Receives {
    const fn method(self) -> Method {
        match self {
            Self::Call(method) | Self::Reply(method) => method,
        }
    }
}

const DAEMON_RECEIVES: [Receives; 11] = [
    Receives::Call(Method::TRANSFER_USERFAULT_FD),
    Receives::Reply(Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED),
    Receives::Call(Method::HELLO),
    Receives::Call(Method::STAGING),
    Receives::Call(Method::HINT),
    Receives::Call(Method::AGENT),
    Receives::Call(Method::EXCLUDE),
    Receives::Call(Method::RETIRE),
    Receives::Reply(Method::MOVE),
    Receives::Reply(Method::DROP),
    Receives::Reply(Method::UNSHARE),
];

const CLIENT_RECEIVES: [Receives; 12] = [
    Receives::Reply(Method::TRANSFER_USERFAULT_FD),
    Receives::Call(Method::MOVE_PTES_LEAVING_MAPPING),
    Receives::Call(Method::MAP_AREA),
    Receives::Call(Method::GET_PARTITION_ALLOC_SUPER_PAGES_USED),
    Receives::Reply(Method::HELLO),
    Receives::Reply(Method::STAGING),
    Receives::Reply(Method::AGENT),
    Receives::Reply(Method::EXCLUDE),
    Receives::Reply(Method::RETIRE),
    Receives::Call(Method::MOVE),
    Receives::Call(Method::DROP),
    Receives::Call(Method::UNSHARE),
];

/// The receiving side's entry for a header's interface and ordinal.
fn find(header: &Header, receives: &[Receives]) -> Result<Receives, ValidationError> {
    let found = receives.iter().find(|entry| {
        let method = entry.method();
        method.interface == header.interface && method.ordinal == header.ordinal
    });
    found.copied().ok_or_else(|| header.unknown())
}

/// `u64 · u32 and a gap of 4 · u64 · pointer`
mod transfer_layout {
    pub(super) const UFFD_ERROR: usize = 0;
    pub(super) const UFFD_HANDLE: usize = 8;
    pub(super) const MMAP_ERROR: usize = 16;
    pub(super) const SWAP_AREA: usize = 24;
    pub(super) const SIZE: usize = 32;
}

/// `u32 · (the handle falls into this gap) · u64 · u64`
mod welcome_layout {
    pub(super) const VERSION: usize = 0;
    pub(super) const UFFD_DEVICE: usize = 4;
    pub(super) const GRANTED: usize = 8;
    pub(super) const STAGING_PAGES: usize = 16;
    pub(super) const SIZE: usize = 24;
}

/// `u32 · u32 · u32 and a gap of 4 · pointer · pointer`
mod agent_layout {
    pub(super) const KIND: usize = 0;
    pub(super) const PID: usize = 4;
    pub(super) const TID: usize = 8;
    pub(super) const SENTINEL: usize = 16;
    pub(super) const OURS: usize = 24;
    pub(super) const SIZE: usize = 32;
}

/// `u32 and a gap of 4 · pointer`, and for each range `u64 · u64 · u64`
fn encode_move<H>(request: RequestId, order: &Move) -> Encoder<H> {
    let mut encoder = Encoder::call(Method::MOVE, request);
    let at = encoder.structure(16);
    encoder.code(at, 0, order.mover);
    encoder.point(at, 8);
    let pointers = encoder.array(order.moves.len(), 8);
    for (index, range) in order.moves.iter().enumerate() {
        encoder.point(pointers, index * 8);
        let at = encoder.structure(24);
        encoder.u64(at, 0, range.src);
        encoder.u64(at, 8, range.len);
        encoder.u64(at, 16, range.dest);
    }
    encoder
}

/// Gives the ranges to `take` one by one, and how many they were.
pub(super) fn decode_moves<H>(
    d: &mut Decoder<'_, H>,
    mut take: impl FnMut(MoveRange),
) -> Result<(Mover, usize), ValidationError> {
    let at = d.parameters(16)?;
    let mover = d.code(at, 0)?;
    let (pointers, count) = d.pointers(at, 8, MAX_MOVES)?;
    for index in 0..count {
        let at = d.pointee(pointers, index * 8, 24)?;
        take(MoveRange { src: d.u64(at, 0), len: d.u64(at, 8), dest: d.u64(at, 16) });
    }
    Ok((mover, count))
}

fn decode_move<H>(d: &mut Decoder<'_, H>) -> Result<Move, ValidationError> {
    let mut moves = Vec::new();
    let (mover, _) = decode_moves(d, |range| moves.push(range))?;
    Ok(Move { mover, moves })
}

/// `pointer`, and for each result `u64 · u32 and a gap of 4`
pub(super) fn encode_moved<H, R: Room>(mut encoder: Encoder<H, R>, results: &[MoveResult]) -> Encoder<H, R> {
    let at = encoder.structure(8);
    encoder.point(at, 0);
    let pointers = encoder.array(results.len(), 8);
    for (index, result) in results.iter().enumerate() {
        encoder.point(pointers, index * 8);
        let at = encoder.structure(16);
        encoder.u64(at, 0, result.moved);
        encoder.u32(at, 8, result.stop.code());
    }
    encoder
}

fn decode_moved<H>(d: &mut Decoder<'_, H>) -> Result<MoveReply, ValidationError> {
    let at = d.parameters(8)?;
    let (pointers, count) = d.pointers(at, 0, MAX_MOVES)?;
    let mut results = Vec::with_capacity(count);
    for index in 0..count {
        let at = d.pointee(pointers, index * 8, 16)?;
        results.push(MoveResult { moved: d.u64(at, 0), stop: d.code(at, 8)? });
    }
    Ok(MoveReply { results })
}

fn empty_reply<H>(method: Method, request: RequestId) -> Encoder<H> {
    let mut encoder = Encoder::reply(method, request);
    encoder.structure(0);
    encoder
}

fn finish<H>(encoder: Encoder<H>) -> Encoded<H> {
    let (bytes, handles) = encoder.finish();
    Encoded { bytes, handles }
}
