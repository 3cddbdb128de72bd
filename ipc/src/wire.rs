//! Messages as bytes, in Mojo's layout.
//!
//! Little-endian throughout, every object on a multiple of 8 from the message's start.
//!
//! ```text
//! struct header   u32 bytes of the struct with this header · u32 version
//! message header  version 0, 24 bytes: struct header · u32 interface · u32 ordinal · u32 flags · u32 trace nonce
//!                 version 1, 32 bytes: the same · u64 request id      (a reply is expected, or this is one)
//! pointer         u64 distance from the pointer itself to an object further on; 0 = null
//! array           u32 bytes with this header · u32 elements · the elements (pointers, if they are structs)
//! handle          u32 index into the descriptors sent along; 0xffffffff = none
//! ```
//!
//! A struct's fields take, in order, the first gap that fits their alignment; its size is rounded up to 8. Objects follow
//! each other in the order of the pointers to them.
//!
//! What Mojo leaves open is closed here, so that a message has one form and nothing in it goes unlooked at: struct versions
//! and sizes are exactly the known ones (a newer peer is told apart by `Hello`), objects leave no gaps, no bytes and no
//! handles are left over, flags are exactly those of the method. Only padding and the trace nonce are ignored.
//!
//! Encoding and decoding know nothing of sockets: handles are of any type `H`.

mod decode;
mod encode;
mod message;
mod order;

pub use decode::ValidationError;
pub use message::{Encoded, Envelope, RequestId, ToClient, ToDaemon, WireMessage};
pub(crate) use order::{MoveAnswer, MoveOrder};

/// The most bytes of a message, either way.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// The most handles of a message. None of them has more than two; a few more are taken in to be refused by name.
pub const MAX_HANDLES: usize = 4;

/// The most regions a superpage answer holds: 32-byte header, 16-byte struct, 8-byte array header, then a pointer and a
/// struct of 24 bytes each.
pub const MAX_REGIONS: usize = (MAX_MESSAGE_BYTES - 32 - 16 - 8) / 32;

const STRUCT_HEADER: usize = 8;
const HEADER_V0: usize = 24;
const HEADER_V1: usize = 32;
const NO_HANDLE: u32 = u32::MAX;

const FLAG_EXPECTS_RESPONSE: u32 = 1;
const FLAG_IS_RESPONSE: u32 = 2;
const FLAG_IS_SYNC: u32 = 4;
