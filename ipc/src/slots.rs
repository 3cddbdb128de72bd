//! The swap area, cut into slots.

use userswap_uffd::Span;

/// A region-sized piece of a swap area: where a moved region stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(Span);

impl Slot {
    /// Where it is in the client.
    pub fn span(self) -> Span {
        self.0
    }
}

/// The free slots of one client's swap area. The one given back last is taken first: it is the likeliest to be in a cache.
#[derive(Clone, Debug)]
pub struct SlotStack {
    area: Span,
    slot_len: u64,
    free: Vec<Slot>,
    /// By the slot's number.
    is_free: Vec<bool>,
}

impl SlotStack {
    /// Cuts `area` into slots of `slot_len` bytes (whole pages). What is left at its end, less than a slot, is not used.
    /// `None` if `slot_len` is no such number.
    pub fn new(area: Span, slot_len: u64) -> Option<Self> {
        let total = usize::try_from(area.len().checked_div(slot_len)?).ok()?;
        // Shows that the length is whole pages also when there is no slot at all.
        Span::new(area.start(), slot_len).ok()?;
        // The lowest slot on top.
        let free: Vec<Slot> = (0..total as u64)
            .rev()
            .map(|index| Span::new(area.start() + index * slot_len, slot_len).map(Slot))
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Self { area, slot_len, free, is_free: vec![true; total] })
    }

    /// Takes a free slot.
    pub fn pop(&mut self) -> Option<Slot> {
        let slot = self.free.pop()?;
        *self.state(slot)? = false;
        Some(slot)
    }

    /// Gives one back. `false`, and nothing is done, if it isn't of this area or is free already.
    pub fn push(&mut self, slot: Slot) -> bool {
        match self.state(slot) {
            Some(is_free) if !*is_free => *is_free = true,
            _ => return false,
        }
        self.free.push(slot);
        true
    }

    /// Whether the slot is free, if it is one of this area's.
    fn state(&mut self, slot: Slot) -> Option<&mut bool> {
        let offset = slot.0.start().checked_sub(self.area.start())?;
        if slot.0.len() != self.slot_len || !offset.is_multiple_of(self.slot_len) {
            return None;
        }
        let index = usize::try_from(offset / self.slot_len).ok()?;
        self.is_free.get_mut(index)
    }

    /// Slots that can be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots in all.
    pub fn total(&self) -> usize {
        self.is_free.len()
    }

    /// Whether an event at `span` is one of the swap area's own, such as the unmapping of a slot that `MapArea` replaces.
    /// Those are expected; any other unmapping of a range being moved is not.
    pub fn covers(&self, span: &Span) -> bool {
        self.area.contains_span(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_last_given_back_first() {
        let area = Span::new(0x10_0000, 0x4_3000).unwrap();
        let mut slots = SlotStack::new(area, 0x1_0000).unwrap();
        assert_eq!((slots.free(), slots.total()), (4, 4), "the trailing 0x3000 is no slot");
        let first = slots.pop().unwrap();
        let second = slots.pop().unwrap();
        assert_eq!(first.span().start(), 0x10_0000);
        assert_eq!(second.span().start(), 0x11_0000);
        assert!(slots.push(first));
        assert!(!slots.push(first), "given back twice");
        assert!(slots.push(second));
        assert_eq!(slots.pop(), Some(second));
        assert_eq!(slots.pop(), Some(first));
    }

    #[test]
    fn foreign_slots_are_refused() {
        let mut slots = SlotStack::new(Span::new(0x10_0000, 0x4_0000).unwrap(), 0x1_0000).unwrap();
        let mut other = SlotStack::new(Span::new(0x20_0000, 0x4_0000).unwrap(), 0x1_0000).unwrap();
        assert!(!slots.push(other.pop().unwrap()));
        let mut shifted = SlotStack::new(Span::new(0x10_1000, 0x2_0000).unwrap(), 0x1_0000).unwrap();
        assert!(!slots.push(shifted.pop().unwrap()));
    }

    #[test]
    fn an_area_smaller_than_a_slot_has_none() {
        let area = Span::new(0x10_0000, 0x1000).unwrap();
        assert_eq!(SlotStack::new(area, 0x2000).unwrap().total(), 0);
        assert!(SlotStack::new(area, 0).is_none());
        assert!(SlotStack::new(area, 100).is_none());
    }
}
