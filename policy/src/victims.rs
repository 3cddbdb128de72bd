//! Which memory goes out next, from what is seen without the kernel's help: when something came in, and how soon after it had
//! gone.
//!
//! Memory is looked at in blocks of 64 neighbouring pages, and goes out in as large a part of a block as there is. Pages in memory
//! stand in one of two queues, as in S3-FIFO, those of a block together: what comes in joins the short one, from whose other end pages
//! go out while it is longer than its share. So what is read once, or in a circle larger than memory, passes through the short queue and
//! leaves what stands in the long one alone. What comes back soon after it went joins the long one.
//!
//! Whether a page in memory is being used can't be seen. A block that is, and goes out all the same, is back at once: it is passed
//! over when its turn comes again, for more rounds each time that happens. And of a block that was never out one page goes first: if it
//! comes back before the block's next turn, the others are probably used as well.

mod block;

use block::{Block, Part, Place, Trial, one};
use std::collections::{HashMap, HashSet, VecDeque};

/// Chooses among the blocks of one address space. Sets of pages are of one block, a bit each, the lowest for the first.
#[derive(Clone, Debug, Default)]
pub struct Victims {
    blocks: HashMap<u64, Block>,
    short: Queue,
    long: Queue,
    /// Pages that went out so far: what the time since is told in.
    clock: u64,
    /// What came back after a while, to choose every so many.
    returned: u32,
    /// What came in and wasn't known to have been out lately, likewise.
    fresh: u32,
    /// Blocks tried since one went out.
    tried: u32,
    /// The last turn given.
    turn: u32,
}

/// What is to go out now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// The block.
    pub block: u64,
    /// Which of its pages, as far as they are there.
    pub pages: u64,
    /// How many of them are known to be.
    pub known: u32,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    /// Blocks in turn, with the number that tells a turn that is still good from one that isn't.
    turns: VecDeque<(u64, u32)>,
    pages: u64,
}

/// The short queue's share of all pages in memory.
const SHORT: u64 = 20;

/// One of so many that come back after a while joins the long queue. In a circle little larger than memory all of them
/// come back; were all let in, each would have to go out before its turn in the circle.
const LET_IN: u32 = 8;

/// One of so many that came from nowhere joins the long queue, so that what is used no more leaves it in the end.
const RENEWED: u32 = 32;

/// Back within this share of memory: being used.
const SOON: u64 = 8;

/// Rounds that a block is passed over at most.
const MOST_PASSES: u32 = 16;

/// Rounds that a block which was used when it was tried is passed over by who isn't in need.
const SPARED: u32 = MOST_PASSES / 4;

/// Blocks tried for one that goes, at most: whoever waits for memory shouldn't wait for all of it to be tried. So many cost as many faults where all are used; one
/// that goes untried may cost 64.
const TRIALS: u32 = 16;

/// What is chosen for somebody who isn't in need, so far.
#[derive(Clone, Debug)]
pub struct Cold {
    /// Turns still to be had.
    turns: usize,
    /// Blocks that were tried, or passed over.
    had: HashSet<u64>,
}

impl Victims {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a block is known to have pages in memory.
    pub fn is_in(&self, block: u64) -> bool {
        self.blocks.get(&block).is_some_and(|block| block.pages() != 0)
    }

    /// Whether anything was ever seen of a block that may have come back since.
    pub fn is_known(&self, block: u64) -> bool {
        self.blocks.contains_key(&block)
    }

    /// Blocks of which anything is remembered, be it in memory or not.
    pub fn known(&self) -> usize {
        self.blocks.len()
    }

