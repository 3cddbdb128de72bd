//! Backing stores for userswap, each a feature: where the pages of a program go that doesn't need them now.
//!
//! | feature | store | specification |
//! |---|---|---|
//! | `ram-lz4` (default) | compressed memory, fast, pure Rust | `ram:lz4` |
//! | `ram-zstd` | compressed memory, dense, with a dictionary for each owner of many pages | `ram:zstd?level=-1&dict=15K` |
//! | `ram-lz4`, `ram-zstd` | what the kernel's zram does, with writeback to any store | `zram?idle=60s:file:/var/tmp` |
//! | `file` | a file or a block device, sealed, by io_uring | `file:/var/tmp?size=4G` |
//! | `plugin` | what a shared library has, by a C interface | `plugin:/usr/lib/mine.so?key=value` |
//! | `seal` | a layer: any store, sealed | `sealed+…` |
//!
//! Always there are the [`layers`] `checked+…`, `metered+…` and `chaos?…+…`, and stacks of stores: [`tier`].
//!
//! [`open`] makes a store from a specification; see [`spec`] for the grammar.
#![deny(unsafe_code)]

mod calls;
mod clock;
#[cfg(feature = "file")]
pub mod file;
pub mod layers;
#[cfg(feature = "plugin")]
pub mod plugin;
#[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
pub mod ram;
#[cfg(feature = "seal")]
mod seal;
mod slab;
pub mod spec;
pub mod tier;
#[cfg(any(feature = "ram-lz4", feature = "ram-zstd"))]
pub mod zram;

pub use clock::Clock;
pub use spec::{SpecError, open};
