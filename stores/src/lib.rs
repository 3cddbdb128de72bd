//! Backing stores for userswap, each a feature: where the pages of a program go that doesn't need them now.
//!
//! | feature | store | specification |
//! |---|---|---|
//! | `ram-lz4` (default) | compressed memory, fast, pure Rust | `ram:lz4` |
//! | `ram-zstd` | compressed memory, dense, with a dictionary for each owner of many pages | `ram:zstd?level=-1&dict=15K` |
//!
//! [`open`] makes a store from a specification; see [`spec`] for the grammar.
#![deny(unsafe_code)]

#[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
pub mod ram;
pub mod spec;

pub use spec::{SpecError, open};
