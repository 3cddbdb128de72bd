//! The arena: a sparse memfd cut into slabs, which are cut into slots.
//!
//! ```text
//! superblock | directory: a u16 a slab, its class + 1, 0 for none | slab 0 | slab 1 | …
//! 4096 bytes | rounded up to 4096                                 | 64 frames each
//! ```
//! A slab's class is written down before its first slot is taken, so with the superblock anyone who has the memfd
//! can find every object in it.

mod map;
mod slab;

use std::fs::File;
use std::io;
use std::ops::Range;

use map::Mapping;
pub(crate) use slab::{GRANULE, MAX_ARENA, SLAB_FRAMES, Slab, Slot, TAG_LIMIT};

const MAGIC: [u8; 8] = *b"uswaparn";
const VERSION: u32 = 2;
const SUPERBLOCK: u64 = 4096;
/// Memory comes from the kernel in these.
const KERNEL_PAGE: usize = 4096;

/// The memfd, its geometry, and the slices in it.
pub(crate) struct Arena {
    map: Mapping,
    frame: usize,
    slabs: u32,
}

impl Arena {
    /// A new arena for pages of `page_size`, of at most `bytes`; less if the address space doesn't allow that.
    /// One that isn't `adoptable` can't be found again.
    pub(crate) fn create(page_size: usize, bytes: usize, adoptable: bool) -> io::Result<Self> {
        let frame = page_size.max(KERNEL_PAGE);
        let mut slabs = bytes.min(MAX_ARENA).div_ceil(frame * SLAB_FRAMES).max(1);
        let map = loop {
            match Mapping::create(head_len(slabs), slabs * frame * SLAB_FRAMES) {
                Ok(map) => break map,
                // RLIMIT_AS or a small address space: a smaller arena serves until it is full.
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory && slabs > 4096 => slabs /= 2,
                Err(error) => return Err(error),
            }
        };
        let slabs = u32::try_from(slabs).map_err(io::Error::other)?;
        let arena = Self { map, frame, slabs };
        if adoptable {
            let superblock = Superblock { page_size: page_size as u64, slabs, keeper: Keeper::this() };
            arena.map.write_head(0, &superblock.encode())?;
        }
        Ok(arena)
    }

