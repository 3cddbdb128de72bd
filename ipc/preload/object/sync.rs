//! Atomics, in one place for those files that `tests/loom` compiles with others, by which it tries every interleaving.

pub(crate) use core::sync::atomic::{AtomicU32, Ordering, fence};
