//! What a process has in memory of its own, as /proc says it.

use std::collections::HashMap;
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

/// What processes have together, what they share counted once, without walking their page tables each time: the walk says what part of
/// a process's memory is its own, and that is taken for true until the next walk. Who comes in between changes what all have, so then all
/// are walked.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Each process's part, and what it came to last.
    known: HashMap<u32, (Option<f64>, u64)>,
}

impl Shares {
    /// Measures these processes, by a walk if `exactly`. While all come to no more than `far` at most nobody needs to know.
    pub(super) fn look(&mut self, pids: &[u32], exactly: bool, far: u64) {
        self.look_with(pids, exactly, far, anonymous_bytes, proportional_bytes);
    }

    fn look_with(
        &mut self,
        pids: &[u32],
        exactly: bool,
        far: u64,
        cheap: impl Fn(u32) -> io::Result<u64>,
        exact: impl Fn(u32) -> io::Result<u64>,
    ) {
        let all: HashMap<u32, u64> = pids.iter().filter_map(|&pid| Some((pid, cheap(pid).ok()?))).collect();
        let part = |pid: &u32| self.known.get(pid).and_then(|(part, _)| *part);
        // One process shares with nobody that counts: the cheap count is the exact one.
        let somebody_came = || all.keys().any(|pid| part(pid).is_none()) && all.values().sum::<u64>() > far;
        let walk = all.len() > 1 && (exactly || somebody_came());
        self.known = all
            .into_iter()
            .map(|(pid, bytes)| {
                let part = match (walk, part(&pid)) {
                    (true, _) => exact(pid).ok().map(|own| own as f64 / bytes.max(1) as f64),
                    (false, part) => part.filter(|_| pids.len() > 1),
                };
                (pid, (part, scaled(bytes, part.unwrap_or(1.0))))
            })
            .collect();
    }

    /// What a process came to; `None` if it is gone.
    pub(super) fn bytes(&self, pid: u32) -> Option<u64> {
        self.known.get(&pid).map(|(_, bytes)| *bytes)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a part of it, and no less than none
fn scaled(bytes: u64, part: f64) -> u64 {
    (bytes as f64 * part.clamp(0.0, 1.0)) as u64
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
    fn what_is_shared_is_walked_for_rarely_and_when_somebody_comes() {
        let walks = std::cell::Cell::new(0);
        let exact = |_| {
            walks.set(walks.get() + 1);
            Ok(40)
        };
        let mut shares = Shares::default();
        shares.look_with(&[1], true, 0, |_| Ok(80), exact);
        assert_eq!((shares.bytes(1), walks.get()), (Some(80), 0));
        // It forked, first with plenty of room.
        shares.look_with(&[1, 2], false, 160, |_| Ok(80), exact);
        assert_eq!((shares.bytes(1), shares.bytes(2), walks.get()), (Some(80), Some(80), 0));
        shares.look_with(&[1, 2], false, 0, |_| Ok(80), exact);
        assert_eq!((shares.bytes(1), shares.bytes(2), walks.get()), (Some(40), Some(40), 2));
        shares.look_with(&[1, 2], false, 0, |pid| Ok(u64::from(pid) * 100), exact);
        assert_eq!((shares.bytes(1), shares.bytes(2), walks.get()), (Some(50), Some(100), 2));
        shares.look_with(&[1, 2], true, 0, |_| Ok(80), exact);
        assert_eq!(walks.get(), 4);
        shares.look_with(&[2], false, 0, |_| Ok(80), exact);
        assert_eq!((shares.bytes(1), shares.bytes(2), walks.get()), (None, Some(80), 4));
        shares.look_with(&[2], false, 0, |_| Err(io::ErrorKind::NotFound.into()), exact);
        assert_eq!(shares.bytes(2), None);
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
