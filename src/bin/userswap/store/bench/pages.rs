//! The pages of an image.

use crate::failure::{Failure, Status};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Pages, those left out that are one word repeated.
pub(super) struct Pages {
    bytes: Vec<u8>,
    pub(super) page_size: usize,
    pub(super) left_out: usize,
}

impl Pages {
    /// Of at most so many bytes of a file.
    pub(super) fn read(path: &Path, page_size: usize, most: u64) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::of(&format!("reading {}", path.display()), &error);
        let mut image = Vec::new();
        File::open(path).map_err(failed)?.take(most).read_to_end(&mut image).map_err(failed)?;
        let filled = |page: &[u8]| page.windows(9).all(|nine| nine[0] == nine[8]);
        let mut bytes = Vec::with_capacity(image.len());
        let mut left_out = 0;
        for page in image.chunks_exact(page_size) {
            if filled(page) {
                left_out += 1;
            } else {
                bytes.extend_from_slice(page);
            }
        }
        if bytes.is_empty() {
            let sentence = format!("there is no page in {} that isn't one word repeated", path.display());
            return Err(Failure::new(Status::Failed, sentence));
        }
        Ok(Self { bytes, page_size, left_out })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.page_size
    }

    pub(super) fn page(&self, at: usize) -> &[u8] {
        &self.bytes[at * self.page_size..(at + 1) * self.page_size]
    }

    /// Their numbers in an order of this round's own.
    pub(super) fn shuffled(&self, round: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        let mut state = u64::from(round) + 7;
        for at in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(at, usize::try_from(state >> 33).unwrap_or(0) % (at + 1));
        }
        order
    }
}
