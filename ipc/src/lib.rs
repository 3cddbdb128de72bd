//! The userspace-swap contract: messages in Mojo's layout, transport, client end, daemon end.
//!
//! A *client* is a process whose cold memory a *daemon* moves out and brings back on touch. They agree by the two
//! interfaces of `userspace_swap.mojom` ([`contract`]), laid out as Mojo lays them out ([`wire`]), over a Unix socket that
//! keeps messages apart and carries descriptors ([`transport`]). What goes beyond the mirror is negotiated ([`extension`]).
//!
//! - A program becomes a client by [`Client::builder`]; its [`agent`] carries out the daemon's orders through the
//!   [`receiver`].
//! - A daemon listens ([`Listener`]), takes a client on ([`adopt`]) and gives it orders ([`ClientLink`]). What it does with the
//!   memory is not of this crate.
//!
//! ```no_run
//! use userswap_ipc::{Client, Contract};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("/run/userswap.sock").contract(Contract::Strict).connect()?;
//! let memory = userswap_uffd::Mapping::new(64 << 20, userswap_uffd::Protection::READ_WRITE)?;
//! client.offer(memory.span());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod agent;
pub mod client;
pub mod contract;
pub mod daemon;
pub mod extension;
pub mod inbox;
pub mod link;
pub mod listener;
pub mod peer;
pub mod receiver;
mod replies;
pub mod setup;
pub mod slots;
pub mod superpages;
mod sys;
pub mod transport;
mod vigil;
pub mod wire;

pub use client::{Client, ClientError};
pub use contract::{Contract, MemoryRegion};
pub use daemon::{Adopted, Arrival, Child, LinkError, Terms, adopt, handshake, receive};
pub use extension::Abilities;
pub use inbox::{Wanted, Wish};
pub use link::{ClientLink, Punished, Resumed};
pub use listener::Listener;
pub use peer::Peer;
pub use setup::Offer;
pub use slots::{Slot, SlotStack};
pub use transport::{Connection, Received, TransportError, Wait};
