//! Typed values from bytes somebody else wrote. Every byte that is used has been claimed first, in increasing order, so
//! nothing is read twice and nothing lies outside; what can be wrong has a name.

use super::{
    FLAG_EXPECTS_RESPONSE, FLAG_IS_RESPONSE, FLAG_IS_SYNC, HEADER_V0, HEADER_V1, MAX_HANDLES,
    MAX_MESSAGE_BYTES, NO_HANDLE, RequestId, STRUCT_HEADER,
};
use crate::contract::{CallKind, Contract, InterfaceId, MemoryRegion, Method};
use crate::extension::Code;

/// Why bytes aren't a message. Positions are offsets from the message's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// The message is longer than any may be.
    #[error("the message has {bytes} bytes, more than {MAX_MESSAGE_BYTES}")]
    MessageTooLarge {
        /// Its length.
        bytes: usize,
    },
    /// More handles than any message may carry.
    #[error("the message has {handles} handles, more than {MAX_HANDLES}")]
    TooManyHandles {
        /// How many came.
        handles: usize,
    },
    /// An object that doesn't start on a multiple of 8.
    #[error("misaligned object at {at}")]
    MisalignedObject {
        /// Where.
        at: usize,
    },
    /// An object that reaches outside the message.
    #[error("illegal memory range: {len} bytes at {at} of a message of {bytes}")]
    IllegalMemoryRange {
        /// Where it starts.
        at: usize,
        /// Its length.
        len: usize,
        /// The message's length.
        bytes: usize,
    },
    /// An object that starts before the end of one already seen.
    #[error("an object at {at} overlaps what ends at {claimed}")]
    Overlap {
        /// Where it starts.
        at: usize,
        /// Up to where the message was claimed already.
        claimed: usize,
    },
    /// A pointer whose target can't be in the message: it wraps, which is what pointing backwards looks like, or it goes
    /// past the end.
    #[error("illegal pointer at {at}: {offset:#x} from there")]
    IllegalPointer {
        /// Where the pointer is.
        at: usize,
        /// What it says.
        offset: u64,
    },
    /// A null where the field must be there.
    #[error("unexpected null pointer at {at}")]
    UnexpectedNullPointer {
        /// Where.
        at: usize,
    },
    /// A struct that isn't of the known version and size.
    #[error("unexpected struct header at {at}: {bytes} bytes, version {version}")]
    UnexpectedStructHeader {
        /// Where.
        at: usize,
        /// The size it gives.
        bytes: u32,
        /// The version it gives.
        version: u32,
    },
    /// An array whose size and number of elements don't agree.
    #[error("unexpected array header at {at}: {bytes} bytes, {elements} elements")]
    UnexpectedArrayHeader {
        /// Where.
        at: usize,
        /// The size it gives.
        bytes: u32,
        /// The number it gives.
        elements: u32,
    },
    /// An array of more elements than the method allows.
    #[error("the array at {at} has {elements} elements, more than {most}")]
    TooManyElements {
        /// Where.
        at: usize,
        /// How many it has.
        elements: usize,
        /// How many it may have.
        most: usize,
    },
    /// A handle index outside the handles that came, or one used before.
    #[error("illegal handle at {at}: index {index} of {handles}")]
    IllegalHandle {
        /// Where the index is.
        at: usize,
        /// The index.
        index: u32,
        /// How many handles came.
        handles: usize,
    },
    /// Handles that no field names.
    #[error("{handles} handles that no field refers to")]
    UnusedHandles {
        /// How many.
        handles: usize,
    },
    /// Bytes that belong to no object.
    #[error("bytes {from}..{to} belong to no object")]
    UnclaimedBytes {
        /// First of them.
        from: usize,
        /// Behind the last of them.
        to: usize,
    },
    /// A message header that is neither version 0 nor 1, or not of that version's size.
    #[error("unexpected message header: {bytes} bytes, version {version}")]
    UnexpectedMessageHeader {
        /// The size it gives.
        bytes: u32,
        /// The version it gives.
        version: u32,
    },
    /// Flags that aren't known, or contradict each other or the method.
    #[error("message header has invalid flags {flags:#x}")]
    MessageHeaderInvalidFlags {
        /// The flags.
        flags: u32,
    },
    /// A reply, or a call that wants one, without a request id (or with 0, which names none).
    #[error("message header lacks a request id")]
    MessageHeaderMissingRequestId,
    /// A one-way call with a request id.
    #[error("a one-way message has a request id")]
    UnexpectedRequestId,
    /// No such interface or method, or not one that this side receives.
    #[error("unknown method {ordinal} of interface {interface:#x}")]
    UnknownMethod {
        /// The interface's number.
        interface: u32,
        /// The method's number.
        ordinal: u32,
    },
    /// A call where only the reply can be received, or the other way round.
    #[error("unexpected kind of message for {method}: flags {flags:#x}")]
    UnexpectedMessageKind {
        /// The method's name.
        method: &'static str,
        /// The flags.
        flags: u32,
    },
    /// An extension's message on a connection that speaks the mirrored contract alone.
    #[error("interface {interface:#x} is not part of the strict contract")]
    NotInContract {
        /// The interface's number.
        interface: u32,
    },
    /// A number that stands for nothing.
    #[error("{value} is no {name}")]
    UnknownEnumValue {
        /// The enum.
        name: &'static str,
        /// The number.
        value: u32,
    },
}

