//! What serving one fault takes.

use crate::core::{Flight, Lost};
use userswap_uffd::page_size;

/// Buffers for one fault at a time, made before any comes.
pub(super) struct Kit {
    pub(super) flight: Flight,
    /// The bytes of the flight's pages, where they don't go into frames.
    pub(super) bytes: Vec<u8>,
    pub(super) lost: Lost,
}

impl Kit {
    /// For at most `pages` pages at once.
    pub(super) fn new(pages: u32) -> Self {
        let pages = pages as usize;
        Self {
            flight: Flight::with_capacity(pages),
            bytes: vec![0; pages * page_size()],
            lost: Lost::with_capacity(pages),
        }
    }
}
