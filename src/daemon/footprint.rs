//! What a process has in memory of its own, as /proc says it.

use std::io;

/// The anonymous memory of a process, in bytes: what it shares with forked relatives counts in full for each. Cheap: the
/// kernel keeps this count.
///
/// # Errors
/// That the process is gone, or isn't ours to look at.
pub fn anonymous_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let mut numbers = text.split_ascii_whitespace().skip(1).map(|number| number.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(resident.saturating_sub(shared) * userswap_uffd::page_bytes())
}

/// The process's share of the anonymous memory it maps (`Pss_Anon`), in bytes: a page that three processes share counts
/// a third for each. The kernel walks its page tables for it.
///
/// # Errors
/// As [`anonymous_bytes`].
pub fn proportional_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    match field(&text, "Pss_Anon:") {
        Some(kib) => Ok(kib * 1024),
        // Before Linux 5.5 it wasn't told.
        None => anonymous_bytes(pid),
    }
}

/// The number behind a key at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:  100 kB\nPss:   60 kB\nPss_Dirty:  1 kB\nPss_Anon:      40 kB\n";
        assert_eq!(
            (field(text, "Pss_Anon:"), field(text, "Pss:"), field(text, "Swap:")),
            (Some(40), Some(60), None)
        );
    }

    #[test]
    fn memory_that_is_written_shows_in_both() {
        let pid = std::process::id();
        let before = (anonymous_bytes(pid).unwrap(), proportional_bytes(pid).unwrap());
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = (anonymous_bytes(pid).unwrap(), proportional_bytes(pid).unwrap());
        assert!(after.0 >= before.0 + (48 << 20) && after.1 >= before.1 + (48 << 20), "{before:?} {after:?}");
        drop(memory);
        assert!(anonymous_bytes(u32::MAX).is_err());
    }
}
