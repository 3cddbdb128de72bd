//! The join itself: scatter both tables over partitions, then join each of them.

use crate::memory::Memory;
use crate::tables::{LENGTH, LONGEST, Table, Tables, row_at};
use std::collections::HashMap;
use std::ops::Range;

/// What rows are joined by.
#[derive(Clone, Copy)]
pub(crate) enum Key {
    /// The whole line.
    Line,
    /// Its beginning.
    Start,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Joined {
    /// Pairs of a left and a right row with the same key.
    pub(crate) pairs: u64,
    /// The length of both, over all pairs.
    pub(crate) bytes: u64,
}

/// So many that each is small beside the memory there is, and that a piece of each may be in memory at once.
const PARTITIONS: usize = 32;

/// Partitions grow by so much: whole pages.
pub(crate) const PIECE: usize = 256 << 10;

/// Tables are gone through by so much at a time.
const WINDOW: usize = 1 << 20;

/// The hash before each row in a partition.
const HASH: usize = 8;

/// What the pieces of a table's partitions may leave empty: the most of each one's last, and less than a row at the end of each.
pub(crate) const SLACK: usize = PARTITIONS * PIECE;

/// Room for the partitions of so many rows that have so many bytes.
pub(crate) const fn room_for(bytes: usize, rows: usize) -> usize {
    let in_pieces = bytes + rows * HASH;
    in_pieces + in_pieces / (PIECE - LONGEST) * LONGEST + PIECE + SLACK
}

/// Joins two tables.
pub(crate) fn join(memory: &mut Memory, tables: &Tables, key: Key) -> Joined {
    let mut free = tables.area.start;
    let mut scattered = |table| scatter(memory, table, tables.area.start, &mut free, key);
    let (left, right) = (scattered(&tables.left), scattered(&tables.right));
    let mut joined = Joined::default();
    let mut rows = Rows::default();
    for (left, right) in left.iter().zip(&right) {
        rows.build(memory, left, key);
        rows.probe(memory, right, key, &mut joined);
        for piece in left.pieces.iter().chain(&right.pieces) {
            memory.is_done_with(piece.start..piece.start + PIECE);
        }
    }
    joined
}

/// A table's rows of which the hash begins alike.
#[derive(Default)]
struct Partition {
    pieces: Vec<Range<usize>>,
    rows: usize,
}

/// Copies each row of a table to its partition. What is behind `free` is free.
fn scatter(memory: &mut Memory, table: &Table, area: usize, free: &mut usize, key: Key) -> Vec<Partition> {
    let mut partitions: Vec<Partition> = (0..PARTITIONS).map(|_| Partition::default()).collect();
    let mut at = table.range.start;
    memory.in_order(table.range.clone());
    while at < table.range.end {
        let window = at..table.range.end.min(at + WINDOW);
        memory.comes_next(window.clone());
        let (rows, pieces) = memory.as_mut_slice().split_at_mut(area);
        while at < window.end {
            let (row, next) = row_at(rows, at);
            let hash = hash(key.of(row));
            let partition = &mut partitions[(hash >> 59) as usize];
            partition.push(&rows[at..next], hash, pieces, area, free);
            at = next;
        }
        memory.is_passed(window);
    }
    partitions
}

impl Partition {
    /// `row` with its length.
    fn push(&mut self, row: &[u8], hash: u64, area: &mut [u8], base: usize, free: &mut usize) {
        let len = HASH + row.len();
        let piece = match self.pieces.last_mut() {
            Some(piece) if piece.len() + len <= PIECE => piece,
            _ => {
                self.pieces.push(*free..*free);
                *free += PIECE;
                let last = self.pieces.len() - 1;
                &mut self.pieces[last]
            }
        };
        let place = &mut area[piece.end - base..piece.end - base + len];
        place[..HASH].copy_from_slice(&hash.to_le_bytes());
        place[HASH..].copy_from_slice(row);
        piece.end += len;
        self.rows += 1;
    }

