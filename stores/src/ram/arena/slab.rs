//! Slabs: 64 frames of the arena cut into slots of one size. Who may touch which bytes is decided here.

use std::num::NonZeroU64;

/// Slots start and end on multiples of this.
pub(crate) const GRANULE: usize = 16;
/// Frames a slab has: one bit each in a word.
pub(crate) const SLAB_FRAMES: usize = 64;

const OFFSET_BITS: u32 = 36;
const LEN_BITS: u32 = 13;
const TAG_BITS: u32 = 15;
/// Tags are below this.
pub(crate) const TAG_LIMIT: u16 = 1 << TAG_BITS;
/// No arena is larger: what 36 bits of granules reach.
pub(crate) const MAX_ARENA: usize = GRANULE << OFFSET_BITS;

/// The right to a slot's bytes: exists once for each slot that is taken, in eight bytes.
///
/// ```text
/// 63          49 48         36 35                              0
/// | tag (15)    | granules (13)| offset in granules (36)       |
/// ```
/// The tag is the holder's, for what it likes. Dropping a `Slot` leaks its bytes, which is safe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Slot(NonZeroU64);

impl Slot {
    fn new(offset: usize, len: usize) -> Option<Self> {
        let (offset, len) = ((offset / GRANULE) as u64, (len / GRANULE) as u64);
        debug_assert!(offset < 1 << OFFSET_BITS && len < 1 << LEN_BITS);
        NonZeroU64::new(offset | len << OFFSET_BITS).map(Self)
    }

    /// Where the slot starts in the arena, in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "36 bits of 16 bytes, on 64-bit machines")]
    pub(crate) fn offset(&self) -> usize {
        (self.0.get() & ((1 << OFFSET_BITS) - 1)) as usize * GRANULE
    }

    /// How long it is, in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "13 bits")]
    pub(crate) fn len(&self) -> usize {
        (self.0.get() >> OFFSET_BITS & ((1 << LEN_BITS) - 1)) as usize * GRANULE
    }

    /// The holder's tag.
    #[allow(clippy::cast_possible_truncation, reason = "15 bits")]
    pub(crate) fn tag(&self) -> u16 {
        (self.0.get() >> (OFFSET_BITS + LEN_BITS)) as u16
    }

    /// The same slot with another tag, which is below [`TAG_LIMIT`].
    #[must_use]
    pub(crate) fn tagged(self, tag: u16) -> Self {
        let bits = u64::from(tag % TAG_LIMIT) << (OFFSET_BITS + LEN_BITS);
        let place = self.0.get() & ((1 << (OFFSET_BITS + LEN_BITS)) - 1);
        // The length is never 0, so the place isn't.
        Self(NonZeroU64::new(place | bits).unwrap_or(self.0))
    }
}

/// Which of a slab's slots are taken, and which of its frames have memory behind them.
pub(crate) struct Slab {
    start: usize,
    slot_len: usize,
    frame: usize,
    slots: u32,
    used: u32,
    resident: u64,
    /// One bit a slot, set if it is taken; bits past the last slot are set too.
    taken: Box<[u64]>,
}

impl Slab {
    /// The slab at `start`, cut into slots of `slot_len`. For the arena alone: a slab's place belongs to one `Slab` at a time.
    #[allow(clippy::cast_possible_truncation, reason = "a slab has at most 64 × 65536 ÷ 32 slots")]
    pub(super) fn new(start: usize, slot_len: usize, frame: usize, resident: u64) -> Self {
        let slots = SLAB_FRAMES * frame / slot_len;
        let mut taken = vec![0; slots.div_ceil(64)].into_boxed_slice();
        if let Some(last) = taken.last_mut()
            && !slots.is_multiple_of(64)
        {
            *last = u64::MAX << (slots % 64);
        }
        Self { start, slot_len, frame, slots: slots as u32, used: 0, resident, taken }
    }

