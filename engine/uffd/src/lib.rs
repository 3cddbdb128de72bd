//! userfaultfd and the system calls around it, with the kernel's answers as words.
//!
//! A userfaultfd lets one thread or process answer another's page faults. This crate opens one ([`Uffd::open`], or [`RawUffd`] across
//! processes), registers ranges ([`Span`]), reads what happens ([`Message`]) and puts pages in place ([`Uffd::copy`], [`Uffd::move_pages`]
//! and so on). The kernel's answers to those are [`Outcome`]s: how far it came and, as a word, why no further.
//!
//! Beside it, what such a program needs: its [own](mod@own) mappings, another [`Process`]'s memory, the [`pagemap`], the [`maps`],
//! [`cpu`] placement, [`futex`]es in shared memory, faults as [signals](sigbus), and a [`probe`](mod@probe) that tells what this machine lacks and what would mend that.
//!
//! ```
//! use userswap_uffd::{CopyMode, Features, Mapping, OpenMode, Protection, RegisterMode, Stop, Uffd, page_size};
//!
//! let Ok(uffd) = Uffd::open(Features::empty(), OpenMode::UserModeOnly) else { return Ok(()) };
//! let memory = Mapping::new(page_size() as u64, Protection::READ_WRITE)?;
//! // SAFETY: nobody else knows of the memory, and nobody touches it before its page is in place.
//! unsafe { uffd.register(memory.span(), RegisterMode::MISSING) }?;
//! let page = vec![7; page_size()];
//! assert!(uffd.copy(memory.span().start(), &page, CopyMode::default()).is_complete());
//! // SAFETY: within the mapping, and the page is there.
//! assert_eq!(unsafe { memory.as_ptr().read_volatile() }, 7);
//! // A second answer to the same question changes nothing, and says why.
//! assert_eq!(uffd.copy(memory.span().start(), &page, CopyMode::default()).stop, Some(Stop::Present));
//! # Ok::<(), userswap_uffd::Error>(())
//! ```
//!
//! `examples/demand-paging.rs` serves faults as they come.
//!
//! # Building
//!
//! In this workspace a Rust toolchain is enough. As a dependency from a registry the crate builds `userfaultfd-sys`, which needs libclang and
//! the kernel's headers; to do without, patch it with the stand-in in `sys/`.
//!
//! # Unsafe
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
mod lock;
pub mod maps;
mod message;
mod movable;
mod open;
mod outcome;
pub mod own;
pub mod pagemap;
pub mod probe;
pub mod process;
pub mod sigbus;
pub mod span;
pub mod succession;
mod sync;
mod uffd;

pub use abi::REQUESTS;
pub use error::Error;
pub use features::{Features, RangeIoctls, RegisterMode};
pub use lock::{Bell, Blocked, Held, SignalLock};
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
