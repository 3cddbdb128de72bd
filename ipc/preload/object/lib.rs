//! The client end of userswap for programs that know nothing of it, loaded by LD_PRELOAD. What it does and what it can't is
//! described by the crate that carries it, `userswap-preload`.
//!
//! - [`start`]: the constructor and the agent's thread. [`agent`]: what that does; START HERE.
//! - [`setup`], [`orders`], [`socket`], [`wire`]: becoming a client and being one. [`vigil`]: when there is no daemon any more.
//! - [`control`]: how the program's threads speak to the agent.
//! - [`fork`], [`exec`], [`memory`], [`remap`], [`restrict`], [`threads`]: the functions that are interposed. [`next`]: those behind them.
//! - [`state`]: what is remembered. [`sys`]: system calls. [`support`]: what the compiler needs.
//!
//! No standard library, no allocation, no thread-local storage, no dependency, no panic.
#![no_std]
#![warn(missing_docs, unreachable_pub, unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks, clippy::unwrap_used, clippy::indexing_slicing)]

mod agent;
mod control;
mod environment;
pub mod exec;
pub mod fork;
pub mod memory;
mod moving;
mod next;
mod orders;
pub mod remap;
pub mod restrict;
mod setup;
mod socket;
mod start;
mod state;
mod support;
mod sync;
mod sys;
mod tasks;
pub mod threads;
mod vigil;
mod wire;