    /// Where the slab starts in the arena.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// How many slots it has.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// How many of them are taken.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// All slots are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.used == self.slots
    }

    /// The frames with memory behind them, a bit each.
    pub(crate) fn resident(&self) -> u64 {
        self.resident
    }

    /// Bytes of its own bookkeeping.
    pub(crate) fn overhead(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.taken)
    }

    /// The lowest free slot's number.
    pub(crate) fn lowest_free(&self) -> Option<usize> {
        let word = self.taken.iter().position(|word| *word != u64::MAX)?;
        Some(word * 64 + self.taken[word].trailing_ones() as usize)
    }

    /// The frames slot `number` lies in, a bit each.
    pub(crate) fn frames_of(&self, number: usize) -> u64 {
        let first = number * self.slot_len / self.frame;
        let last = ((number + 1) * self.slot_len - 1) / self.frame;
        (u64::MAX >> (63 - last.min(63))) & (u64::MAX << first.min(63))
    }

    /// Takes slot `number`, if it is one and free. The frames it lies in count as resident from now on.
    pub(crate) fn take(&mut self, number: usize) -> Option<Slot> {
        if number >= self.slots as usize {
            return None;
        }
        let (word, bit) = (number / 64, 1 << (number % 64));
        if self.taken[word] & bit != 0 {
            return None;
        }
        let slot = Slot::new(self.start + number * self.slot_len, self.slot_len)?;
        self.taken[word] |= bit;
        self.used += 1;
        self.resident |= self.frames_of(number);
        Some(slot)
    }

    /// Takes a slot back. One that isn't of this slab is leaked.
    pub(crate) fn give(&mut self, slot: Slot) {
        let Some(within) = slot.offset().checked_sub(self.start) else { return };
        let number = within / self.slot_len;
        if number >= self.slots as usize || slot.len() != self.slot_len {
            return;
        }
        self.taken[number / 64] &= !(1 << (number % 64));
        self.used -= 1;
    }

    /// The frame byte `at` of slot `number` lies in, as a bit.
    pub(crate) fn frame_bit(&self, number: usize, at: usize) -> u64 {
        1 << ((number * self.slot_len + at) / self.frame).min(63)
    }

    /// From now on these frames count as resident.
    pub(crate) fn set_resident(&mut self, frames: u64) {
        self.resident = frames;
    }

    /// The resident frames no taken slot lies in; they count as gone from now on.
    pub(super) fn take_idle_frames(&mut self) -> u64 {
        let at_least = (self.used as usize * self.slot_len).div_ceil(self.frame);
        if self.resident.count_ones() as usize <= at_least {
            return 0;
        }
        let mut needed = 0;
        for number in 0..self.slots as usize {
            if self.taken[number / 64] & 1 << (number % 64) != 0 {
                needed |= self.frames_of(number);
            }
        }
        let idle = self.resident & !needed;
        self.resident &= needed;
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_eight_bytes_even_if_optional() {
        assert_eq!(size_of::<Option<Slot>>(), 8);
    }

    #[test]
    fn a_slot_keeps_its_place_and_tag() {
        let slot = Slot::new(MAX_ARENA - 4128, 4128).unwrap().tagged(TAG_LIMIT - 1);
        assert_eq!((slot.offset(), slot.len(), slot.tag()), (MAX_ARENA - 4128, 4128, TAG_LIMIT - 1));
    }

    #[test]
    fn slots_are_disjoint_inside_the_slab_and_given_once() {
        for slot_len in [32, 48, 1200, 4112, 4128] {
            let mut slab = Slab::new(1 << 20, slot_len, 4096, 0);
            let mut end = 1 << 20;
            let mut held = Vec::new();
            while let Some(number) = slab.lowest_free() {
                let slot = slab.take(number).unwrap();
                assert!(slot.offset() >= end && slot.len() == slot_len);
                end = slot.offset() + slot_len;
                assert_eq!(slab.take(number), None);
                held.push(slot);
            }
            assert!(end <= (1 << 20) + 64 * 4096 && slab.is_full());
            assert_eq!(slab.take(slab.slots() as usize), None);
            held.into_iter().for_each(|slot| slab.give(slot));
            assert_eq!(slab.used(), 0);
            assert_ne!(slab.take_idle_frames(), 0);
            assert_eq!(slab.resident(), 0);
        }
    }

    #[test]
    fn idle_frames_are_those_no_slot_touches() {
        let mut slab = Slab::new(0, 3000, 4096, u64::MAX);
        // Slot 1 spans bytes 3000..6000: frames 0 and 1.
        let _slot = slab.take(1).unwrap();
        assert_eq!(slab.take_idle_frames(), !0b11);
        assert_eq!(slab.resident(), 0b11);
    }
}
