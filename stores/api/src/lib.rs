//! The contract between userswap and a backing store.
//!
//! A [`Store`] takes pages that left a program's memory and gives them back when the program touches them. It knows
//! nothing of processes, faults or policies: pages come in by [`Store::put`], are named by [`Handle`]s, come back by
//! [`Store::fetch`] and go by [`Store::free`]. The trait's documentation is the specification; the feature `testkit`
//! has a conformance kit that checks a store against it, one named law at a time.
//!
//! | caller | may call | so the method |
//! |---|---|---|
//! | mover threads | `put`, `maintain` | may block |
//! | fault threads | `fetch`, `fetch_run`, `free`, `stats` | must not wait for a device, a peer or another thread's I/O |
//!
//! ```
//! use userswap_store::{Handle, OwnerId, Page, PageKey, Store, StoreError};
//!
//! /// Puts one page and says what it is called now.
//! fn put_one(store: &dyn Store, key: PageKey, bytes: &[u8]) -> Result<Option<Handle>, StoreError> {
//!     let mut handle = [None];
//!     store.put(&[Page { key, bytes }], &mut handle)?;
//!     Ok(handle[0])
//! }
//! # let _ = (put_one, OwnerId(1));
//! ```
//!
//! The feature `plugin` has what a store in a shared library needs, with the policy of versions.
// The feature brings the one module that speaks with C.
#![cfg_attr(not(feature = "plugin"), forbid(unsafe_code))]
#![cfg_attr(feature = "plugin", deny(unsafe_code))]

mod capabilities;
mod error;
mod page;
#[cfg(feature = "plugin")]
pub mod plugin;
mod stats;
mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod waiter;

pub use capabilities::{Capabilities, Durability, FetchKind, Integrity, Medium};
pub use error::StoreError;
pub use page::{Handle, OwnerId, Page, PageKey, Wanted};
pub use stats::{Budget, Maintained, Stats};
pub use store::{Fetch, Store, check_put, check_run, fetch_each};
pub use waiter::{Completion, Waiter};
