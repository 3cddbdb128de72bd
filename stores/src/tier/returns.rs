//! What came back, and how long it had been away: by that a page that leaves again is judged.
//!
//! A table of fixed size that forgets: blocks of sixteen pages, since pages leave and come back in such, each at the one place its hash says. Two blocks
//! at one place overwrite each other, which costs a guess.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use userswap_store::PageKey;

/// Places: as many as blocks of two gigabytes.
const PLACES: usize = 1 << 15;
/// Pages of a block.
const BLOCK: u64 = 16;
/// A return is remembered for so many times the age at which pages go down.
const REMEMBERED: u32 = 16;

const STAY_BITS: u32 = 16;
const SECOND_BITS: u32 = 24;

/// ```text
/// 63               40 39        24 23                0
/// | fingerprint (24) | stay (16)  | when it came (24) |     in seconds; 0: nothing
/// ```
pub(super) struct Returns(Box<[AtomicU64]>);

/// What is known of a page that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// Nothing.
    Unknown,
    /// It was here before and came back soon, before it would have gone down.
    Soon,
    /// It was here before and stayed so long that it went down, or could have.
    Late,
}

impl Returns {
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    /// A page comes back after so many seconds.
    pub(super) fn note(&self, key: PageKey, stay: u32, now: u32) {
        let (place, fingerprint) = Self::place(key);
        let stay = u64::from(stay.min((1 << STAY_BITS) - 1));
        let entry = fingerprint << (STAY_BITS + SECOND_BITS) | stay << SECOND_BITS | Self::short(now);
        self.0[place].store(entry, Ordering::Relaxed);
    }

    /// What is known of a page, where pages go down at this age.
    pub(super) fn past(&self, key: PageKey, now: u32, age: Duration) -> Past {
        let (place, fingerprint) = Self::place(key);
        let entry = self.0[place].load(Ordering::Relaxed);
        let age = crate::clock::second(age).max(1);
        let since = Self::short(now).wrapping_sub(entry) & ((1 << SECOND_BITS) - 1);
        if entry >> (STAY_BITS + SECOND_BITS) != fingerprint
            || since > u64::from(age.saturating_mul(REMEMBERED))
        {
            return Past::Unknown;
        }
        let stay = entry >> SECOND_BITS & ((1 << STAY_BITS) - 1);
        if stay < u64::from(age) { Past::Soon } else { Past::Late }
    }

    fn short(second: u32) -> u64 {
        u64::from(second) & ((1 << SECOND_BITS) - 1)
    }

    /// A place, and a fingerprint that isn't 0.
    #[allow(clippy::cast_possible_truncation, reason = "a hash")]
    fn place(key: PageKey) -> (usize, u64) {
        let block = key.owner.0.rotate_left(32) ^ (key.page / BLOCK);
        let mixed = (block ^ block >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed as usize % PLACES, mixed >> (STAY_BITS + SECOND_BITS) | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_store::OwnerId;

    #[test]
    fn what_came_back_is_remembered_for_a_time() {
        let returns = Returns::new();
        let key = |page| PageKey { owner: OwnerId(5), page, generation: 1 };
        let age = Duration::from_secs(60);
        let past = |page, now| returns.past(key(page), now, age);
        assert_eq!(past(0, 100), Past::Unknown);
        returns.note(key(3), 59, 100);
        returns.note(key(160), 60, 100);
        // Of a block all pages.
        assert_eq!([past(0, 100), past(15, 101), past(16, 101)], [Past::Soon, Past::Soon, Past::Unknown]);
        assert_eq!([past(160, 100 + 960), past(160, 100 + 961)], [Past::Late, Past::Unknown]);
        returns.note(key(3), u32::MAX, 2000);
        assert_eq!(past(0, 2000), Past::Late);
        // The clock's short form goes around.
        returns.note(key(3), 1, (1 << 24) - 1);
        assert_eq!(past(0, 1 << 24), Past::Soon);
        let other = PageKey { owner: OwnerId(6), ..key(3) };
        assert_eq!(returns.past(other, 1 << 24, age), Past::Unknown);
    }
}
