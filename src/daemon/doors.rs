//! How many connections of one user are being taken on at once: whoever opens them by the thousand and says nothing has no more descriptors and threads
//! of the daemon than these, and others find it open.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Connections of one user that are being taken on at once. A program that forks a hundred children has as many.
const MOST: usize = 256;

/// Who stands at the door.
#[derive(Default)]
pub(super) struct Doors {
    open: Mutex<HashMap<u32, usize>>,
}

/// A connection of somebody who is being taken on. Dropped when that has ended, however it has.
pub(super) struct Door {
    doors: Arc<Doors>,
    uid: u32,
}

impl Doors {
    /// Lets one more connection of a user in. `None` if so many are being taken on that this one has to come again.
    pub(super) fn enter(self: &Arc<Self>, uid: u32) -> Option<Door> {
        let mut open = self.open.lock();
        let count = open.entry(uid).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Door { doors: Arc::clone(self), uid })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut open = self.doors.open.lock();
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_user_keeps_nobody_else_out() {
        let doors = Arc::new(Doors::default());
        let crowd: Vec<Door> = (0..MOST).map(|_| doors.enter(7).unwrap()).collect();
        assert!(doors.enter(7).is_none());
        assert!(doors.enter(8).is_some());
        drop(crowd);
        assert!(doors.enter(7).is_some());
        assert!(doors.open.lock().is_empty());
    }
}
