//! Real text to search in: files of this machine, an index over them, and questions whose answers are known.
//!
//! Everything lives in one stretch of bytes that the caller provides, so that it can be memory that leaves and comes back:
//! a [`PagedRegion`](userswap::PagedRegion), or memory offered to a swap daemon. What the answers are checked with is kept elsewhere.

pub(crate) mod files;
pub(crate) mod index;
pub(crate) mod quiz;

use files::{Files, Source};
use index::{Builder, Index};
use quiz::Answers;
use std::path::PathBuf;

/// A corpus in memory.
pub(crate) struct Corpus {
    /// How to find things in it.
    pub(crate) index: Index,
    /// What is right, kept outside it.
    pub(crate) answers: Answers,
    /// Bytes of text.
    pub(crate) text_bytes: usize,
    /// Files it came from.
    pub(crate) files: usize,
    /// How often all files were taken again, because there were too few.
    pub(crate) repeats: usize,
}

/// Bytes to provide for so many bytes of text: room for the index of text of any kind.
pub(crate) const fn room_for(text_bytes: usize) -> usize {
    text_bytes * 2 + (16 << 20)
}

/// Loads `text_bytes` of text from `directories` (with none given: from wherever this machine has some) into `memory`, which
/// has [`room_for`] that, and indexes it.
pub(crate) fn load(memory: &mut [u8], text_bytes: usize, directories: &[PathBuf]) -> Result<Corpus, String> {
    let mut files = Files::under(directories);
    let mut builder = Builder::new(memory, text_bytes);
    let (mut taken, mut repeats) = (0, 0);
    while !builder.is_full() {
        match files.next_text() {
            Source::Text(text) => {
                builder.add(&text, repeats);
                taken += 1;
            }
            Source::Over if taken == 0 => {
                return Err("no text was found; name directories that hold some".into());
            }
            Source::Over => {
                // Too little: once more, each line salted with the round, so that no page comes twice.
                repeats += 1;
                files = Files::under(directories);
            }
        }
    }
    let text_bytes = builder.text_bytes();
    let (index, answers) = builder.finish()?;
    Ok(Corpus { index, answers, text_bytes, files: taken, repeats })
}

/// Random numbers from a seed (splitmix64): the same questions every time.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which isn't 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound as u64)).unwrap_or(0)
    }
}
