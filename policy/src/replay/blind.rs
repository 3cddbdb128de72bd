//! The default policy, driven as the engine drives it and seeing what it sees there.
//!
//! It is told that a page came back, since that takes a fault that is served. It isn't told that a page in memory was touched, nor of
//! pages that were there for the first time: the kernel gives those without asking. They are found by a look at the page table,
//! which the engine takes when memory is about to go out. And it moves whole blocks, down to a little under the limit, as the
//! limiter orders.

use super::Memory;
use crate::{Sampler, Victims};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

pub(super) struct Blind {
    victims: Victims,
    sight: Sight,
    resident: usize,
    /// More than this is ordered out ...
    most: usize,
    /// ... down to this.
    aim: usize,
}

/// What there is to see: the sampler of a trace.
struct Sight {
    /// Pages in memory, a bit each, of the blocks that have any. In order, as a page table is looked at.
    blocks: BTreeMap<u64, u64>,
    /// Pages that came back since the last order, of the blocks in their order.
    arrived: HashMap<u64, u64>,
    order: Vec<u64>,
    /// Pages touched in memory since then, if there is a kernel that tells.
    touched: Option<BTreeMap<u64, u64>>,
}

/// Pages of a block.
const BLOCK: u64 = 64;

impl Blind {
    /// With room for so many pages. If it is `told`, it sees as well which pages were touched between two orders.
    pub(super) fn new(room: usize, told: bool) -> Self {
        // As the limiter does where little comes in: it aims a 32nd below the limit, and half of that is slack.
        let (most, aim) = (room - room / 64, room - room / 32);
        let sight = Sight {
            blocks: BTreeMap::new(),
            arrived: HashMap::new(),
            order: Vec::new(),
            touched: told.then(BTreeMap::new),
        };
        Self { victims: Victims::new(), sight, resident: 0, most: most.max(1), aim: aim.max(1) }
    }

    fn evict(&mut self) {
        self.victims.hear(&mut self.sight);
        self.look(false);
        self.choose();
        if self.resident > self.aim {
            self.look(true);
            self.choose();
        }
    }

    fn look(&mut self, everywhere: bool) {
        match self.victims.look(&mut self.sight, everywhere) {
            Ok(()) => {}
        }
    }

    fn choose(&mut self) {
        for _ in 0..self.victims.len() {
            if self.resident <= self.aim {
                return;
            }
            let Some(victim) = self.victims.choose() else { return };
            let bits = self.sight.blocks.entry(victim.block).or_default();
            let moved = (*bits & victim.pages).count_ones();
            *bits &= !victim.pages;
            if *bits == 0 {
                self.sight.blocks.remove(&victim.block);
            }
            self.resident -= moved as usize;
            self.victims.left(victim, moved, 0);
        }
    }
}

impl Sampler for Sight {
    type Error = Infallible;

    fn arrivals(&mut self, tell: &mut dyn FnMut(u64, u64)) -> bool {
        for block in self.order.drain(..) {
            if let Some(pages) = self.arrived.remove(&block) {
                tell(block, pages);
            }
        }
        true
    }

    fn residents(
        &mut self,
        wanted: &dyn Fn(u64) -> bool,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Infallible> {
        self.blocks
            .iter()
            .filter(|(block, _)| wanted(**block))
            .for_each(|(block, pages)| tell(*block, *pages));
        Ok(())
    }

    fn uses(&mut self, tell: &mut dyn FnMut(u64, u64)) -> bool {
        let Some(touched) = &mut self.touched else { return false };
        std::mem::take(touched).into_iter().for_each(|(block, pages)| tell(block, pages));
        true
    }
}

impl Memory for Blind {
    fn touch(&mut self, page: u64, first: bool) -> bool {
        let (block, bit) = (page / BLOCK, 1 << (page % BLOCK));
        let pages = self.sight.blocks.entry(block).or_default();
        if *pages & bit != 0 {
            if let Some(touched) = &mut self.sight.touched {
                *touched.entry(block).or_default() |= bit;
            }
            return true;
        }
        *pages |= bit;
        self.resident += 1;
        if !first {
            let count = self.sight.arrived.entry(block).or_default();
            if *count == 0 {
                self.sight.order.push(block);
            }
            *count |= bit;
        }
        if self.resident > self.most {
            self.evict();
        }
        false
    }
}
