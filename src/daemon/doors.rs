//! How many connections of one user are being taken on at once, and how many a second: whoever opens them by the thousand has no more descriptors, threads and
//! time of the daemon than these, and others find it open. Root and the daemon's own user are held to nothing: they could do worse.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections of one user that are being taken on at once. A program that forks a hundred children has as many.
const MOST: usize = 256;
/// Connections of one user in so long.
const LATELY: usize = 128;
const TIME: Duration = Duration::from_millis(250);

/// Who stands at the door.
#[derive(Default)]
pub(super) struct Doors {
    open: Mutex<HashMap<u32, Standing>>,
}

/// Those of one user.
struct Standing {
    now: usize,
    since: Instant,
    lately: usize,
}

/// A connection of somebody who is being taken on. Dropped when that has ended, however it has.
pub(super) struct Door {
    doors: Arc<Doors>,
    uid: u32,
}

impl Doors {
    /// Lets one more connection of a user in. `None` if so many are being taken on, or came just now, that this one has to come again.
    pub(super) fn enter(self: &Arc<Self>, uid: u32, now: Instant) -> Option<Door> {
        let mut open = self.open.lock();
        // Of who isn't there and hasn't been lately nothing is kept.
        open.retain(|_, standing| standing.now > 0 || now.saturating_duration_since(standing.since) < TIME);
        let standing = open.entry(uid).or_insert(Standing { now: 0, since: now, lately: 0 });
        if now.saturating_duration_since(standing.since) >= TIME {
            (standing.since, standing.lately) = (now, 0);
        }
        if standing.now >= MOST || standing.lately >= LATELY {
            return None;
        }
        standing.now += 1;
        standing.lately += 1;
        Some(Door { doors: Arc::clone(self), uid })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(standing) = self.doors.open.lock().get_mut(&self.uid) {
            standing.now -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_user_keeps_nobody_else_out() {
        let (doors, mut now) = (Arc::new(Doors::default()), Instant::now());
        let mut crowd = Vec::new();
        for _ in 0..MOST / LATELY {
            crowd.extend((0..LATELY).map(|_| doors.enter(7, now).unwrap()));
            assert!(doors.enter(7, now).is_none(), "so many just now");
            assert!(doors.enter(8, now).is_some());
            now += TIME;
        }
        assert!(doors.enter(7, now).is_none(), "so many at once");
        drop(crowd);
        assert!(doors.enter(7, now).is_some());
        assert!(doors.enter(9, now + TIME).is_some());
        assert_eq!(doors.open.lock().len(), 1);
    }
}
