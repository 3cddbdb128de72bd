//! Holding an address space under a limit: a hand goes round its regions and moves out what it finds resident.

use crate::directory::bytes_of;
use crate::evict::{EvictError, Keep, MovedOut};
use crate::space::Space;
use userswap_uffd::{Span, page_size};

/// Where the hand of one address space stands.
#[derive(Default)]
pub struct Pacer {
    hand: u64,
}

/// How much the hand looks at before it moves out, so that a round is spread over the whole.
const STRIDE: u64 = 2 << 20;

impl Pacer {
    /// A hand at the lowest address.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves out `pages` pages from the hand on, or all there is after one full round.
    ///
    /// # Errors
    /// As [`Space::move_out`].
    pub fn move_out(&mut self, space: &Space, pages: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        let mut total = MovedOut::default();
        let spans = strides(space);
        let start = spans.iter().position(|span| span.start() >= self.hand).unwrap_or(0);
        for span in spans[start..].iter().chain(&spans[..start]) {
            if total.moved >= pages {
                break;
            }
            let moved = space.move_out(*span, pages - total.moved, keep)?;
            total.moved += moved.moved;
            total.stored += moved.stored;
            total.pinned += moved.pinned;
            self.hand = span.end();
        }
        Ok(total)
    }

    /// Pages of managed regions that are resident now.
    ///
    /// # Errors
    /// When the page table can't be read.
    pub fn resident(space: &Space) -> Result<u64, EvictError> {
        let mut present = Vec::new();
        let mut count = 0;
        for part in space.parts() {
            if let Ok(span) = Span::new(part.piece.addr, bytes_of(part.piece.pages)) {
                space.memory().resident(span, &mut present)?;
                count += present.iter().filter(|page| **page).count() as u64;
            }
        }
        Ok(count)
    }

    /// Moves out what is over `limit` pages. Returns what that took.
    ///
    /// # Errors
    /// As [`Space::move_out`].
    pub fn hold(&mut self, space: &Space, limit: u64, keep: Keep) -> Result<MovedOut, EvictError> {
        let over = Self::resident(space)?.saturating_sub(limit);
        if over == 0 { Ok(MovedOut::default()) } else { self.move_out(space, over, keep) }
    }
}

/// The managed parts, cut into strides.
fn strides(space: &Space) -> Vec<Span> {
    let stride = STRIDE.max(page_size() as u64);
    space
        .parts()
        .iter()
        .filter_map(|part| Span::new(part.piece.addr, bytes_of(part.piece.pages)).ok())
        .flat_map(|span| span.pieces(stride))
        .collect()
}
