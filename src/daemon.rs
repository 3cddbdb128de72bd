//! The daemon as a library: clients, budget, orders.

mod admission;
mod builder;
mod reach;
mod server;
mod steward;

pub use builder::ServerBuilder;
pub use server::{ClientStatus, Server, ServerError, Total};
