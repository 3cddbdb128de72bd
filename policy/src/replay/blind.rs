//! The default policy, driven as the engine drives it and seeing what it sees there.
//!
//! It is told that a page came back, since that takes a fault that is served. It isn't told that a page in memory was touched, nor of
//! pages that were there for the first time: the kernel gives those without asking. They are found by a look at the page table,
//! which the engine takes when memory is about to go out. And it moves whole blocks, down to a little under the limit, as the
//! limiter orders.

use super::Memory;
use crate::Victims;
use std::collections::{BTreeMap, HashMap};

pub(super) struct Blind {
    victims: Victims,
    /// Pages in memory, a bit each, of the blocks that have any. In order, as a page table is looked at.
    blocks: BTreeMap<u64, u64>,
    resident: usize,
    /// More than this is ordered out ...
    most: usize,
    /// ... down to this.
    aim: usize,
    /// Pages that came back since the last order.
    arrived: HashMap<u64, u64>,
    order: Vec<u64>,
}

/// Pages of a block.
const BLOCK: u64 = 64;

impl Blind {
    pub(super) fn new(room: usize) -> Self {
        // As the limiter does where little comes in: it aims a 32nd below the limit, and half of that is slack.
        let (most, aim) = (room - room / 64, room - room / 32);
        Self {
            victims: Victims::new(),
            blocks: BTreeMap::new(),
            resident: 0,
            most: most.max(1),
            aim: aim.max(1),
            arrived: HashMap::new(),
            order: Vec::new(),
        }
    }

    fn evict(&mut self) {
        for block in self.order.drain(..) {
            if let Some(pages) = self.arrived.remove(&block) {
                self.victims.arrived(block, pages);
            }
        }
        self.look(false);
        self.choose();
        if self.resident > self.aim {
            self.look(true);
            self.choose();
        }
    }

    fn look(&mut self, everywhere: bool) {
        for (block, pages) in &self.blocks {
            let known = if everywhere { false } else { self.victims.is_known(*block) };
            if !known {
                self.victims.found(*block, *pages);
            }
        }
    }

    fn choose(&mut self) {
        for _ in 0..self.victims.len() {
            if self.resident <= self.aim {
                return;
            }
            let Some(victim) = self.victims.choose() else { return };
            let bits = self.blocks.entry(victim.block).or_default();
            let moved = (*bits & victim.pages).count_ones();
            *bits &= !victim.pages;
            if *bits == 0 {
                self.blocks.remove(&victim.block);
            }
            self.resident -= moved as usize;
            self.victims.left(victim, moved, 0);
        }
    }
}

impl Memory for Blind {
    fn touch(&mut self, page: u64, first: bool) -> bool {
        let (block, bit) = (page / BLOCK, 1 << (page % BLOCK));
        let pages = self.blocks.entry(block).or_default();
        if *pages & bit != 0 {
            return true;
        }
        *pages |= bit;
        self.resident += 1;
        if !first {
            let count = self.arrived.entry(block).or_default();
            if *count == 0 {
                self.order.push(block);
            }
            *count |= bit;
        }
        if self.resident > self.most {
            self.evict();
        }
        false
    }
}
