//! Whether the neighbours of a page that came back are wanted soon, too, in whatever order.

use super::index::{PageIndex, RegionId};

/// Watches where faults came lately, over a whole address space, and says how much is worth bringing in together.
///
/// A program that goes through objects of several sizes reads no stretch of its memory in order, yet needs all of a block
/// within a short time; or, when it looks at objects of one size only, a few pages here and there of each. So there are two sizes:
/// groups of a few pages, and blocks of several groups. Of some only what was asked for is brought in, and how much of the rest
/// is asked for soon decides for the others. A page that comes in vain costs about what a fault costs that was spared, for
/// something else has to go out for it: so half of the rest has to be wanted.
#[derive(Clone, Debug)]
pub struct Nearby {
    groups: Level,
    blocks: Level,
}

/// Pages of a group.
const GROUP: u32 = 4;

impl Default for Nearby {
    fn default() -> Self {
        Self { groups: Level::new(GROUP), blocks: Level::new(0) }
    }
}

impl Nearby {
    /// A page is asked for. How many pages, the aligned lot of so many that the page is in, are to come with it; `block` at most.
    pub fn asked(&mut self, region: RegionId, page: PageIndex, block: u32) -> u32 {
        self.blocks.units = block / GROUP;
        let group = page.0 / GROUP;
        // Every group of it may be wanted and yet most of it isn't, as where every third page is.
        let whole = self.blocks.units > 1
            && self.blocks.asked((region, group / self.blocks.units), group % self.blocks.units)
            && self.groups.is_worth_it();
        // Where the block comes in nothing is to be learnt of its groups; one in eight doesn't.
        if whole {
            return block;
        }
        if self.groups.asked((region, group), page.0 % GROUP) { GROUP.min(block.max(1)) } else { 1 }
    }
}

/// One size of lots.
#[derive(Clone, Debug)]
struct Level {
    /// The lot with the latest fault first.
    recent: [Lot; RECENT],
    /// Units of a lot, 32 at most.
    units: u32,
    /// How much of the rest of a lot is asked for soon, of [`ALL`].
    score: u32,
    since_watched: u32,
}

/// Lots remembered: as many as a program is at in turn, few enough that chance hardly leads back to one.
const RECENT: usize = 16;

/// The score if all is asked for.
const ALL: u32 = 1 << 12;

/// So much a verdict moves the score: 1/16 of the way.
const WEIGHT: u32 = 16;

/// One lot in so many is watched although lots come in whole.
const WATCHED: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct Lot {
    /// Its region and number in it.
    name: Option<(RegionId, u32)>,
    /// Nothing was brought in that wasn't asked for.
    watched: bool,
    /// Units asked for, a bit each.
    asked: u32,
}

impl Level {
    fn new(units: u32) -> Self {
        let none = Lot { name: None, watched: false, asked: 0 };
        Self { recent: [none; RECENT], units, score: 0, since_watched: 0 }
    }

    /// A unit of a lot is asked for. Whether the whole lot is to come.
    fn asked(&mut self, name: (RegionId, u32), unit: u32) -> bool {
        let unit = 1 << (unit % 32);
        if let Some(at) = self.recent.iter().position(|lot| lot.name == Some(name)) {
            self.recent[..=at].rotate_right(1);
            let lot = &mut self.recent[0];
            lot.asked |= unit;
            return !lot.watched;
        }
        self.recent.rotate_right(1);
        let gone = self.recent[0];
        if gone.name.is_some() && gone.watched {
            let more = (gone.asked.count_ones() - 1).min(self.units - 1);
            let verdict = ALL * more / (self.units - 1).max(1);
            self.score = (self.score * (WEIGHT - 1) + verdict) / WEIGHT;
        }
        self.since_watched += 1;
        let watched = !self.is_worth_it() || self.since_watched >= WATCHED;
        if watched {
            self.since_watched = 0;
        }
        self.recent[0] = Lot { name: Some(name), watched, asked: unit };
        !watched
    }

    fn is_worth_it(&self) -> bool {
        self.score >= ALL / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 32;

    /// How many pages were asked for, and how many came with another one.
    fn came_along(pages: u32, wanted: impl Iterator<Item = u32>) -> (u32, u32) {
        let mut nearby = Nearby::default();
        let mut present = vec![false; pages as usize];
        let (mut asked, mut along) = (0, 0);
        for page in wanted {
            if present[page as usize] {
                continue;
            }
            asked += 1;
            present[page as usize] = true;
            let lot = nearby.asked(RegionId(0), PageIndex(page), BLOCK);
            let first = page / lot * lot;
            for other in first..(first + lot).min(pages) {
                along += u32::from(!std::mem::replace(&mut present[other as usize], true));
            }
        }
        (asked, along)
    }

    /// Eight blocks at a time, a group of each in turn.
    fn in_turn() -> impl Iterator<Item = u32> {
        (0..64).flat_map(|stretch| {
            (0..8 * BLOCK).map(move |n| stretch * 8 * BLOCK + n / 4 % 8 * BLOCK + n / 32 * 4 + n % 4)
        })
    }

    const IN_TURN: u32 = 64 * 8 * BLOCK;

    #[test]
    fn blocks_read_in_any_order_come_whole() {
        let (asked, along) = came_along(IN_TURN, in_turn());
        assert_eq!(asked + along, IN_TURN);
        assert!(asked < IN_TURN / 10, "{asked} of {IN_TURN} had to be asked for");
    }

    #[test]
    fn of_blocks_that_a_group_is_wanted_of_only_that_comes() {
        let wanted = IN_TURN / 8;
        let (asked, along) =
            came_along(IN_TURN, in_turn().filter(|page| page % BLOCK / GROUP == page / BLOCK % 8));
        assert!(asked + along < wanted * 11 / 10, "{asked} and {along} for {wanted}");
        assert!(asked < wanted / 2, "{asked} of {wanted} had to be asked for");
    }

    /// Blocks came whole, since something was wanted of each group.
    #[test]
    fn of_blocks_that_every_third_page_is_wanted_of_only_those_come() {
        let (asked, along) = came_along(IN_TURN, (0..IN_TURN).step_by(3));
        assert!(along * 20 <= asked, "{along} came along with {asked}");
    }

    #[test]
    fn pages_wanted_at_random_come_alone() {
        let pages = 128 * BLOCK;
        let mut state = 1u64;
        let order = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(state >> 33).unwrap() % pages
        });
        let (asked, along) = came_along(pages, order.take(pages as usize / 4));
        assert!(along <= asked / 20, "{along} came along with {asked}");
    }
}