    /// The arena in a memfd a process left behind, and the page size it was made for.
    ///
    /// Refused while the process that wrote it last is alive.
    pub(crate) fn adopt(file: File) -> io::Result<(Self, usize)> {
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut block = [0; Superblock::LEN];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, 0)?;
        let mut superblock =
            Superblock::decode(&block).ok_or_else(|| invalid("not an arena of this version"))?;
        if superblock.keeper.is_alive() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the process that uses the arena is alive",
            ));
        }
        let page_size = usize::try_from(superblock.page_size).map_err(io::Error::other)?;
        if !page_size.is_power_of_two() || page_size > 1 << 16 || superblock.slabs == 0 {
            return Err(invalid("an arena of impossible geometry"));
        }
        let (frame, slabs) = (page_size.max(KERNEL_PAGE), superblock.slabs);
        let body = (slabs as usize).checked_mul(frame * SLAB_FRAMES).filter(|body| *body <= MAX_ARENA);
        let map = Mapping::adopt(file, head_len(slabs as usize), body.ok_or_else(|| invalid("too large"))?)?;
        superblock.keeper = Keeper::this();
        map.write_head(0, &superblock.encode())?;
        Ok((Self { map, frame, slabs }, page_size))
    }

    pub(crate) fn frame(&self) -> usize {
        self.frame
    }

    pub(crate) fn slabs(&self) -> u32 {
        self.slabs
    }

    pub(crate) fn slab_len(&self) -> usize {
        self.frame * SLAB_FRAMES
    }

    /// The memfd. Whoever gets it may keep it, map it for reading and hand it to a successor, but not write to it.
    pub(crate) fn file(&self) -> &File {
        self.map.file()
    }

    /// Makes slab `number` one of slots of `slot_len`, with these frames resident, and writes its class down. The caller
    /// (the pool) makes each slab once until it is [`close`](Self::close)d.
    ///
    /// Zeroes the bytes at `mark` of each slot: after another class's slots a program's own bytes may lie there, and could
    /// pass for a live object's mark. (`mark` lies within one granule, so within one frame.)
    pub(crate) fn open_slab(
        &self,
        number: u32,
        class: u16,
        slot_len: usize,
        resident: u64,
        mark: Range<usize>,
    ) -> io::Result<Slab> {
        let mut slab = self.reopen_slab(number, slot_len, resident);
        for slot in 0..slab.slots() as usize {
            if resident & slab.frame_bit(slot, mark.start) != 0
                && let Some(mut taken) = slab.take(slot)
            {
                if let Some(bytes) = self.map.bytes_mut(&mut taken).get_mut(mark.clone()) {
                    bytes.fill(0);
                }
                slab.give(taken);
            }
        }
        slab.set_resident(resident);
        self.write_class(number, class + 1)?;
        Ok(slab)
    }

    /// The slab of a found arena as it stands, its slots all free yet.
    pub(crate) fn reopen_slab(&self, number: u32, slot_len: usize, resident: u64) -> Slab {
        Slab::new(number as usize * self.slab_len(), slot_len, self.frame, resident)
    }

    /// The class slab `number` was written down as, `None` if it never was one.
    pub(crate) fn class_of(&self, number: u32) -> io::Result<Option<u16>> {
        let mut bytes = [0; 2];
        self.map.read_head(SUPERBLOCK + u64::from(number) * 2, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes).checked_sub(1))
    }

    fn write_class(&self, number: u32, class: u16) -> io::Result<()> {
        self.map.write_head(SUPERBLOCK + u64::from(number) * 2, &class.to_le_bytes())
    }

    /// The slot's bytes. The slot is one of this arena's.
    pub(crate) fn bytes<'a>(&'a self, slot: &'a Slot) -> &'a [u8] {
        self.map.bytes(slot)
    }

    /// The slot's bytes, to be written. The slot is one of this arena's.
    pub(crate) fn bytes_mut<'a>(&'a self, slot: &'a mut Slot) -> &'a mut [u8] {
        self.map.bytes_mut(slot)
    }

    /// Has the kernel fill these frames of the slab at `start` with memory, in as few calls as it takes.
    pub(crate) fn populate(&self, start: usize, frames: u64) {
        for_runs(frames, |first, count| self.map.populate(start + first * self.frame, count * self.frame));
    }

    /// Gives the memory of a slab's unneeded frames back; answers how many frames.
    pub(crate) fn trim(&self, slab: &mut Slab) -> u32 {
        let idle = slab.take_idle_frames();
        match self.punch(slab.start(), idle) {
            Ok(()) => idle.count_ones(),
            Err(_) => {
                slab.set_resident(slab.resident() | idle);
                0
            }
        }
    }

    /// Gives the memory of these frames of the slab at `start` back.
    pub(crate) fn punch(&self, start: usize, frames: u64) -> io::Result<()> {
        let mut result = Ok(());
        for_runs(frames, |first, count| {
            if let Err(error) = self.map.punch(start + first * self.frame, count * self.frame) {
                result = Err(error);
            }
        });
        result
    }

    /// Calls `each` with every slab that has memory behind it and the frames that have.
    pub(crate) fn for_resident(&self, mut each: impl FnMut(u32, u64)) -> io::Result<()> {
        let (mut at, mut current, mut frames) = (0, 0, 0);
        while let Some((start, end)) = self.map.next_data(at)? {
            for frame in start / self.frame..end.div_ceil(self.frame) {
                let slab = frame / SLAB_FRAMES;
                if slab != current && frames != 0 {
                    each(u32::try_from(current).map_err(io::Error::other)?, frames);
                    frames = 0;
                }
                current = slab;
                frames |= 1 << (frame % SLAB_FRAMES);
            }
            at = end;
            if at >= self.map.len() {
                break;
            }
        }
        if frames != 0 {
            each(u32::try_from(current).map_err(io::Error::other)?, frames);
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let nobody = Keeper { pid: 0, started: 0 };
        // If this fails, a successor waits for this process to end.
        let _ = self.map.write_head(Superblock::KEEPER_AT, &nobody.encode());
    }
}

