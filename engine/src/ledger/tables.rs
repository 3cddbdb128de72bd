//! Where page tables are in a ledger, and whose they are.

use super::map::Words;
use super::{Ledger, MOST_REGIONS, TABLES};
use crate::core::{PageTable, RegionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) const REGION_WORDS: usize = 4;

/// Page tables start at multiples of this, so that one's memory can be given back without its neighbours'.
const ALIGN: u64 = 4096;

/// What of the tables' memory is taken.
pub(super) struct Heap {
    /// Free ranges, start to end; never touching.
    free: BTreeMap<u64, u64>,
    /// Records below this were used.
    used: usize,
    vacant: Vec<u32>,
}

impl Heap {
    /// All of the range is free.
    pub(super) fn new((start, end): (u64, u64)) -> Self {
        Self { free: BTreeMap::from([(start, end)]), used: 0, vacant: Vec::new() }
    }

    fn take(&mut self, len: u64) -> Option<u64> {
        let (&start, &end) = self.free.iter().find(|(start, end)| **end - **start >= len)?;
        self.free.remove(&start);
        if start + len < end {
            self.free.insert(start + len, end);
        }
        Some(start)
    }

    /// Takes a range that is known to be in use.
    fn claim(&mut self, start: u64, len: u64) -> bool {
        let end = start + len;
        let Some((&from, &to)) = self.free.range(..=start).next_back() else { return false };
        if to < end {
            return false;
        }
        self.free.remove(&from);
        if from < start {
            self.free.insert(from, start);
        }
        if end < to {
            self.free.insert(end, to);
        }
        true
    }

    fn give(&mut self, start: u64, len: u64) {
        let (mut from, mut to) = (start, start + len);
        if let Some((&before, &end)) = self.free.range(..from).next_back()
            && end == from
        {
            from = before;
        }
        if let Some(end) = self.free.remove(&to) {
            to = end;
        }
        self.free.insert(from, to);
    }

    fn index(&mut self) -> Option<u32> {
        if let Some(vacant) = self.vacant.pop() {
            return Some(vacant);
        }
        let index = u32::try_from(self.used).ok().filter(|_| self.used < MOST_REGIONS)?;
        self.used += 1;
        Some(index)
    }
}

/// A region's place in a ledger. Given up when the last who knows the region drops it.
#[derive(Debug)]
pub(crate) struct Home {
    ledger: Arc<Ledger>,
    index: u32,
}

impl Home {
    /// Its number among the regions of its ledger.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.ledger.drop_region(self.index);
    }
}

/// What is written down of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionRecord {
    pub(crate) id: RegionId,
    pub(crate) pages: u32,
    /// What a page's number in the region is added to for its key in the store.
    pub(crate) key_base: u64,
    table: u64,
}

fn table_len(pages: u32) -> u64 {
    (u64::from(pages) * 12).next_multiple_of(ALIGN)
}

impl Ledger {
    /// A place for a new region and its page table, all absent.
    pub(crate) fn new_table(self: &Arc<Self>, id: RegionId, pages: u32, key_base: u64) -> PageTable {
        let taken = {
            let mut heap = self.heap.lock();
            heap.take(table_len(pages)).and_then(|table| Some((table, heap.index()?)))
        };
        let Some((table, index)) = taken else {
            self.overflow("more page tables than there is room for");
            return PageTable::new(pages);
        };
        let words = self.region_words(index);
        words[1].store(key_base, Ordering::Release);
        words[2].store(table, Ordering::Release);
        // A region that has none is never empty.
        words[0].store(u64::from(pages) << 32 | u64::from(id.0), Ordering::Release);
        self.table(index, pages, table)
    }

    /// The region with this number, and its page table as it stands. To be called once for each, by a successor.
    pub(crate) fn found_region(self: &Arc<Self>, index: u32) -> Option<(RegionRecord, PageTable)> {
        let record = self.region(index)?;
        Some((record, self.table(index, record.pages, record.table)))
    }

    fn table(self: &Arc<Self>, index: u32, pages: u32, table: u64) -> PageTable {
        let at = usize::try_from(table).unwrap_or(TABLES);
        // The larger words first, so that both lie where they should.
        let value: Words<AtomicU64> = self.map.words(at, pages as usize);
        let meta: Words<AtomicU32> = self.map.words(at + pages as usize * 8, pages as usize);
        PageTable::over(meta, value, Home { ledger: Arc::clone(self), index })
    }

