//! Pieces of userswap that do without a lock, or are one, on loom's atomics. What is tried with them is in `tests/`.

#![allow(dead_code, unreachable_pub)]

#[path = "../../../engine/uffd/src/lock.rs"]
mod lock;
#[path = "../../../engine/src/mailbox.rs"]
mod mailbox;
#[path = "../../../ipc/preload/object/moving.rs"]
mod moving;

pub mod models;
pub mod sync;
pub mod sys;
