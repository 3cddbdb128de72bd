//! What a userfaultfd tells: faults and events, raw as the kernel writes them and decoded.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::span::page_floor;
use crate::{Features, Span, SpanError};

/// One message, decoded.
#[derive(Debug)]
pub enum Message {
    /// A thread stands still and wants a page.
    Fault(Fault),
    /// The address space changed, and whoever changed it stands still until this was read.
    Event(Event),
}

/// A thread that waits for a page. A signal to it makes the same fault arrive again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Start of the page.
    pub addr: u64,
    /// It wants to write.
    pub write: bool,
    /// The page is there and write-protected.
    pub wp: bool,
    /// The page is in the page cache and not mapped.
    pub minor: bool,
    /// Which thread, in the pid namespace of the reader; told with [`Features::THREAD_ID`] only.
    pub thread: Option<u32>,
}

/// A change of the address space that touches registered ranges.
#[derive(Debug)]
pub enum Event {
    /// The process forked: the child's own userfaultfd, its handshake made, the same ranges registered.
    Fork {
        /// The child's userfaultfd; the event doesn't say which process the child is.
        child: OwnedFd,
    },
    /// mremap moved (or grew) a range; both ends are registered after an mremap that leaves the old mapping.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How long it was before, in bytes.
        len: u64,
    },
    /// The contents are gone, the mapping stays (MADV_DONTNEED, MADV_FREE, MADV_REMOVE): the pages read as zeros now.
    Remove(Span),
    /// The mapping is gone, or another is in its place.
    Unmap(Span),
}

/// A message as the kernel writes it: 32 bytes, meaning nothing until decoded.
///
/// Any 32 bytes are a valid value, so it can lie in memory shared with another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct RawMessage([u8; 32]);

/// Why 32 bytes aren't a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// An event number this version doesn't know.
    #[error("unknown userfaultfd event {0:#x}")]
    UnknownEvent(u8),
    /// A range that can't be one.
    #[error("userfaultfd event {event:#x} with an impossible range")]
    BadRange {
        /// The event number.
        event: u8,
        /// What is wrong with it.
        source: SpanError,
    },
    /// A descriptor number that can't be one.
    #[error("userfaultfd fork event with descriptor {0}")]
    BadDescriptor(u32),
}

impl RawMessage {
    /// All zeros, which is no message.
    pub const EMPTY: RawMessage = RawMessage([0; 32]);

    /// Takes the bytes of a message apart into words and, for a fork, takes the child's descriptor.
    ///
    /// # Safety
    ///
    /// A fork message carries a descriptor number, and this takes ownership of that descriptor: the message must have been read
    /// from a userfaultfd into this process's file table, and must be decoded at most once. (A message that
    /// [isn't a fork](RawMessage::is_fork) may be decoded as often as one likes.)
    pub unsafe fn decode(&self, features: Features) -> Result<Message, DecodeError> {
        let event = match self.0[0] {
            PAGEFAULT => return Ok(Message::Fault(self.fault(features))),
            FORK => {
                let number = self.u32_at(8);
                match RawFd::try_from(number) {
                    // SAFETY: by the caller's promise the kernel installed this descriptor for the reader and nobody has
                    // taken it yet.
                    Ok(fd) => Event::Fork { child: unsafe { OwnedFd::from_raw_fd(fd) } },
                    Err(_) => return Err(DecodeError::BadDescriptor(number)),
                }
            }
            REMAP => Event::Remap { from: self.u64_at(8), to: self.u64_at(16), len: self.u64_at(24) },
            event @ (REMOVE | UNMAP) => {
                let span = Span::between(self.u64_at(8), self.u64_at(16))
                    .map_err(|source| DecodeError::BadRange { event, source })?;
                if event == REMOVE { Event::Remove(span) } else { Event::Unmap(span) }
            }
            other => return Err(DecodeError::UnknownEvent(other)),
        };
        Ok(Message::Event(event))
    }

    /// The fault, if it is one. Needs no promise: there's nothing to own in it.
    pub fn as_fault(&self, features: Features) -> Option<Fault> {
        (self.0[0] == PAGEFAULT).then(|| self.fault(features))
    }

    /// Whether this is an event and not a fault.
    pub fn is_event(&self) -> bool {
        matches!(self.0[0], FORK | REMAP | REMOVE | UNMAP)
    }

    /// Whether this carries a descriptor, and the number it has in the reader's file table.
    pub fn is_fork(&self) -> Option<u32> {
        (self.0[0] == FORK).then(|| self.u32_at(8))
    }

