//! Size classes: which slot lengths there are.

use super::arena::GRANULE;

/// A class's number, smallest slots first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClassId(pub(crate) u16);

/// Neighbouring classes are about 1 part in this apart, so rounding up wastes half of that on average.
const STEP: usize = 64;
const SMALLEST: usize = 32;

/// The slot lengths of a pool. Each divides its slab with as little rest as possible: the lengths are `slab ÷ n`, rounded down
/// to a granule, thinned out so that two are at least a granule and 1 ÷ [`STEP`] apart.
pub(crate) struct Classes {
    lengths: Vec<usize>,
    /// By size in granules, rounded up.
    by_granules: Vec<u16>,
}

impl Classes {
    /// Classes for objects of up to `largest` bytes in slabs of `slab_len`.
    pub(crate) fn new(largest: usize, slab_len: usize) -> Self {
        let largest = largest.next_multiple_of(GRANULE);
        let mut lengths = vec![largest];
        let mut last = largest;
        for count in slab_len / largest + 1..=slab_len / SMALLEST {
            let length = slab_len / count / GRANULE * GRANULE;
            if last - length >= GRANULE.max(last / STEP) {
                lengths.push(length);
                last = length;
            }
        }
        lengths.reverse();
        let mut class = 0;
        let by_granules = (0..=largest / GRANULE)
            .map(|granules| {
                while lengths[usize::from(class)] < granules * GRANULE {
                    class += 1;
                }
                class
            })
            .collect();
        Self { lengths, by_granules }
    }

    pub(crate) fn count(&self) -> usize {
        self.lengths.len()
    }

    /// The class of the smallest slots that hold `bytes`, `None` if none do.
    pub(crate) fn for_size(&self, bytes: usize) -> Option<ClassId> {
        self.by_granules.get(bytes.div_ceil(GRANULE)).copied().map(ClassId)
    }

    /// The class's slot length; 0 for a class there isn't.
    pub(crate) fn slot_len(&self, class: ClassId) -> usize {
        self.lengths.get(usize::from(class.0)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_slot_that_wastes_little() {
        for (page, slab) in [(4096, 64 * 4096), (16384, 64 * 16384), (65536, 64 * 65536), (256, 64 * 4096)] {
            let classes = Classes::new(page + 24, slab);
            for size in 1..=page + 24 {
                let slot = classes.slot_len(classes.for_size(size).unwrap());
                assert!(slot >= size && slot.is_multiple_of(GRANULE));
                assert!(slot - size < SMALLEST.max(2 * GRANULE).max(size / 24), "{size} in {slot}");
                let rest = slab - slab / slot * slot;
                assert!(rest * 50 < slab, "slots of {slot} leave {rest}");
            }
            assert_eq!(classes.for_size(page + 24 + GRANULE), None);
        }
    }
}