    fn region(&self, index: u32) -> Option<RegionRecord> {
        if index as usize >= MOST_REGIONS {
            return None;
        }
        let words = self.region_words(index);
        let word = |at: usize| words[at].load(Ordering::Acquire);
        let pages = u32::try_from(word(0) >> 32).ok().filter(|pages| *pages > 0)?;
        let id = RegionId(u32::try_from(word(0) & u64::from(u32::MAX)).ok()?);
        Some(RegionRecord { id, pages, key_base: word(1), table: word(2) })
    }

    fn drop_region(&self, index: u32) {
        let Some(record) = self.region(index) else { return };
        self.region_words(index)[0].store(0, Ordering::Release);
        // A table that isn't zero can't be used again.
        if self.map.punch(record.table, table_len(record.pages)).is_ok() {
            let mut heap = self.heap.lock();
            heap.give(record.table, table_len(record.pages));
            heap.vacant.push(index);
        }
    }

    fn region_words(&self, index: u32) -> &[AtomicU64] {
        &self.regions[index as usize * REGION_WORDS..][..REGION_WORDS]
    }

    /// What of the tables' memory is taken, as the records say. Records end at the first stretch that was never used.
    pub(super) fn found_heap(&self) -> Heap {
        let mut heap = Heap::new((TABLES as u64, super::LEN as u64));
        let mut unused = 0;
        for index in 0..u32::try_from(MOST_REGIONS).unwrap_or(u32::MAX) {
            if self.region_words(index)[2].load(Ordering::Relaxed) == 0 {
                unused += 1;
                if unused > 64 {
                    break;
                }
                continue;
            }
            unused = 0;
            heap.used = index as usize + 1;
            match self.region(index) {
                Some(record) => {
                    if !heap.claim(record.table, table_len(record.pages)) {
                        self.overflow("page tables that overlap");
                    }
                }
                None => heap.vacant.push(index),
            }
        }
        // What was given up in the middle may not be zero.
        for (&start, &end) in &heap.free {
            if self.map.punch(start, end - start).is_err() {
                self.overflow("memory that can't be given back");
            }
        }
        heap
    }

    /// The numbers of all regions there are.
    pub(crate) fn found_regions(&self) -> Vec<u32> {
        let used = self.heap.lock().used;
        (0..u32::try_from(used).unwrap_or(0)).filter(|index| self.region(*index).is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Generation, PageIndex, PageState};
    use crate::ledger::Roster;
    use std::os::fd::AsFd;

    #[test]
    fn a_table_is_found_as_it_was_left_and_its_place_used_again() {
        let ledger = Ledger::create(&Roster::create().unwrap()).unwrap();
        let mut first = ledger.new_table(RegionId(7), 1000, 55);
        let mut second = ledger.new_table(RegionId(8), 1, 66);
        first.set_state(PageIndex(999), PageState::Resident);
        second.set_state(PageIndex(0), PageState::Zero);
        second.set_generation(PageIndex(0), Generation::from_count(9));
        let found = Ledger::adopt(ledger.as_fd().try_clone_to_owned().unwrap(), ledger.roster()).unwrap();
        assert_eq!(found.found_regions(), [0, 1]);
        let (record, table) = found.found_region(1).unwrap();
        assert_eq!((record.id, record.pages, record.key_base), (RegionId(8), 1, 66));
        assert_eq!((table.state(PageIndex(0)), table.generation(PageIndex(0)).get()), (PageState::Zero, 9));
        // One that isn't taken up goes, one that is made lies where there is room and is empty.
        drop(table);
        let next = found.new_table(RegionId(9), 2, 0);
        assert_eq!(next.state(PageIndex(0)), PageState::Absent);
        assert_eq!(found.found_region(0).unwrap().1.state(PageIndex(999)), PageState::Resident);
        std::mem::forget((first, second));
    }

    #[test]
    fn ranges_given_back_grow_together() {
        let mut heap = Heap::new((0, 64));
        let taken: Vec<u64> = (0..4).map(|_| heap.take(16).unwrap()).collect();
        assert_eq!(heap.take(1), None);
        for start in [taken[1], taken[3], taken[2], taken[0]] {
            heap.give(start, 16);
        }
        assert_eq!(heap.free, BTreeMap::from([(0, 64)]));
        assert!(heap.claim(16, 16) && !heap.claim(24, 4));
        assert_eq!(heap.free, BTreeMap::from([(0, 16), (32, 64)]));
    }
}