fn head_len(slabs: usize) -> u64 {
    SUPERBLOCK + (slabs as u64 * 2).next_multiple_of(SUPERBLOCK)
}

/// Calls `each` with the first frame and length of every run of set bits.
fn for_runs(mut frames: u64, mut each: impl FnMut(usize, usize)) {
    let mut base = 0;
    while frames != 0 {
        let skip = frames.trailing_zeros() as usize;
        let run = (frames >> skip).trailing_ones() as usize;
        each(base + skip, run);
        frames = frames.checked_shr(u32::try_from(skip + run).unwrap_or(64)).unwrap_or(0);
        base += skip + run;
    }
}

/// What the memfd starts with.
struct Superblock {
    page_size: u64,
    slabs: u32,
    keeper: Keeper,
}

impl Superblock {
    const LEN: usize = 40;
    const KEEPER_AT: u64 = 24;

    fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.slabs.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.keeper.encode());
        bytes
    }

    fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let half = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        if bytes[..8] != MAGIC || half(8)? != VERSION {
            return None;
        }
        let keeper = Keeper { pid: word(24)?, started: word(32)? };
        Some(Self { page_size: word(16)?, slabs: half(12)?, keeper })
    }
}

/// The process that uses an arena: its number and, since numbers are used again, its start time in clock ticks.
#[derive(PartialEq, Eq)]
struct Keeper {
    pid: u64,
    started: u64,
}

impl Keeper {
    fn this() -> Self {
        let pid = u64::from(std::process::id());
        Self { pid, started: start_time(pid).unwrap_or(0) }
    }

    fn is_alive(&self) -> bool {
        self.pid != 0 && start_time(self.pid) == Some(self.started)
    }

    fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.pid.to_le_bytes());
        bytes[8..].copy_from_slice(&self.started.to_le_bytes());
        bytes
    }
}

fn start_time(pid: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold spaces and brackets; the 20th field after it is the start time. Z and X are dead.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(frames: u64) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for_runs(frames, |first, count| found.push((first, count)));
        found
    }

    #[test]
    fn runs_of_bits() {
        assert_eq!(runs(0), []);
        assert_eq!(runs(u64::MAX), [(0, 64)]);
        assert_eq!(runs(0b1100_0111), [(0, 3), (6, 2)]);
        assert_eq!(runs(1 << 63 | 1), [(0, 1), (63, 1)]);
    }

    #[test]
    fn memory_is_taken_on_writing_and_given_back() {
        let arena = Arena::create(4096, 1 << 20, true).unwrap();
        let mut slab = arena.open_slab(2, 5, 4112, 0, 20..24).unwrap();
        let mut slot = slab.take(3).unwrap();
        arena.bytes_mut(&mut slot).fill(7);
        assert!(arena.bytes(&slot).iter().all(|byte| *byte == 7));
        let resident = || {
            let mut found = Vec::new();
            arena.for_resident(|slab, frames| found.push((slab, frames))).unwrap();
            found
        };
        // 3 × 4112 = 12336 is in frame 3, 4 × 4112 - 1 = 16447 in frame 4.
        assert_eq!(resident(), [(2, 0b11000)]);
        assert_eq!(arena.trim(&mut slab), 0);
        slab.give(slot);
        assert_eq!(arena.trim(&mut slab), 2);
        assert_eq!(resident(), []);
        assert_eq!(arena.class_of(2).unwrap(), Some(5));
        assert_eq!(arena.class_of(1).unwrap(), None);
    }

    #[test]
    fn an_arena_in_use_is_not_adopted() {
        let arena = Arena::create(4096, 1 << 20, true).unwrap();
        let file = arena.file().try_clone().unwrap();
        let error = Arena::adopt(file.try_clone().unwrap()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        drop(arena);
        assert_eq!(Arena::adopt(file).unwrap().1, 4096);
    }

    #[test]
    fn a_file_that_is_no_arena_is_refused() {
        let file = File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 16).unwrap();
        assert_eq!(Arena::adopt(file).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }
}
