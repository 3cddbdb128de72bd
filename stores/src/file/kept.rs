//! Buffers that were read into and will be again: memory got and given back for each read costs more than opening what was read.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::buffer::{BLOCK, Buffer};

/// Buffers kept, at most, the longest of them, and all together.
const BUFFERS: usize = 64;
const LONGEST: usize = 512 << 10;
const BYTES: u64 = 4 << 20;

#[derive(Default)]
pub(super) struct Kept {
    buffers: Mutex<Vec<Buffer>>,
    bytes: AtomicU64,
}

impl Kept {
    /// A buffer of at least `len` bytes, and of no more than eight times as many.
    pub(super) fn buffer(&self, len: usize) -> std::io::Result<Buffer> {
        let mut buffers = self.buffers.lock();
        let fits = |buffer: &Buffer| (len..=len.saturating_mul(8)).contains(&buffer.len());
        if let Some(at) = buffers.iter().rposition(fits) {
            let buffer = buffers.swap_remove(at);
            self.bytes.fetch_sub(buffer.len() as u64, Ordering::Relaxed);
            return Ok(buffer);
        }
        drop(buffers);
        Buffer::new(len.next_power_of_two().max(2 * BLOCK))
    }

    /// Keeps it, if there is room.
    pub(super) fn keep(&self, buffer: Buffer) {
        let mut buffers = self.buffers.lock();
        let len = buffer.len() as u64;
        if buffers.len() < BUFFERS && buffer.len() <= LONGEST && self.bytes() + len <= BYTES {
            self.bytes.fetch_add(len, Ordering::Relaxed);
            buffers.push(buffer);
        }
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        let mut buffers = self.buffers.lock();
        let all: u64 = buffers.drain(..).map(|buffer| buffer.len() as u64).sum();
        self.bytes.fetch_sub(all, Ordering::Relaxed);
    }

    /// Memory they take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_used_again_and_counted() {
        let kept = Kept::default();
        let (small, large) = (kept.buffer(BLOCK).unwrap(), kept.buffer(100 << 10).unwrap());
        assert_eq!([small.len(), large.len()], [2 * BLOCK, 128 << 10]);
        let at = large.as_ptr();
        kept.keep(large);
        kept.keep(small);
        assert_eq!(kept.bytes(), (128 << 10) + 2 * BLOCK as u64);
        // Not for what is far smaller.
        assert_eq!(kept.buffer(BLOCK).unwrap().len(), 2 * BLOCK);
        assert_eq!(kept.buffer(BLOCK).unwrap().len(), 2 * BLOCK);
        assert_eq!(kept.buffer(64 << 10).unwrap().as_ptr(), at);
        assert_eq!(kept.bytes(), 0);
        kept.keep(Buffer::new(LONGEST + BLOCK).unwrap());
        assert_eq!(kept.bytes(), 0);
        for _ in 0..20 {
            kept.keep(Buffer::new(LONGEST).unwrap());
        }
        assert_eq!(kept.bytes(), BYTES);
        kept.clear();
        assert_eq!(kept.bytes(), 0);
    }
}
