//! What a store can do, as data.

use crate::StoreError;
use std::sync::Arc;

/// What a store is and can do: callers choose their way by it, the conformance kit chooses its laws.
///
/// Make one with [`Capabilities::new`] and set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A short name for tables and logs, such as `ram:lz4`. Shared, so that a clone of all this allocates nothing.
    pub name: Arc<str>,
    /// Bytes a page has, in and out. Fixed when the store is opened.
    pub page_size: usize,
    /// The most pages one `put` takes. At least 1.
    pub max_batch: usize,
    /// The most the store will hold of its [`medium`](Capabilities::medium); `None`: no limit of its own.
    pub capacity: Option<u64>,
    /// What its capacity is counted in.
    pub medium: Medium,
    /// How fetches answer.
    pub fetch: FetchKind,
    /// What stored pages survive.
    pub durability: Durability,
    /// How far damage to a stored page is noticed.
    pub integrity: Integrity,
    /// Stored bytes can't be read without a key.
    pub encrypts: bool,
    /// Pages that are one word repeated are noticed and counted in [`same_filled_pages`](crate::Stats::same_filled_pages).
    pub detects_same_filled: bool,
    /// Equal pages of one owner may share one object. (Handles still have one owner each.)
    pub deduplicates: bool,
    /// Pages of one `put` may live in one object, so fetching neighbours together is cheaper than apart.
    pub groups_pages: bool,
    /// `maintain` does something.
    pub maintains: bool,
    /// Most pages can be had by [`fetch_in_handler`](crate::Store::fetch_in_handler).
    pub fetches_in_handlers: bool,
}

impl Capabilities {
    /// Whether a page of this store's length goes into `out`, and nothing else.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] if not.
    pub fn check_buffer(&self, out: &[u8]) -> Result<(), StoreError> {
        if out.len() == self.page_size {
            Ok(())
        } else {
            Err(StoreError::Unsupported { what: "a buffer that isn't page_size long" })
        }
    }

    /// A plain store: in memory, answers at once, no limit, notices nothing.
    pub fn new(name: impl Into<Arc<str>>, page_size: usize) -> Self {
        Self {
            name: name.into(),
            page_size,
            max_batch: 1024,
            capacity: None,
            medium: Medium::Memory,
            fetch: FetchKind::Ready,
            durability: Durability::Process,
            integrity: Integrity::None,
            encrypts: false,
            detects_same_filled: false,
            deduplicates: false,
            groups_pages: false,
            maintains: false,
            fetches_in_handlers: false,
        }
    }
}

/// What a store's capacity is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Medium {
    /// [`memory_bytes`](crate::Stats::memory_bytes).
    Memory,
    /// [`device_bytes`](crate::Stats::device_bytes).
    Device,
}

/// How fetches answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchKind {
    /// Always [`Ready`](crate::Fetch::Ready).
    Ready,
    /// Either, page by page.
    Mixed,
}

/// What stored pages survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Durability {
    /// They go with the store.
    Process,
    /// They can be found again in memory another process kept alive.
    Memory,
    /// They can be found again after the machine went down.
    Device,
}

/// How far damage to a stored page is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Integrity {
    /// Not at all.
    None,
    /// Accidents are, by a checksum over key and bytes.
    Checksum,
    /// Forgery is, by a keyed tag over key and bytes.
    Authenticated,
}
