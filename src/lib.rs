//! A userfaultfd fault-servicing engine with pluggable backing stores.
//!
//! userswap moves cold memory of live processes out (into compressed memory, or whatever a [`Store`] is made of) and
//! brings each page back the moment a thread touches it.
//!
//! - **Daemon authors** start with [`Server`]: it listens, takes clients on, serves their faults, moves their memory out and back.
//! - **Programs that page themselves** want a [`PagedRegion`].
//! - **Store authors** implement [`Store`] and prove it with the conformance kit of `userswap-store`.
//!
//! ```no_run
//! # fn daemon(store: std::sync::Arc<dyn userswap::Store>) -> Result<(), Box<dyn std::error::Error>> {
//! let server = userswap::Server::builder(store).client_limit(64 << 20).listen("/run/userswap.sock").start()?;
//! for client in server.clients() {
//!     println!("{}: {} bytes out", client.pid, client.out_bytes);
//! }
//! server.drain()?;
//! # Ok(()) }
//! ```
#![deny(unsafe_code)]

pub mod daemon;
#[cfg(feature = "run")]
pub mod run;

pub use daemon::{ClientStatus, Server, ServerBuilder, ServerError};
pub use userswap_engine::{Engine, PagedRegion};
pub use userswap_ipc::{Client, Contract};
pub use userswap_store::Store;