    /// The bytes, to be written to a log or ring.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Any 32 bytes; what they mean shows when they're decoded.
    pub fn from_bytes(bytes: [u8; 32]) -> RawMessage {
        RawMessage(bytes)
    }

    pub(crate) fn bytes_mut(messages: &mut [RawMessage]) -> &mut [u8] {
        // SAFETY: a RawMessage is 32 bytes without padding, any of which may have any value, so a slice of them is a slice of bytes
        // 32 times as long; the borrow lasts as long.
        unsafe { std::slice::from_raw_parts_mut(messages.as_mut_ptr().cast(), size_of_val(messages)) }
    }

    fn fault(&self, features: Features) -> Fault {
        let flags = self.u64_at(8);
        let thread = self.u32_at(24);
        Fault {
            addr: page_floor(self.u64_at(16)),
            write: flags & FLAG_WRITE != 0,
            wp: flags & FLAG_WP != 0,
            minor: flags & FLAG_MINOR != 0,
            thread: (features.contains(Features::THREAD_ID) && thread != 0).then_some(thread),
        }
    }

    fn u64_at(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[offset..offset + 8]);
        u64::from_ne_bytes(bytes)
    }

    fn u32_at(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }
}

const PAGEFAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

const FLAG_WRITE: u64 = 1 << 0;
const FLAG_WP: u64 = 1 << 1;
const FLAG_MINOR: u64 = 1 << 2;

const _: () = assert!(size_of::<RawMessage>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(event: u8, words: [u64; 3]) -> RawMessage {
        let mut bytes = [0; 32];
        bytes[0] = event;
        for (i, word) in words.iter().enumerate() {
            bytes[8 + 8 * i..16 + 8 * i].copy_from_slice(&word.to_ne_bytes());
        }
        RawMessage::from_bytes(bytes)
    }

    fn decode(event: u8, words: [u64; 3]) -> Result<Message, DecodeError> {
        assert_ne!(event, FORK, "a descriptor made up here isn't ours to own");
        // SAFETY: not a fork, so nothing is owned.
        unsafe { raw(event, words).decode(Features::THREAD_ID) }
    }

    #[test]
    fn faults_say_what_the_thread_wants() {
        for (flags, write, wp, minor) in [
            (0, false, false, false),
            (1, true, false, false),
            (3, true, true, false),
            (4, false, false, true),
        ] {
            let Message::Fault(fault) = decode(PAGEFAULT, [flags, 0x7000_1234, 77]).unwrap() else {
                panic!()
            };
            assert_eq!(fault, Fault { addr: 0x7000_1000, write, wp, minor, thread: Some(77) });
        }
    }

    #[test]
    fn the_thread_is_told_only_when_asked_for() {
        let message = raw(PAGEFAULT, [0, 0x1000, 77]);
        assert_eq!(message.as_fault(Features::empty()).unwrap().thread, None);
        assert_eq!(message.as_fault(Features::THREAD_ID).unwrap().thread, Some(77));
        assert!(!message.is_event());
    }

    #[test]
    fn events_carry_their_ranges() {
        let Message::Event(Event::Remap { from, to, len }) = decode(REMAP, [0x1000, 0x9000, 0x2000]).unwrap()
        else {
            panic!()
        };
        assert_eq!((from, to, len), (0x1000, 0x9000, 0x2000));
        let Message::Event(Event::Remove(span)) = decode(REMOVE, [0x1000, 0x3000, 0]).unwrap() else {
            panic!()
        };
        assert_eq!(span, Span::new(0x1000, 0x2000).unwrap());
        let Message::Event(Event::Unmap(span)) = decode(UNMAP, [0x1000, 0x3000, 0]).unwrap() else {
            panic!()
        };
        assert_eq!(span, Span::new(0x1000, 0x2000).unwrap());
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(decode(0, [0; 3]).unwrap_err(), DecodeError::UnknownEvent(0));
        assert_eq!(decode(0x17, [0; 3]).unwrap_err(), DecodeError::UnknownEvent(0x17));
        assert!(matches!(
            decode(UNMAP, [0x3000, 0x1000, 0]),
            Err(DecodeError::BadRange { event: UNMAP, .. })
        ));
        // SAFETY: the descriptor number is impossible, so decoding fails before owning anything.
        let bad = unsafe { raw(FORK, [0xffff_ffff, 0, 0]).decode(Features::empty()) };
        assert_eq!(bad.unwrap_err(), DecodeError::BadDescriptor(0xffff_ffff));
        assert_eq!(raw(FORK, [9, 0, 0]).is_fork(), Some(9));
    }
}
