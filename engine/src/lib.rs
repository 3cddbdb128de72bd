//! The userswap engine: page states, the fault path, moving out, paged regions.
//!
//! Start with [`fault`]: read → decide → fetch → install. [`evict`] is the way out. Both are thin shells over the pure
//! [`core`]; the [`memory`] seam says how an address space is reached, [`space`] holds its gate, [`engine`] the threads.

mod brake;
pub mod core;
pub mod directory;
mod early;
pub mod engine;
pub mod evict;
pub mod fault;
pub mod histogram;
mod inline;
pub mod ledger;
pub mod local;
mod mailbox;
pub mod memory;
pub mod pacer;
mod pending;
mod placement;
mod record;
mod retire;
mod ring;
pub mod shares;
pub mod slots;
pub mod space;
pub mod stages;
pub mod stalls;
mod steer;
mod sync;
mod turns;
pub mod watched;
mod writes;

pub use engine::{Engine, EngineBuilder, Observer, SpaceId, Unobserved};
pub use evict::{EvictError, Keep, MovedOut};
pub use histogram::Histogram;
pub use ledger::{Ledger, Roster};
pub use local::{Expected, LocalReach, PagedRegion, Pinned};
pub use memory::{Memory, MemoryError};
pub use pacer::Pacer;
pub use record::Change;
pub use space::recover::Recovered;
pub use space::{Space, Usage};
pub use stages::{Stage, Stages};
pub use stalls::{Stalled, Stalls};
pub use watched::{Reach, Watched};
