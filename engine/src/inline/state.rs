//! What is known of an inline region and changes: everything that is under its lock.

use super::memory::Frames;
use crate::core::{Lost, PageIndex, Shard, SlotPage};
use userswap_policy::strides::Strides;
use userswap_store::Handle;

/// What the region's lock guards. None of its lists ever grows beyond the room it was made with.
pub(crate) struct State {
    pub(crate) shard: Shard,
    pub(super) strides: Strides,
    /// Kits nobody uses.
    pub(super) kits: Vec<u32>,
    pub(super) slots: Vec<Standing>,
    /// Slots with nothing in them.
    pub(super) free: Vec<u32>,
    /// Slots that nobody stands in any more and whose frames can be used for pages that come in.
    pub(super) stock: Vec<Frames>,
    /// Frames in the stock.
    pub(super) stocked: u32,
    /// Slots that nobody stands in any more, to be emptied.
    pub(super) drained: Vec<u32>,
    /// Objects of pages that came back, for the helper to free.
    pub(super) freed: Vec<Handle>,
    /// Pages the helper is to bring back.
    pub(super) wanted: Vec<PageIndex>,
    /// Where a stream goes on: the helper brings it in meanwhile.
    pub(super) ahead: Option<PageIndex>,
    /// Installs that were decided on and aren't recorded yet.
    pub(super) installs: u32,
    /// Nothing may be installed: pages are being dropped.
    pub(super) barred: bool,
    /// Pages in memory, as far as we know.
    pub(super) resident: u64,
    pub(super) generation: u32,
    /// Frames the stock may have.
    pub(super) most_stocked: u32,
    /// Fetches that failed.
    pub(super) errors: u64,
    /// Pages that are lost.
    pub(super) poisoned: u64,
}

/// Who stands in a slot.
#[derive(Clone, Copy, Default)]
pub(super) struct Standing {
    /// The page at offset 0; the others follow.
    pub(super) first: u32,
    /// How many moved there.
    pub(super) pages: u32,
    /// How many are there still.
    pub(super) count: u32,
}

/// Objects that may wait to be freed.
pub(super) const FREED: usize = 8192;
/// Pages that may wait for the helper.
pub(super) const WANTED: usize = 64;

impl State {
    pub(super) fn new(shard: Shard, kits: u32, slots: u32, most_stocked: u32) -> Self {
        Self {
            shard,
            strides: Strides::new(),
            kits: (0..kits).collect(),
            slots: vec![Standing::default(); slots as usize],
            free: (0..slots).rev().collect(),
            stock: Vec::with_capacity(slots as usize),
            stocked: 0,
            drained: Vec::with_capacity(slots as usize),
            freed: Vec::with_capacity(FREED),
            wanted: Vec::with_capacity(WANTED),
            ahead: None,
            installs: 0,
            barred: false,
            resident: 0,
            generation: 0,
            most_stocked,
            errors: 0,
            poisoned: 0,
        }
    }

    /// Whether another flight of `pages` pages may end without anything being freed first.
    pub(super) fn has_room_for(&self, pages: u32) -> bool {
        self.freed.len() + self.kits.capacity() * pages as usize <= FREED
    }

    /// Gives up claims that ended.
    pub(super) fn settle(&mut self, lost: &mut Lost) {
        for (handle, _) in lost.handles.drain(..) {
            self.freed.push(handle);
        }
        for page in lost.slots.drain(..) {
            self.leave(page, 1);
        }
    }

    /// `count` pages left a slot.
    pub(super) fn leave(&mut self, page: SlotPage, count: u32) {
        let Some(standing) = self.slots.get_mut(page.slot.0 as usize) else { return };
        standing.count = standing.count.saturating_sub(count);
        if standing.count > 0 {
            return;
        }
        if self.stocked + standing.pages <= self.most_stocked {
            self.stocked += standing.pages;
            self.stock.push(Frames { slot: page.slot.0, next: 0, end: standing.pages });
        } else {
            self.drained.push(page.slot.0);
        }
    }

    /// Frames that pages left behind, a page of them at least.
    pub(super) fn take_stock(&mut self) -> Option<Frames> {
        let frames = self.stock.pop()?;
        self.stocked -= frames.end - frames.next;
        Some(frames)
    }

    /// Gives back what is left of frames. `whole`: from the first to the last they are there.
    pub(super) fn give_frames(&mut self, frames: Frames, whole: bool) {
        let left = frames.end - frames.next;
        if !whole {
            self.drained.push(frames.slot);
        } else if left == 0 {
            self.free.push(frames.slot);
        } else {
            self.stocked += left;
            self.stock.push(frames);
        }
    }
}