    /// Each row's hash, and where the row is.
    fn for_each(&self, memory: &Memory, mut visit: impl FnMut(&[u8], u64, usize)) {
        let bytes = memory.as_slice();
        for piece in &self.pieces {
            memory.comes_next(piece.clone());
            let mut at = piece.start;
            while at < piece.end {
                let mut hash = [0; HASH];
                hash.copy_from_slice(&bytes[at..at + HASH]);
                visit(bytes, u64::from_le_bytes(hash), at + HASH);
                at = row_at(bytes, at + HASH).1;
            }
        }
    }
}

/// A partition's left rows by their key. Small: one partition's keys alone are in it.
#[derive(Default)]
struct Rows {
    slots: Vec<Slot>,
}

/// Left rows with the same key.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// The half of the hash that says where to look for it.
    hash: u32,
    /// Where one of them is.
    at: u32,
    /// How many.
    rows: u32,
    /// Their length together.
    bytes: u32,
}

impl Rows {
    fn build(&mut self, memory: &Memory, left: &Partition, key: Key) {
        self.slots.clear();
        self.slots.resize((2 * left.rows).next_power_of_two().max(2), Slot::default());
        left.for_each(memory, |bytes, hash, at| {
            let row = row_at(bytes, at).0;
            let slot = self.find(bytes, hash, key.of(row), key);
            let slot = &mut self.slots[slot];
            if slot.rows == 0 {
                *slot =
                    Slot { hash: low(hash), at: u32::try_from(at).unwrap_or(u32::MAX), rows: 0, bytes: 0 };
            }
            slot.rows += 1;
            // Less than 4 GB in all: the tables are.
            slot.bytes += u32::try_from(row.len()).unwrap_or(0);
        });
    }

    fn probe(&self, memory: &Memory, right: &Partition, key: Key, joined: &mut Joined) {
        right.for_each(memory, |bytes, hash, at| {
            let row = row_at(bytes, at).0;
            let slot = self.slots[self.find(bytes, hash, key.of(row), key)];
            joined.pairs += u64::from(slot.rows);
            joined.bytes += u64::from(slot.bytes) + u64::from(slot.rows) * row.len() as u64;
        });
    }

    /// The slot with a key, or the free one where it belongs.
    fn find(&self, bytes: &[u8], hash: u64, wanted: &[u8], key: Key) -> usize {
        let mask = self.slots.len() - 1;
        let hash = low(hash);
        let mut at = hash as usize & mask;
        loop {
            let slot = &self.slots[at];
            let is_it = || slot.hash == hash && key.of(row_at(bytes, slot.at as usize).0) == wanted;
            if slot.rows == 0 || is_it() {
                return at;
            }
            at = (at + 1) & mask;
        }
    }
}

impl Key {
    fn of(self, row: &[u8]) -> &[u8] {
        match self {
            Self::Line => row,
            Self::Start => &row[..row.len().min(24)],
        }
    }
}

fn low(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

/// Eight bytes at a time; the top bits are as good as the others.
fn hash(key: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut words = key.chunks_exact(8);
    let mut hash = mix(key.len() as u64, 0);
    for word in &mut words {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        hash = mix(hash, u64::from_le_bytes(bytes));
    }
    let mut rest = [0; 8];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    mix(mix(hash, u64::from_le_bytes(rest)), 0)
}

/// The same answer without partitions or hashes of our own, in as much memory as it takes.
pub(crate) fn check(memory: &Memory, tables: &Tables, key: Key) -> Joined {
    let bytes = memory.as_slice();
    let rows = |table: &Table| {
        let end = table.range.end;
        let first = (table.range.start < end).then_some(table.range.start);
        std::iter::successors(first, move |at| Some(row_at(bytes, *at).1).filter(|next| *next < end))
            .map(|at| row_at(bytes, at).0)
    };
    let mut left: HashMap<&[u8], (u64, u64)> = HashMap::new();
    for row in rows(&tables.left) {
        let (count, bytes) = left.entry(key.of(row)).or_default();
        *count += 1;
        *bytes += row.len() as u64;
    }
    let mut joined = Joined::default();
    for row in rows(&tables.right) {
        let (count, bytes) = left.get(key.of(row)).copied().unwrap_or_default();
        joined.pairs += count;
        joined.bytes += bytes + count * row.len() as u64;
    }
    joined
}

const _: () = assert!(PIECE > HASH + LENGTH + LONGEST && PARTITIONS == 1 << (64 - 59));
