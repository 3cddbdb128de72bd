//! Stores in shared libraries: that right ones keep the laws, and what wrong ones cost.
#![cfg(feature = "plugin")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod laws;
mod layout;
mod nonsense;
mod refused;
mod support;
