//! userfaultfd and the system calls around it, with the kernel's answers as words.
//!
//! A userfaultfd lets one thread or process answer another's page faults. This crate opens one ([`Uffd::open`], or [`RawUffd`] across
//! processes), registers ranges ([`Span`]), reads what happens ([`Message`]) and puts pages in place ([`Uffd::copy`], [`Uffd::move_pages`]
//! and so on). The kernel's answers to those are [`Outcome`]s: how far it came and, as a word, why no further.
//!
//! Beside it, what such a program needs: its [own](mod@own) mappings, another [`Process`]'s memory, the [`pagemap`], the [`maps`],
//! [`cpu`] placement, [`futex`]es in shared memory, and a [`probe`](mod@probe) that tells what this machine lacks and what would mend that.
//!
//! All `unsafe` about the kernel is here. Of a userfaultfd the unsafe act is [`Uffd::register`]: whoever gives memory into
//! other hands answers for what those do with it.

#![warn(missing_docs)]

mod abi;
pub mod class;
pub mod cpu;
mod error;
mod features;
pub mod futex;
pub mod maps;
mod message;
mod movable;
mod open;
mod outcome;
pub mod own;
pub mod pagemap;
pub mod probe;
pub mod process;
pub mod span;
mod uffd;

pub use error::Error;
pub use features::{Features, RangeIoctls, RegisterMode};
pub use maps::Vma;
pub use message::{DecodeError, Event, Fault, Message, RawMessage};
pub use movable::{Movable, MoveLimits};
pub use open::{OpenMode, RawUffd, open_device};
pub use outcome::{Operation, Outcome, Stop};
pub use own::{Advice, Mapping, Protection};
pub use pagemap::{Categories, Pagemap, PagemapEntry, ScanRange, ScanRequest};
pub use probe::probe;
pub use process::Process;
pub use span::{Span, SpanError, page_bytes, page_shift, page_size};
pub use uffd::{CopyMode, MoveMode, ReadError, Uffd};
