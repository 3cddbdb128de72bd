//! Which threads a process has.

use crate::sys;

/// Whether this thread and the agent are all there is. `false` where that can't be told.
pub(crate) fn are_two() -> bool {
    const DIRECTORY: usize = 0o200_000;
    let Ok(tasks) = sys::open(c"/proc/self/task", DIRECTORY) else { return false };
    let mut entries = [0_u8; 512];
    let Ok(len) = sys::directory_entries(&tasks, &mut entries) else { return false };
    let entries = entries.get(..len).unwrap_or_default();
    // The directory itself and the one above it are among them.
    count(entries) == 4
}

/// Entries of a directory, `.` and `..` among them. Each has its length behind two words.
fn count(mut entries: &[u8]) -> usize {
    let mut count = 0;
    while let Some([low, high]) = entries.get(16..).and_then(|rest| rest.first_chunk()) {
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        match entries.get(len..) {
            Some(rest) if len > 0 => entries = rest,
            _ => break,
        }
        count += 1;
    }
    count
}
