//! How far a client's mappings may still be divided: the kernel lets a process have only so many (vm.max_map_count), and a program that has none left can't map
//! memory any more. So moving out stops before that; what is out comes back without dividing anything.

use parking_lot::Mutex;
use std::io::Read;
use std::time::{Duration, Instant};

/// What is left to the program itself: a part of all that it may have.
const LEFT: u64 = 16;

/// Divisions that are made before mappings are counted again. The program makes others meanwhile.
const AT_ONCE: u64 = 1024;

/// The time between two counts, in times what the last one took.
const RARELY: u32 = 100;

/// One client's.
#[derive(Default)]
pub(super) struct Divisions {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// That may be made without counting.
    left: u64,
    /// Where there are few: not to be counted again before.
    again: Option<Instant>,
    is_told: bool,
}

impl Divisions {
    /// Takes `wanted` of those that may still be made by process `pid`. Whether there were so many.
    pub(super) fn take(&self, pid: u32, wanted: u64) -> bool {
        let mut known = self.known.lock();
        let begun = Instant::now();
        if known.left < wanted && known.again.is_none_or(|again| begun >= again) {
            let Some(room) = room(pid) else { return true };
            known.left = room.min(AT_ONCE);
            known.again =
                (room < AT_ONCE).then(|| begun + (begun.elapsed() * RARELY).max(Duration::from_millis(10)));
        }
        if known.left < wanted {
            if !known.is_told {
                known.is_told = true;
                tracing::warn!(
                    pid,
                    "a program has nearly as many mappings as it may have (vm.max_map_count): what would divide more of them isn't moved out"
                );
            }
            return false;
        }
        known.left -= wanted;
        true
    }
}

/// How many mappings more a process may have, but for those that are left to it. `None` if it can't be found out.
fn room(pid: u32) -> Option<u64> {
    let most: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let mut file = std::fs::File::open(format!("/proc/{pid}/maps")).ok()?;
    let mut bytes = vec![0; 1 << 16];
    let mut count = 0_u64;
    loop {
        match file.read(&mut bytes).ok()? {
            0 => return Some((most - most / LEFT).saturating_sub(count)),
            read => count += bytes[..read].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_divided_is_counted_and_used_up() {
        let divisions = Divisions::default();
        let pid = std::process::id();
        assert!(room(pid).is_some_and(|room| room > AT_ONCE), "a test program has few mappings");
        assert!(divisions.take(pid, 2));
        assert_eq!(divisions.known.lock().left, AT_ONCE - 2);
        // More than there ever are.
        assert!(!divisions.take(pid, u64::MAX));
        assert!(divisions.known.lock().is_told);
    }
}
