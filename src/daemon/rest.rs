//! When there is so little to see that looks may be rare.

use std::time::Duration;

/// What the last looks had in common, but for a little.
#[derive(Default)]
pub(super) struct Rest {
    /// Bytes in memory, and clients.
    seen: (u64, usize),
    /// Looks since there was something else to see.
    looks: u32,
}

/// After so many looks at the same they become rare.
const LOOKS: u32 = 8;

/// Bytes that make no difference, all in all.
const LITTLE: u64 = 1 << 20;

/// So far apart are they then.
const APART: Duration = Duration::from_secs(1);

impl Rest {
    /// How long to wait for the next look, where `asked` was asked for. Who is under a limit is looked at as often as asked, for it may grow at once;
    /// and so is who changes, or whom somebody wants to see `sooner` than those at rest.
    pub(super) fn next(
        &mut self,
        seen: (u64, usize),
        is_limited: bool,
        asked: Duration,
        sooner: Duration,
    ) -> Duration {
        let is_same = seen.1 == self.seen.1 && seen.0.abs_diff(self.seen.0) < LITTLE;
        if is_same && !is_limited && asked >= sooner {
            self.looks = self.looks.saturating_add(1);
        } else {
            (self.looks, self.seen) = (0, seen);
        }
        if self.looks >= LOOKS { asked.max(APART) } else { asked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_still_for_a_while_is_looked_at_once_a_second() {
        let idle = Duration::from_millis(250);
        let mut rest = Rest::default();
        let mut look = |seen, is_limited, asked| rest.next(seen, is_limited, asked, idle);
        let first: Vec<Duration> = (0..=LOOKS).map(|_| look((5 << 20, 1), false, idle)).collect();
        assert!(first.iter().take(LOOKS as usize).all(|next| *next == idle), "{first:?}");
        assert_eq!((first[LOOKS as usize], look((5 << 20, 1), false, idle)), (APART, APART));
        // A little changes nothing, but little by little it would.
        assert_eq!(look(((5 << 20) + 600_000, 1), false, idle), APART);
        // It has grown; and then there is a limit, and a policy that wants to know more.
        assert_eq!(look((6 << 20, 1), false, idle), idle);
        for _ in 0..2 * LOOKS {
            assert_eq!(look((6 << 20, 1), true, idle), idle);
        }
        let soon = Duration::from_millis(20);
        for _ in 0..2 * LOOKS {
            assert_eq!(look((6 << 20, 1), false, soon), soon);
        }
    }
}
