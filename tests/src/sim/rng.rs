//! Where all chance comes from: a seed.

/// A small fast generator (xorshift64*). One seed, one run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`. Neighbouring seeds have nothing in common.
    pub fn new(seed: u64) -> Self {
        // One round of splitmix64, which maps no seed but one to zero.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        #[allow(clippy::cast_possible_truncation)] // 32 bits are left
        {
            mixed as u32
        }
    }

    /// A number below `n`; 0 if `n` is.
    pub fn below(&mut self, n: u32) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // the product's upper half
        {
            ((u64::from(self.next()) * u64::from(n)) >> 32) as u32
        }
    }

    /// An index into something `len` long; 0 if it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(u32::try_from(len).unwrap_or(u32::MAX)) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    /// True `of` times in `in_all`.
    pub fn chance(&mut self, of: u32, in_all: u32) -> bool {
        self.below(in_all) < of
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence_and_its_neighbour_another() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..8).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(3).iter().all(|n| *n < 1000));
    }
}
