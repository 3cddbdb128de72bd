//! `Move` and its reply without the heap. While an order is out its daemon reads no faults and no events: an agent that waited for an allocator
//! whose lock a forking thread holds, or touched memory that is out, would wait for ever. So it reads and answers on its stack.

use super::decode::Decoder;
use super::encode::{Encoder, Room};
use super::message::{decode_moves, encode_moved};
use super::{MAX_MESSAGE_BYTES, RequestId, ValidationError};
use crate::contract::{Contract, Method};
use crate::extension::{MAX_MOVES, MoveRange, MoveResult, Mover};

/// A `Move` as the agent reads it.
pub(crate) struct MoveOrder {
    pub(crate) request: RequestId,
    pub(crate) mover: Mover,
    moves: [MoveRange; MAX_MOVES],
    count: usize,
}

impl MoveOrder {
    /// Reads one; `None` if it is another message.
    ///
    /// # Errors
    /// As [`WireMessage::decode`](super::WireMessage::decode).
    pub(crate) fn read(bytes: &[u8], contract: Contract) -> Result<Option<Self>, ValidationError> {
        // An empty list takes no memory.
        let (mut decoder, header) = Decoder::<()>::begin(bytes, Vec::new(), contract)?;
        let method = Method::MOVE;
        if header.is_reply() || (header.interface, header.ordinal) != (method.interface, method.ordinal) {
            return Ok(None);
        }
        let request = header.expect(method, false)?;
        let mut moves = [MoveRange { src: 0, len: 0, dest: 0 }; MAX_MOVES];
        let mut rooms = moves.iter_mut();
        let (mover, count) = decode_moves(&mut decoder, |range| {
            if let Some(room) = rooms.next() {
                *room = range;
            }
        })?;
        decoder.finish()?;
        Ok(Some(Self { request, mover, moves, count }))
    }

    /// What is to move.
    pub(crate) fn moves(&self) -> &[MoveRange] {
        self.moves.get(..self.count).unwrap_or_default()
    }
}

/// The bytes of a reply to a `Move`.
pub(crate) struct MoveAnswer {
    bytes: [u8; MOST],
    len: usize,
}

/// Header, struct, array header, and for each result a pointer and a struct.
const MOST: usize = 32 + 16 + 8 + MAX_MOVES * (8 + 24);
const _: () = assert!(MOST <= MAX_MESSAGE_BYTES, "every answer can be sent");

impl MoveAnswer {
    /// Writes one.
    pub(crate) fn new(request: RequestId, results: &[MoveResult]) -> Self {
        let mut answer = Self { bytes: [0; MOST], len: 0 };
        let encoder = Encoder::<(), _>::reply_in(&mut answer, Method::MOVE, request);
        encode_moved(encoder, results.get(..results.len().min(MAX_MOVES)).unwrap_or_default());
        answer
    }

    /// What is to be sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Room for &mut MoveAnswer {
    fn bytes(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn grow(&mut self, len: usize) {
        self.len = len.min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extension::{Move, MoveReply, MoveStop};
    use crate::wire::{Envelope, ToClient, ToDaemon, WireMessage};

    const REQUEST: RequestId = RequestId(7);

    fn range(n: u64) -> MoveRange {
        MoveRange { src: n, len: n + 1, dest: n + 2 }
    }

    #[test]
    fn it_is_read_and_answered_as_with_the_heap() {
        for count in [0, 1, 3, MAX_MOVES] {
            let moves: Vec<MoveRange> = (0..count as u64).map(range).collect();
            let message = Move { mover: Mover::UffdMove, moves: moves.clone() };
            let encoded = ToClient::<()>::Move(message).encode(REQUEST);
            let order = MoveOrder::read(&encoded.bytes, Contract::Extended).unwrap().unwrap();
            assert_eq!((order.request, order.mover), (REQUEST, Mover::UffdMove));
            assert_eq!(order.moves(), moves);

            let results: Vec<MoveResult> =
                moves.iter().map(|range| MoveResult { moved: range.len, stop: MoveStop::Busy }).collect();
            let answer = MoveAnswer::new(REQUEST, &results);
            let reply = MoveReply { results };
            assert_eq!(answer.bytes(), ToDaemon::<()>::Moved(reply.clone()).encode(REQUEST).bytes);
            let message = ToDaemon::<()>::decode(answer.bytes(), Vec::new(), Contract::Extended).unwrap();
            assert_eq!(message, Envelope { request: REQUEST, message: ToDaemon::Moved(reply) });
        }
    }

    #[test]
    fn another_message_is_left_and_a_wrong_one_refused() {
        let staged = ToClient::<()>::Staged.encode(REQUEST);
        assert!(MoveOrder::read(&staged.bytes, Contract::Extended).unwrap().is_none());
        let order = Move { mover: Mover::Remap, moves: vec![range(1)] };
        let mut encoded = ToClient::<()>::Move(order).encode(REQUEST);
        assert!(MoveOrder::read(&encoded.bytes, Contract::Strict).is_err());
        encoded.bytes.pop();
        assert!(MoveOrder::read(&encoded.bytes, Contract::Extended).is_err());
    }
}
