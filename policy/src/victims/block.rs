//! What is known of one block: which of its pages stand in which queue, what went of it and when, and what came of trying it.

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    pub(super) short: Part,
    pub(super) long: Part,
    /// What went out last of it.
    pub(super) last: u64,
    /// When that was, by the clock; 0 for never.
    pub(super) left: u64,
    /// When anything else went, at the latest; 0 for never.
    pub(super) before: u64,
    /// Rounds it is passed over.
    pub(super) passes: u32,
    /// What `passes` was set to last.
    pub(super) earned: u32,
    pub(super) trial: Trial,
}

/// A block's pages in one of the queues.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    pub(super) pages: u64,
    pub(super) turn: u32,
}

/// One of a block's pages goes out, to see whether it comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Trial {
    /// It wasn't tried.
    #[default]
    None,
    /// It is out.
    Out,
    /// It, or another of the block, came back.
    Used,
    /// That was for once.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Short,
    Long,
}

impl Block {
    pub(super) fn pages(&self) -> u64 {
        self.short.pages | self.long.pages
    }

    pub(super) fn part(&mut self, place: Place) -> &mut Part {
        if place == Place::Short { &mut self.short } else { &mut self.long }
    }
}

/// One of the pages, another each time.
pub(super) fn one(pages: u64, seed: u64) -> u64 {
    // Fibonacci hashing: neighbouring seeds give distant places.
    let at = u32::try_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58).unwrap_or(0);
    let turned = pages.rotate_right(at);
    (turned & turned.wrapping_neg()).rotate_left(at)
}
