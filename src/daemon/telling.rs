//! What others can cause as often as they like is told of so often and no more: a log isn't theirs to fill.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Lines in so long.
const LINES: u32 = 20;
const TIME: Duration = Duration::from_secs(10);

/// How much was told lately.
pub(super) struct Telling {
    state: Mutex<State>,
}

struct State {
    since: Instant,
    lines: u32,
    /// What wasn't told.
    silent: u64,
}

impl Telling {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { since: Instant::now(), lines: 0, silent: 0 }) }
    }

    /// Whether a line may be written now; and how many weren't since the last.
    pub(super) fn may(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.saturating_duration_since(state.since) >= TIME {
            (state.since, state.lines) = (now, 0);
        }
        if state.lines == LINES {
            state.silent += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_and_then_a_count() {
        let (telling, now) = (Telling::new(), Instant::now());
        assert!((0..LINES).all(|_| telling.may(now) == Some(0)));
        assert!((0..7).all(|_| telling.may(now).is_none()));
        assert_eq!(telling.may(now + TIME), Some(7));
        assert_eq!(telling.may(now + TIME), Some(0));
    }
}
