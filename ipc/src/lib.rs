//! The userspace-swap contract: messages in Mojo's layout, transport, client end, daemon end.
#![deny(unsafe_code)]

pub mod contract;
pub mod extension;
pub mod wire;
