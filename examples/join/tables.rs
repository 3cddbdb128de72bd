//! The two tables: lines of text files, of every other file each.

use crate::files::{Files, Source};
use crate::join;
use crate::memory::Memory;
use std::ops::Range;
use std::path::PathBuf;

/// Both tables, and the rest of the memory.
pub(crate) struct Tables {
    pub(crate) left: Table,
    pub(crate) right: Table,
    /// For partitions.
    pub(crate) area: Range<usize>,
}

/// Rows one after the other: two bytes of length, the line.
pub(crate) struct Table {
    pub(crate) range: Range<usize>,
    pub(crate) rows: usize,
    /// Where it must end.
    end: usize,
}

/// Longer lines are cut.
pub(crate) const LONGEST: usize = 1000;

/// Two bytes of length.
pub(crate) const LENGTH: usize = 2;

impl Tables {
    /// Fills a memory's beginning with as much text as leaves room for partitions of it.
    pub(crate) fn load(memory: &mut Memory, directories: &[PathBuf]) -> Result<Self, String> {
        // Rows have their hash with them in a partition: nearly everywhere a quarter more is room for that.
        let most = memory.len().saturating_sub(2 * join::SLACK) / 9 * 2;
        // Its pieces are dropped by themselves, so that they mustn't share pages with anything.
        let area = (2 * most).next_multiple_of(join::PIECE);
        let left = Table { range: 0..0, rows: 0, end: most };
        let right = Table { range: most..most, rows: 0, end: 2 * most };
        let mut tables = Self { left, right, area: area..memory.len() };
        let room = tables.area.len() / 2;
        let bytes = memory.as_mut_slice();
        let mut files = Files::under(directories);
        let (mut taken, mut round) = (0_usize, 0_u32);
        loop {
            let text = match files.next_text() {
                Source::Text(text) => text,
                Source::Over if taken == 0 => {
                    return Err("no text was found; name directories that hold some".into());
                }
                Source::Over => {
                    // Too little: once more, each line with the round before it, so that no page comes twice.
                    round += 1;
                    files = Files::under(directories);
                    continue;
                }
            };
            taken += 1;
            let table = if taken % 2 == 0 { &mut tables.left } else { &mut tables.right };
            table.take(bytes, &text, round, room);
            if [&tables.left, &tables.right].iter().all(|table| table.is_full(room)) {
                return Ok(tables);
            }
        }
    }

    /// Of both.
    pub(crate) fn bytes(&self) -> usize {
        self.left.range.len() + self.right.range.len()
    }
}

impl Table {
    /// Takes the lines of a text, until it is full.
    fn take(&mut self, bytes: &mut [u8], text: &[u8], round: u32, room: usize) {
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.trim_ascii();
            let line = &line[..line.len().min(LONGEST - 10)];
            if line.is_empty() {
                continue;
            }
            let salt = if round > 0 { round.to_string() } else { String::new() };
            let len = salt.len() + line.len();
            if self.is_full(room) {
                return;
            }
            let row = &mut bytes[self.range.end..self.range.end + LENGTH + len];
            row[..LENGTH].copy_from_slice(&u16::try_from(len).unwrap_or(0).to_le_bytes());
            row[LENGTH..LENGTH + salt.len()].copy_from_slice(salt.as_bytes());
            row[LENGTH + salt.len()..].copy_from_slice(line);
            self.range.end += LENGTH + len;
            self.rows += 1;
        }
    }

    /// Whether one more row might not find room in it, or the partitions of it in theirs.
    fn is_full(&self, room: usize) -> bool {
        self.range.end + LENGTH + LONGEST > self.end
            || join::room_for(self.range.len() + LONGEST, self.rows + 1) > room
    }
}

/// The row at a place, and where the next one is.
pub(crate) fn row_at(bytes: &[u8], at: usize) -> (&[u8], usize) {
    let len = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let from = at + LENGTH;
    (&bytes[from..from + len], from + len)
}
