//! Where a record is, in a word.

use std::num::NonZeroU64;

use super::record::{Kind, UNIT};

/// Where a record is: its segment (24 bits), where in it (16) and how long it is (13), both in [`UNIT`]s, and its kind (2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(NonZeroU64);

impl Place {
    pub(super) fn new(segment: u32, offset: usize, len: usize, kind: Kind) -> Self {
        let kind = match kind {
            Kind::Raw => 0,
            Kind::Filled => 1,
            Kind::Compressed => 2,
        };
        let (offset, len) = ((offset / UNIT) as u64, (len / UNIT) as u64);
        let packed = u64::from(segment) << 31 | offset << 15 | len << 2 | kind;
        Self(NonZeroU64::MIN.saturating_add(packed))
    }

    /// As a word that isn't 0.
    pub(super) fn to_word(self) -> u64 {
        self.0.get()
    }

    /// What [`to_word`](Self::to_word) made.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        NonZeroU64::new(word).map(Self)
    }

    /// The same in another segment.
    pub(super) fn in_segment(self, segment: u32) -> Self {
        Self::new(segment, self.offset(), self.len(), self.kind())
    }

    fn packed(self) -> u64 {
        self.0.get() - 1
    }

    pub(super) fn segment(self) -> u32 {
        u32::try_from(self.packed() >> 31).unwrap_or(u32::MAX)
    }

    #[allow(clippy::cast_possible_truncation, reason = "sixteen bits")]
    pub(super) fn offset(self) -> usize {
        (self.packed() >> 15 & 0xffff) as usize * UNIT
    }

    #[allow(clippy::cast_possible_truncation, reason = "thirteen bits")]
    pub(super) fn len(self) -> usize {
        (self.packed() >> 2 & 0x1fff) as usize * UNIT
    }

    pub(super) fn kind(self) -> Kind {
        match self.packed() & 3 {
            0 => Kind::Raw,
            1 => Kind::Filled,
            _ => Kind::Compressed,
        }
    }
}