    /// Forgets the blocks that aren't wanted: they are mapped no more, or not in care.
    pub fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        let (short, long) = (&mut self.short, &mut self.long);
        self.blocks.retain(|name, block| {
            let stays = wanted(*name);
            if !stays {
                short.pages -= u64::from(block.short.pages.count_ones());
                long.pages -= u64::from(block.long.pages.count_ones());
            }
            stays
        });
        short.turns.retain(|(name, _)| self.blocks.contains_key(name));
        long.turns.retain(|(name, _)| self.blocks.contains_key(name));
    }

    /// Turns to be had, at least one for each block with pages in memory.
    pub fn len(&self) -> usize {
        self.short.turns.len() + self.long.turns.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages in memory, as far as known.
    pub fn pages(&self) -> u64 {
        self.short.pages + self.long.pages
    }

    /// These pages of a block were found in memory, whether or not somebody had told of them.
    pub fn found(&mut self, block: u64, pages: u64) {
        let new = pages & !self.blocks.get(&block).map_or(0, Block::pages);
        if new == 0 {
            return;
        }
        // What is there at the start fills the long queue, and what grows beside it passes by.
        let more = u64::from(new.count_ones());
        let room = self.short.pages * SHORT >= self.pages() + more || self.pages() == 0;
        let beside = self.blocks.get(&block).filter(|block| block.pages() != 0);
        let long = beside.map_or(room, |block| block.long.pages != 0);
        self.join(block, if long { Place::Long } else { Place::Short }, new);
    }

    /// These pages of a block came in.
    pub fn arrived(&mut self, block: u64, pages: u64) {
        let known = self.blocks.entry(block).or_default();
        let new = pages & !known.pages();
        if new == 0 {
            return;
        }
        if known.trial == Trial::Out {
            known.trial = Trial::Used;
        }
        let (left, before) = (known.left, known.before);
        for (part, left) in [(new & known.last, left), (new & !known.last, before)] {
            if part != 0 {
                self.came_back(block, part, left);
            }
        }
    }

    fn came_back(&mut self, name: u64, pages: u64, left: u64) {
        let (away, all) = (self.clock - left, self.pages());
        let Some(block) = self.blocks.get_mut(&name) else { return };
        if left != 0 && away < all / SOON {
            if block.long.pages == 0 {
                block.earned = (block.earned * 2).clamp(1, MOST_PASSES);
                block.passes = block.earned;
            }
            self.join(name, Place::Long, pages);
            return;
        }
        if block.pages() == 0 {
            block.earned = 0;
        }
        let place = if left == 0 {
            Place::Short
        } else {
            let (counter, one_of) =
                if away < all { (&mut self.returned, LET_IN) } else { (&mut self.fresh, RENEWED) };
            *counter = (*counter + 1) % one_of;
            if *counter == 0 { Place::Long } else { Place::Short }
        };
        self.join(name, place, pages);
    }

    /// What has its turn to go out; [`left`](Self::left) follows.
    pub fn choose(&mut self) -> Option<Victim> {
        self.choose_as(None)
    }

    /// Begins to choose for somebody who isn't in need.
    pub fn cold(&self) -> Cold {
        Cold { turns: self.len() * 2, had: HashSet::new() }
    }

    /// As [`choose`](Self::choose), for somebody who isn't in need. What was never out is always tried first, and goes another time. What is to be passed over
    /// is passed over once, however often one goes round.
    pub fn choose_cold(&mut self, cold: &mut Cold) -> Option<Victim> {
        self.choose_as(Some(cold))
    }

    fn choose_as(&mut self, mut cold: Option<&mut Cold>) -> Option<Victim> {
        loop {
            let mut short_first = self.short.pages * SHORT > self.pages();
            if let Some(cold) = &mut cold {
                cold.turns = cold.turns.checked_sub(1)?;
                // By turns: one of the queues alone may have nothing but what was just tried.
                short_first = cold.turns % 2 == 1;
            }
            let order = if short_first { [Place::Short, Place::Long] } else { [Place::Long, Place::Short] };
            let (place, (name, turn)) =
                order.into_iter().find_map(|place| Some((place, self.queue(place).turns.pop_front()?)))?;
            let Some(block) = self.blocks.get_mut(&name) else { continue };
            let part = *block.part(place);
            if part.turn != turn || part.pages == 0 {
                continue;
            }
            if let Some(cold) = &cold
                && cold.had.contains(&name)
            {
                self.queue(place).turns.push_back((name, turn));
                continue;
            }
            if place == Place::Long && block.passes > 0 {
                block.passes -= 1;
                if let Some(cold) = &mut cold {
                    cold.had.insert(name);
                }
                self.long.turns.push_back((name, turn));
                continue;
            }
            match block.trial {
                Trial::None if block.left == 0 && (cold.is_some() || self.tried < TRIALS) => {
                    match &mut cold {
                        Some(cold) => drop(cold.had.insert(name)),
                        None => self.tried += 1,
                    }
                    block.trial = Trial::Out;
                    let pages = one(part.pages, self.clock);
                    self.queue(place).turns.push_back((name, turn));
                    return Some(Victim { block: name, pages, known: 1 });
                }
                Trial::Used => {
                    block.trial = Trial::Over;
                    if let Some(cold) = &mut cold {
                        cold.had.insert(name);
                        (block.earned, block.passes) = (SPARED, SPARED);
                    }
                    let pages = std::mem::take(&mut block.short.pages);
                    self.short.pages -= u64::from(pages.count_ones());
                    self.join(name, Place::Long, pages);
                    if place == Place::Long {
                        self.long.turns.push_back((name, turn));
                    }
                }
                _ => {
                    self.tried = 0;
                    // Also what nobody told of, beside the long queue's.
                    let pages = if place == Place::Long { !block.short.pages } else { part.pages };
                    return Some(Victim { block: name, pages, known: part.pages.count_ones() });
                }
            }
        }
    }

    /// What goes out next where all of it is to, whether or not it is used; [`left`](Self::left) follows.
    pub fn choose_any(&mut self) -> Option<Victim> {
        loop {
            let (place, (name, turn)) = [Place::Short, Place::Long]
                .into_iter()
                .find_map(|place| Some((place, self.queue(place).turns.pop_front()?)))?;
            let Some(block) = self.blocks.get_mut(&name) else { continue };
            let part = *block.part(place);
            if part.turn == turn && part.pages != 0 {
                let pages = block.pages();
                return Some(Victim { block: name, pages, known: pages.count_ones() });
            }
        }
    }

    /// The chosen pages went out, all but `remain`; so many `moved`.
    pub fn left(&mut self, victim: Victim, moved: u32, remain: u64) {
        self.clock += u64::from(moved);
        let Some(block) = self.blocks.get_mut(&victim.block) else { return };
        let took = |part: &mut Part, queue: &mut Queue| {
            queue.pages -= u64::from((part.pages & victim.pages).count_ones());
            part.pages &= !victim.pages;
        };
        took(&mut block.short, &mut self.short);
        took(&mut block.long, &mut self.long);
        if moved > 0 {
            block.before = block.before.max(block.left);
            block.last = victim.pages;
            block.left = self.clock;
        }
        if remain != 0 {
            block.passes = 1;
            self.join(victim.block, Place::Long, remain);
        } else if moved == 0 && block.pages() == 0 {
            // Nothing was there: it isn't mapped any more, or its owner threw it away.
            self.blocks.remove(&victim.block);
        }
    }

    fn join(&mut self, name: u64, place: Place, pages: u64) {
        if pages == 0 {
            return;
        }
        let block = self.blocks.entry(name).or_default();
        let queue = if place == Place::Short { &mut self.short } else { &mut self.long };
        let part = block.part(place);
        if part.pages == 0 {
            self.turn = self.turn.wrapping_add(1);
            part.turn = self.turn;
            queue.turns.push_back((name, part.turn));
        }
        part.pages |= pages;
        queue.pages += u64::from(pages.count_ones());
    }

    fn queue(&mut self, place: Place) -> &mut Queue {
        if place == Place::Short { &mut self.short } else { &mut self.long }
    }
}

#[cfg(test)]
mod tests;
