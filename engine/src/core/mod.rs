//! The pure core: what is known of every page, and what follows from it.
//!
//! Nothing here makes a system call, takes a lock, reads a clock or calls a store. A [`Shard`] is the whole state of one
//! region behind one `&mut`; the loops in [`crate::fault`] and [`crate::evict`] lock it for the few instructions a
//! decision takes, act, and come back to record what the kernel answered. The simulator drives the same methods.

mod around;
mod events;
mod flight;
mod found;
mod index;
mod moving;
mod nearby;
mod page;
mod shard;
mod transition;

pub use around::Habit;
pub use flight::{Flight, Segment};
pub(crate) use found::Found;
pub use index::{Generation, PageIndex, RegionId, SlotId, SlotPage};
pub use nearby::Nearby;
pub use page::{Flags, PageState, PageTable};
pub use shard::{Decision, Ended, Install, Kept, Lost, Piece, Shard, Vanished, Zeroed};
pub use transition::{Counts, Transition};
