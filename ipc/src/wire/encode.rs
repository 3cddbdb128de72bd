//! Bytes from typed values. Objects are appended; a pointer is filled in when its object begins.

use super::{
    FLAG_EXPECTS_RESPONSE, FLAG_IS_RESPONSE, FLAG_IS_SYNC, HEADER_V0, HEADER_V1, NO_HANDLE, RequestId,
    STRUCT_HEADER,
};
use crate::contract::{CallKind, MemoryRegion, Method};
use crate::extension::Code;

/// A message being written.
pub(crate) struct Encoder<H, R = Vec<u8>> {
    bytes: R,
    handles: Vec<H>,
}

/// Where a message's bytes are put.
pub(crate) trait Room {
    /// What was put there.
    fn bytes(&mut self) -> &mut [u8];

    /// How many bytes that is.
    fn len(&self) -> usize;

    /// Appends zeros up to this length. There is room for any message it is used for.
    fn grow(&mut self, len: usize);
}

impl Room for Vec<u8> {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn grow(&mut self, len: usize) {
        self.resize(len, 0);
    }
}

/// Where a struct's fields begin in the message.
#[derive(Clone, Copy)]
pub(crate) struct Fields(usize);

impl<H> Encoder<H> {
    /// Begins a call of `method`, with a request id if it is one that is answered.
    pub(crate) fn call(method: Method, request: RequestId) -> Self {
        match method.kind {
            CallKind::OneWay => Self::begin(room(), method, 0, None),
            CallKind::Answered => Self::begin(room(), method, FLAG_EXPECTS_RESPONSE, Some(request)),
            CallKind::Sync => {
                Self::begin(room(), method, FLAG_EXPECTS_RESPONSE | FLAG_IS_SYNC, Some(request))
            }
        }
    }

    /// Begins the answer to a call of `method`.
    pub(crate) fn reply(method: Method, request: RequestId) -> Self {
        Self::reply_in(room(), method, request)
    }

    pub(crate) fn finish(self) -> (Vec<u8>, Vec<H>) {
        (self.bytes, self.handles)
    }
}

/// Room for most messages.
fn room() -> Vec<u8> {
    Vec::with_capacity(128)
}

impl<H, R: Room> Encoder<H, R> {
    /// Begins the answer to a call of `method`, in this room.
    pub(crate) fn reply_in(room: R, method: Method, request: RequestId) -> Self {
        let sync = if method.kind == CallKind::Sync { FLAG_IS_SYNC } else { 0 };
        Self::begin(room, method, FLAG_IS_RESPONSE | sync, Some(request))
    }

    fn begin(room: R, method: Method, flags: u32, request: Option<RequestId>) -> Self {
        let mut encoder = Self { bytes: room, handles: Vec::new() };
        let (size, version) = if request.is_some() { (HEADER_V1, 1) } else { (HEADER_V0, 0) };
        let header = encoder.object(size, version);
        encoder.u32(header, 0, method.interface.0);
        encoder.u32(header, 4, method.ordinal);
        encoder.u32(header, 8, flags);
        if let Some(request) = request {
            encoder.u64(header, 16, request.0);
        }
        encoder
    }

    /// Appends a struct with `fields` bytes of fields, all zero, version 0.
    pub(crate) fn structure(&mut self, fields: usize) -> Fields {
        self.object(STRUCT_HEADER + fields, 0)
    }

    /// Appends an array of `elements` of `element` bytes each (a multiple of 8).
    pub(crate) fn array(&mut self, elements: usize, element: usize) -> Fields {
        self.object(STRUCT_HEADER + elements * element, count(elements))
    }

    /// Appends an object: its size, its second word, and zeros.
    fn object(&mut self, size: usize, second: u32) -> Fields {
        let at = self.bytes.len();
        self.bytes.grow(at + size.next_multiple_of(8));
        self.bytes.bytes()[at..at + 4].copy_from_slice(&count(size).to_le_bytes());
        self.bytes.bytes()[at + 4..at + 8].copy_from_slice(&second.to_le_bytes());
        Fields(at + STRUCT_HEADER)
    }

    pub(crate) fn u32(&mut self, fields: Fields, offset: usize, value: u32) {
        let at = fields.0 + offset;
        self.bytes.bytes()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i32(&mut self, fields: Fields, offset: usize, value: i32) {
        let at = fields.0 + offset;
        self.bytes.bytes()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, fields: Fields, offset: usize, value: u64) {
        let at = fields.0 + offset;
        self.bytes.bytes()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn code<C: Code>(&mut self, fields: Fields, offset: usize, value: C) {
        self.u32(fields, offset, value.code());
    }

    pub(crate) fn handle(&mut self, fields: Fields, offset: usize, handle: Option<H>) {
        let index = match handle {
            Some(handle) => {
                self.handles.push(handle);
                count(self.handles.len() - 1)
            }
            None => NO_HANDLE,
        };
        self.u32(fields, offset, index);
    }

    /// Makes the pointer at `offset` point to the object appended next.
    pub(crate) fn point(&mut self, fields: Fields, offset: usize) {
        let distance = self.bytes.len() - (fields.0 + offset);
        self.u64(fields, offset, distance as u64);
    }

    /// A `MemoryRegion` behind the pointer at `offset`.
    pub(crate) fn region(&mut self, fields: Fields, offset: usize, region: MemoryRegion) {
        self.point(fields, offset);
        let at = self.structure(16);
        self.u64(at, 0, region.address);
        self.u64(at, 8, region.length);
    }

    /// An array of regions behind the pointer at `offset`.
    pub(crate) fn regions(&mut self, fields: Fields, offset: usize, regions: &[MemoryRegion]) {
        self.point(fields, offset);
        let pointers = self.array(regions.len(), 8);
        for (index, region) in regions.iter().enumerate() {
            self.region(pointers, index * 8, *region);
        }
    }
}

/// A size or count as the layout's u32. Too large a message is refused as a whole before it is sent, so that saturating
/// here can't be seen on the wire.
fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
