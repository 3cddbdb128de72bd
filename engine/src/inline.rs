//! Inline regions: the thread that touches a missing page brings it back itself, in its signal handler.
//!
//! ```text
//!  touch ─▶ SIGBUS ─▶ registry: whose? ─▶ lock: decide ─▶ fetch into a kit ─▶ lock: still wanted? ─▶ COPY or MOVE ─▶ lock: record ─▶ return
//!                        │ nobody's            │ in flight, moving, no kit       │ can't be had here
//!                        ▼                     ▼                                 ▼
//!                     the handler before    sleep until something changes     leave it to the helper thread, sleep
//! ```
//!
//! No other thread has a part in a fault whose page is in memory, and nothing is asked of the kernel but the install. There are no events and
//! no gate: the mapping is the region's own and changes only by what this module does.
//!
//! # What a handler may do
//! It runs on a thread that was stopped anywhere: perhaps within malloc, perhaps with locks of its program held. It allocates nothing; the locks it
//! takes are [`SignalLock`](userswap_uffd::SignalLock)s, whose holders have signals blocked, touch no memory of a region and wait for
//! nothing; a store is asked by [`fetch_in_handler`](userswap_store::Store::fetch_in_handler). What that leaves to be done (freeing objects, pages of
//! stores that can't be asked so) the [`helper`] does.

mod helper;
mod keeper;
mod kit;
mod memory;
mod mover;
mod registry;
mod serve;
mod space;
mod state;

pub(crate) use helper::Helper;
pub(crate) use keeper::Keeper;
pub(crate) use memory::lacking;
pub(crate) use registry::Registered;
pub(crate) use space::{Inline, Settings};
