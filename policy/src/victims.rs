//! Which memory goes out next, from what is seen without the kernel's help: when something came in, and how soon after it had
//! gone.
//!
//! Memory is looked at in blocks of neighbouring pages. Those that are in memory stand in one of two queues, as in S3-FIFO: what
//! comes in joins the short one, from whose other end blocks go out while it is longer than its share. So what is read once, or
//! in a circle larger than memory, passes through the short queue and leaves what stands in the long one alone. What comes back
//! soon after it went joins the long one.
//!
//! Whether a block in memory is being used can't be seen. One that is, and goes out all the same, is back at once: it is passed
//! over when its turn comes again, for more rounds each time that happens.

use std::collections::{HashMap, VecDeque};

/// Chooses among the blocks of one address space.
#[derive(Clone, Debug, Default)]
pub struct Victims {
    blocks: HashMap<u64, Block>,
    short: Queue,
    long: Queue,
    /// Pages that went out so far: what the time since is told in.
    clock: u64,
    /// Blocks that came back, to choose every so many of them.
    returned: u32,
    /// Blocks that came in and weren't known to have been out lately, likewise.
    fresh: u32,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    /// Their turns, with the number that tells a turn that is still good from one that isn't.
    turns: VecDeque<(u64, u32)>,
    pages: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    place: Place,
    /// In memory.
    pages: u32,
    /// Rounds it is passed over.
    passes: u32,
    /// What `passes` was set to last.
    earned: u32,
    /// When it went out, by the clock.
    left: u64,
    turn: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Out,
    Short,
    Long,
}

/// The short queue's share of all pages in memory.
const SHORT: u64 = 10;

/// One of so many blocks that come back after a while joins the long queue. In a circle little larger than memory all of them
/// come back; were all let in, each would have to go out before its turn in the circle.
const LET_IN: u32 = 4;

/// One of so many blocks that came from nowhere joins the long queue, so that what is used no more leaves it in the end.
const RENEWED: u32 = 32;

/// Back within this share of memory: being used.
const SOON: u64 = 8;

/// Rounds that a block is passed over at most.
const MOST_PASSES: u32 = 16;

impl Victims {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a block is known to have pages in memory.
    pub fn is_in(&self, block: u64) -> bool {
        self.blocks.get(&block).is_some_and(|block| block.place != Place::Out)
    }