/// What a message header says, its flags still to be held against the method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) interface: InterfaceId,
    pub(crate) ordinal: u32,
    flags: u32,
    request: Option<RequestId>,
}

impl Header {
    pub(crate) fn is_reply(&self) -> bool {
        self.flags & FLAG_IS_RESPONSE != 0
    }

    /// The header is a call of `method` (or a reply to one, which is then what it says it is). Gives the request id; a
    /// one-way call has none, for which 0 stands.
    pub(crate) fn expect(&self, method: Method, reply: bool) -> Result<RequestId, ValidationError> {
        if self.is_reply() != reply {
            return Err(ValidationError::UnexpectedMessageKind { method: method.name, flags: self.flags });
        }
        let direction = if reply { FLAG_IS_RESPONSE } else { FLAG_EXPECTS_RESPONSE };
        let expected = match method.kind {
            CallKind::OneWay => 0,
            CallKind::Answered => direction,
            CallKind::Sync => direction | FLAG_IS_SYNC,
        };
        if self.flags != expected {
            return Err(ValidationError::UnexpectedMessageKind { method: method.name, flags: self.flags });
        }
        match (method.kind, self.request) {
            (CallKind::OneWay, Some(_)) => Err(ValidationError::UnexpectedRequestId),
            (CallKind::OneWay, None) => Ok(RequestId(0)),
            (_, None | Some(RequestId(0))) => Err(ValidationError::MessageHeaderMissingRequestId),
            (_, Some(request)) => Ok(request),
        }
    }

    pub(crate) fn unknown(&self) -> ValidationError {
        ValidationError::UnknownMethod { interface: self.interface.0, ordinal: self.ordinal }
    }
}

/// A message being read.
pub(crate) struct Decoder<'a, H> {
    bytes: &'a [u8],
    /// Everything below has been looked at.
    claimed: usize,
    handles: std::vec::IntoIter<H>,
    handle_count: usize,
}

/// Where a claimed object's fields begin.
#[derive(Clone, Copy)]
pub(crate) struct Fields(usize);

