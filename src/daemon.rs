//! The daemon as a library: clients, budget, orders.

mod admission;
mod builder;
mod claims;
#[cfg(feature = "confine")]
pub mod confine;
#[cfg(feature = "control")]
mod confinement;
#[cfg(feature = "control")]
pub mod control;
#[cfg(all(feature = "control", feature = "run"))]
mod deposit;
mod divisions;
mod doors;
mod error;
mod eyes;
pub mod footprint;
#[cfg(all(feature = "control", feature = "run"))]
mod handover;
mod heir;
#[cfg(all(feature = "control", feature = "run"))]
mod keeper;
mod notes;
#[cfg(all(feature = "control", feature = "run"))]
mod notifier;
mod orders;
mod own;
mod reach;
mod recorder;
#[cfg(feature = "control")]
pub mod report;
mod rest;
mod server;
#[cfg(feature = "control")]
mod service;
#[cfg(feature = "control")]
pub mod settings;
mod steward;
mod survey;
mod sweep;
mod telling;
mod throttle;
mod total;
#[cfg(all(feature = "control", feature = "run"))]
mod trustee;
#[cfg(feature = "control")]
pub mod units;
mod upkeep;
mod warden;

pub use builder::ServerBuilder;
#[cfg(feature = "control")]
pub use confinement::Confinement;
#[cfg(all(feature = "control", feature = "run"))]
pub use deposit::has_returned;
pub use error::ServerError;
pub use eyes::Sights;
#[cfg(all(feature = "control", feature = "run"))]
pub use handover::QUESTION;
pub use heir::Heritage;
#[cfg(all(feature = "control", feature = "run"))]
pub use keeper::{Keeper, KeeperError, Kept};
#[cfg(all(feature = "control", feature = "run"))]
pub use notifier::Notifier;
pub use recorder::Recorder;
pub use server::{ClientStatus, Server};
#[cfg(feature = "control")]
pub use service::{Options, Service};
pub use sweep::Swept;
pub use throttle::Throttle;
pub use total::Total;
pub use warden::{Record, Warden};