    /// Whether anything was ever seen of a block that may have come back since.
    pub fn is_known(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    /// Blocks with pages in memory, as far as known, or a few more.
    pub fn len(&self) -> usize {
        self.short.turns.len() + self.long.turns.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages in memory, as far as known.
    pub fn pages(&self) -> u64 {
        self.short.pages + self.long.pages
    }

    /// So many pages of a block were found in memory that nobody had told of.
    pub fn found(&mut self, block: u64, pages: u32) {
        if pages == 0 {
            return;
        }
        if self.is_in(block) {
            self.count(block, pages);
            return;
        }
        // What is there at the start fills the long queue, and what grows beside it passes by.
        let place = if self.short.pages * SHORT >= self.pages() + u64::from(pages) || self.pages() == 0 {
            Place::Long
        } else {
            Place::Short
        };
        self.join(block, place, pages, 0);
    }

    /// So many pages of a block came in.
    pub fn arrived(&mut self, block: u64, pages: u32) {
        if self.is_in(block) {
            let had = self.blocks.get(&block).map_or(0, |block| block.pages);
            self.count(block, had + pages);
            return;
        }
        let Some(was) = self.blocks.get(&block).copied() else {
            self.join(block, Place::Short, pages, 0);
            return;
        };
        let away = self.clock - was.left;
        if away < self.pages() / SOON {
            let passes = (was.earned * 2).clamp(1, MOST_PASSES);
            self.join(block, Place::Long, pages, passes);
            return;
        }
        let (counter, one_of) =
            if away < self.pages() { (&mut self.returned, LET_IN) } else { (&mut self.fresh, RENEWED) };
        *counter = (*counter + 1) % one_of;
        let place = if *counter == 0 { Place::Long } else { Place::Short };
        self.join(block, place, pages, 0);
    }

    /// The block whose turn it is to go out; [`left`](Self::left) follows.
    pub fn choose(&mut self) -> Option<u64> {
        loop {
            let short_first = self.short.pages * SHORT > self.pages();
            let (first, second) = if short_first {
                (&mut self.short, &mut self.long)
            } else {
                (&mut self.long, &mut self.short)
            };
            let (name, turn) = first.turns.pop_front().or_else(|| second.turns.pop_front())?;
            let Some(block) = self.blocks.get_mut(&name) else { continue };
            if block.turn != turn || block.place == Place::Out {
                continue;
            }
            if block.passes == 0 {
                return Some(name);
            }
            block.passes -= 1;
            self.long.turns.push_back((name, turn));
        }
    }

    /// The block went out, all but `remain` of its pages.
    pub fn left(&mut self, block: u64, moved: u32, remain: u32) {
        self.clock += u64::from(moved);
        self.take_out(block);
        if let Some(known) = self.blocks.get_mut(&block) {
            known.left = self.clock;
        }
        if remain > 0 {
            self.join(block, Place::Long, remain, 1);
        } else if moved == 0 {
            // Nothing was there: it isn't mapped any more, or its owner threw it away.
            self.blocks.remove(&block);
        }
    }

    fn take_out(&mut self, name: u64) {
        if let Some(block) = self.blocks.get_mut(&name) {
            match block.place {
                Place::Short => self.short.pages -= u64::from(block.pages),
                Place::Long => self.long.pages -= u64::from(block.pages),
                Place::Out => {}
            }
            block.place = Place::Out;
            block.pages = 0;
        }
    }

    fn join(&mut self, name: u64, place: Place, pages: u32, passes: u32) {
        let known = self.blocks.entry(name).or_insert(Block {
            place: Place::Out,
            pages: 0,
            passes: 0,
            earned: 0,
            left: 0,
            turn: 0,
        });
        *known = Block { place, pages, passes, earned: passes, left: known.left, turn: known.turn + 1 };
        let turn = (name, known.turn);
        let queue = if place == Place::Short { &mut self.short } else { &mut self.long };
        queue.turns.push_back(turn);
        queue.pages += u64::from(pages);
    }

    fn count(&mut self, name: u64, pages: u32) {
        if let Some(block) = self.blocks.get_mut(&name) {
            let queue = if block.place == Place::Short { &mut self.short } else { &mut self.long };
            queue.pages = queue.pages - u64::from(block.pages) + u64::from(pages);
            block.pages = pages;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PAGES: u32 = 64;

    /// Memory that holds so many blocks, and what was asked for in vain.
    struct Memory {
        victims: Victims,
        present: HashSet<u64>,
        room: usize,
        misses: u32,
    }

    impl Memory {
        fn new(room: usize) -> Self {
            Self { victims: Victims::new(), present: HashSet::new(), room, misses: 0 }
        }

        fn touch(&mut self, block: u64) {
            if !self.present.insert(block) {
                return;
            }
            self.misses += 1;
            self.victims.arrived(block, PAGES);
            while self.present.len() > self.room {
                let victim = self.victims.choose().unwrap();
                assert!(self.present.remove(&victim));
                self.victims.left(victim, PAGES, 0);
            }
        }

        fn misses(&mut self, touches: impl Iterator<Item = u64>) -> u32 {
            let before = self.misses;
            touches.for_each(|block| self.touch(block));
            self.misses - before
        }
    }

    fn circles(of: u64, count: u64) -> impl Iterator<Item = u64> {
        (0..of * count).map(move |n| n % of)
    }

    #[test]
    fn in_a_circle_larger_than_memory_a_part_stays() {
        // Whoever throws out what came in first, or was touched longest ago, misses every time; the least there can be is 34, 51 and 81%.
        for (blocks, most) in [(150, 55), (200, 65), (500, 86)] {
            let mut memory = Memory::new(100);
            memory.misses(circles(blocks, 5));
            let missed = memory.misses(circles(blocks, 20));
            let share = missed * 100 / u32::try_from(blocks * 20).unwrap();
            assert!(share <= most, "{share}% of a circle of {blocks}");
        }
    }

    #[test]
    fn what_is_used_again_and_again_survives_what_is_read_once() {
        let mut memory = Memory::new(100);
        let mut hot_misses = 0;
        for round in 0..200u64 {
            // 40 blocks used in each round, beside 60 that are never used again.
            let before = memory.misses;
            (0..40).for_each(|block| memory.touch(block));
            if round >= 50 {
                hot_misses += memory.misses - before;
            }
            (0..60).for_each(|n| memory.touch(1000 + round * 60 + n));
        }
        // First in, first out would miss all 6,000 of them.
        assert!(hot_misses < 1500, "{hot_misses}");
    }

    #[test]
    fn what_is_used_no_more_makes_room() {
        let mut memory = Memory::new(100);
        memory.misses(circles(90, 20));
        memory.misses((1000..1090).cycle().take(90 * 20));
        let missed = memory.misses((1000..1090).cycle().take(90 * 10));
        assert!(missed < 90, "{missed} of 900");
    }

    #[test]
    fn what_cant_move_or_is_gone_has_its_turn_once() {
        let mut victims = Victims::new();
        victims.found(1, PAGES);
        victims.found(2, PAGES);
        assert_eq!((victims.pages(), victims.len()), (128, 2));
        assert_eq!(victims.choose(), Some(2));
        victims.left(2, 60, 4);
        assert!(victims.is_in(2) && victims.pages() == 68);
        assert_eq!(victims.choose(), Some(1));
        victims.left(1, 0, 0);
        assert!(!victims.is_known(1));
        assert_eq!(victims.choose(), Some(2));
        victims.left(2, 4, 0);
        assert_eq!((victims.choose(), victims.pages()), (None, 0));
        // More of one that is in already changes nothing but the count.
        victims.arrived(1, 3);
        victims.arrived(1, 5);
        victims.found(1, 7);
        assert_eq!((victims.pages(), victims.len()), (7, 1));
    }
}