impl<'a, H> Decoder<'a, H> {
    /// Begins to read: checks the message header and leaves the parameters to [`Decoder::parameters`].
    pub(crate) fn begin(
        bytes: &'a [u8],
        handles: Vec<H>,
        contract: Contract,
    ) -> Result<(Self, Header), ValidationError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(ValidationError::MessageTooLarge { bytes: bytes.len() });
        }
        if handles.len() > MAX_HANDLES {
            return Err(ValidationError::TooManyHandles { handles: handles.len() });
        }
        let handle_count = handles.len();
        let mut decoder = Self { bytes, claimed: 0, handles: handles.into_iter(), handle_count };
        let (size, version) = decoder.peek(0)?;
        let v1 = match (size, version) {
            (24, 0) => false,
            (32, 1) => true,
            _ => return Err(ValidationError::UnexpectedMessageHeader { bytes: size, version }),
        };
        let at = decoder.claim(0, if v1 { HEADER_V1 } else { HEADER_V0 })?;
        let header = Header {
            interface: InterfaceId(decoder.u32(at, 0)),
            ordinal: decoder.u32(at, 4),
            flags: decoder.u32(at, 8),
            request: v1.then(|| RequestId(decoder.u64(at, 16))),
        };
        let flags = header.flags;
        let both = FLAG_EXPECTS_RESPONSE | FLAG_IS_RESPONSE;
        if flags & !(both | FLAG_IS_SYNC) != 0 || flags & both == both {
            return Err(ValidationError::MessageHeaderInvalidFlags { flags });
        }
        if flags & both != 0 && !v1 {
            return Err(ValidationError::MessageHeaderMissingRequestId);
        }
        if contract == Contract::Strict && !header.interface.is_mirrored() {
            return Err(ValidationError::NotInContract { interface: header.interface.0 });
        }
        Ok((decoder, header))
    }

    /// The parameter struct, `fields` bytes of fields, right behind the header.
    pub(crate) fn parameters(&mut self, fields: usize) -> Result<Fields, ValidationError> {
        self.structure(self.claimed, fields)
    }

    /// The struct behind the pointer at `offset`, with `fields` bytes of fields.
    pub(crate) fn pointee(
        &mut self,
        from: Fields,
        offset: usize,
        fields: usize,
    ) -> Result<Fields, ValidationError> {
        let at = self.pointer(from, offset)?;
        self.structure(at, fields)
    }

    /// The array behind the pointer at `offset`, of at most `most` pointers. Gives its elements and their number.
    pub(crate) fn pointers(
        &mut self,
        from: Fields,
        offset: usize,
        most: usize,
    ) -> Result<(Fields, usize), ValidationError> {
        let at = self.pointer(from, offset)?;
        let (bytes, elements) = self.peek(at)?;
        if u64::from(bytes) != STRUCT_HEADER as u64 + 8 * u64::from(elements) {
            return Err(ValidationError::UnexpectedArrayHeader { at, bytes, elements });
        }
        let count = elements as usize;
        if count > most {
            return Err(ValidationError::TooManyElements { at, elements: count, most });
        }
        Ok((self.claim(at, STRUCT_HEADER + 8 * count)?, count))
    }

    pub(crate) fn region(&mut self, from: Fields, offset: usize) -> Result<MemoryRegion, ValidationError> {
        let at = self.pointee(from, offset, 16)?;
        Ok(MemoryRegion { address: self.u64(at, 0), length: self.u64(at, 8) })
    }

    pub(crate) fn regions(
        &mut self,
        from: Fields,
        offset: usize,
        most: usize,
    ) -> Result<Vec<MemoryRegion>, ValidationError> {
        let (pointers, count) = self.pointers(from, offset, most)?;
        (0..count).map(|index| self.region(pointers, index * 8)).collect()
    }

    pub(crate) fn handle(&mut self, from: Fields, offset: usize) -> Result<Option<H>, ValidationError> {
        let index = self.u32(from, offset);
        if index == NO_HANDLE {
            return Ok(None);
        }
        let next = self.handle_count - self.handles.len();
        // Indexes only ever rise by one: an earlier one was used, a later one would leave a handle over.
        let handle = if index as usize == next { self.handles.next() } else { None };
        handle.map(Some).ok_or(ValidationError::IllegalHandle {
            at: from.0 + offset,
            index,
            handles: self.handle_count,
        })
    }

    pub(crate) fn code<C: Code>(&self, from: Fields, offset: usize) -> Result<C, ValidationError> {
        let value = self.u32(from, offset);
        let known = C::VALUES.get(value as usize).copied();
        known.ok_or(ValidationError::UnknownEnumValue { name: C::NAME, value })
    }

    /// A field of an object that was claimed with room for it.
    pub(crate) fn u32(&self, from: Fields, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(from.0 + offset))
    }

    /// See [`Decoder::u32`].
    pub(crate) fn i32(&self, from: Fields, offset: usize) -> i32 {
        i32::from_le_bytes(self.array(from.0 + offset))
    }

    /// See [`Decoder::u32`].
    pub(crate) fn u64(&self, from: Fields, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(from.0 + offset))
    }

    /// Nothing may be left: neither bytes nor handles.
    pub(crate) fn finish(self) -> Result<(), ValidationError> {
        if self.claimed != self.bytes.len() {
            return Err(ValidationError::UnclaimedBytes { from: self.claimed, to: self.bytes.len() });
        }
        if self.handles.len() > 0 {
            return Err(ValidationError::UnusedHandles { handles: self.handles.len() });
        }
        Ok(())
    }

    fn structure(&mut self, at: usize, fields: usize) -> Result<Fields, ValidationError> {
        let (bytes, version) = self.peek(at)?;
        let size = STRUCT_HEADER + fields;
        if bytes as usize != size || version != 0 {
            return Err(ValidationError::UnexpectedStructHeader { at, bytes, version });
        }
        self.claim(at, size)
    }

    /// The two words an object starts with, before it is known how much of it there is to claim.
    fn peek(&self, at: usize) -> Result<(u32, u32), ValidationError> {
        self.check(at, STRUCT_HEADER)?;
        Ok((u32::from_le_bytes(self.array(at)), u32::from_le_bytes(self.array(at + 4))))
    }

    fn claim(&mut self, at: usize, len: usize) -> Result<Fields, ValidationError> {
        self.check(at, len)?;
        self.claimed = at + len;
        Ok(Fields(at + STRUCT_HEADER))
    }

    fn check(&self, at: usize, len: usize) -> Result<(), ValidationError> {
        let bytes = self.bytes.len();
        if !at.is_multiple_of(8) {
            return Err(ValidationError::MisalignedObject { at });
        }
        if at < self.claimed {
            return Err(ValidationError::Overlap { at, claimed: self.claimed });
        }
        if at > bytes || len > bytes - at {
            return Err(ValidationError::IllegalMemoryRange { at, len, bytes });
        }
        if at > self.claimed {
            return Err(ValidationError::UnclaimedBytes { from: self.claimed, to: at });
        }
        Ok(())
    }

    fn pointer(&self, from: Fields, offset: usize) -> Result<usize, ValidationError> {
        let at = from.0 + offset;
        let distance = self.u64(from, offset);
        if distance == 0 {
            return Err(ValidationError::UnexpectedNullPointer { at });
        }
        usize::try_from(distance)
            .ok()
            .and_then(|distance| at.checked_add(distance))
            .filter(|target| *target <= self.bytes.len())
            .ok_or(ValidationError::IllegalPointer { at, offset: distance })
    }

    /// `N` bytes of the message. Zeros outside of it, where no field of a claimed object is.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
}
