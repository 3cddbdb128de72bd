//! The daemon as a library: clients, budget, orders.

mod admission;
mod builder;
mod claims;
mod reach;
mod server;
mod steward;
mod survey;

pub use builder::ServerBuilder;
pub use server::{ClientStatus, Server, ServerError, Total};
