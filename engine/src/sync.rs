//! What is gone without locks with. In one place, for `tests/loom` to compile users of it with something else, by which it tries every interleaving.

pub(crate) use crossbeam::queue::SegQueue;
pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
