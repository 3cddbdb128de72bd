//! Cleaning: segments with few live records are emptied, so that they can be used again.

use std::sync::mpsc;

use userswap_store::{Budget, Maintained, StoreError};

use super::File;
use super::ring::{Lost, Refused};

/// What came of an attempt.
enum Cleaned {
    /// So many bytes were moved, and a segment is empty.
    Moved(u64),
    /// It couldn't be read; it stays as it is.
    Unreadable,
    /// No segment is worth it.
    Nothing,
}

impl File {
    /// Cleans one segment for a put that found no room. Whether that is worth another try.
    pub(super) fn make_room(&self) -> Result<bool, StoreError> {
        let _one = self.cleaning.lock();
        loop {
            match self.clean_one(self.segment_len / 8)? {
                Cleaned::Moved(_) => return Ok(true),
                Cleaned::Unreadable => {}
                // Perhaps another put cleaned while this one waited for its turn.
                Cleaned::Nothing => {
                    let room = self.shared.target.room();
                    return Ok(self.shared.log.lock().can_open(false, room));
                }
            }
        }
    }

    /// Cleans what is worth it: segments half empty, or where room is getting short, an eighth.
    pub(super) fn clean(&self, budget: Budget) -> Maintained {
        let mut done = Maintained::default();
        let _one = self.cleaning.lock();
        loop {
            let short = self.shared.log.lock().percent_free() < 25;
            let least = self.segment_len / if short { 8 } else { 2 };
            if done.moved_bytes >= budget.bytes {
                done.more = self.shared.log.lock().has_victim(least);
                return done;
            }
            match self.clean_one(least) {
                Ok(Cleaned::Moved(bytes)) => done.moved_bytes += bytes.max(1),
                Ok(Cleaned::Unreadable) => {}
                // What can't be moved now stays where it is.
                Ok(Cleaned::Nothing) | Err(_) => return done,
            }
        }
    }

    fn clean_one(&self, least_dead: usize) -> Result<Cleaned, StoreError> {
        let Some(victim) = self.shared.log.lock().victim(least_dead) else { return Ok(Cleaned::Nothing) };
        let bytes = self.read_whole(victim.segment, victim.used);
        let mut log = self.shared.log.lock();
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(why) => {
                if matches!(why, Lost::Io(_) | Lost::Short) {
                    log.give_up(victim.segment);
                }
                log.unpin(victim.segment, 1);
                return match why {
                    Lost::Died | Lost::Closed => Err(why.error("reading a segment to clean it")),
                    Lost::Io(_) | Lost::Short => Ok(Cleaned::Unreadable),
                };
            }
        };
        let mut moved = 0;
        let mut result = Ok(());
        for moving in &victim.records {
            let record = &bytes[moving.range()];
            let placed = loop {
                match log.moved(moving, record) {
                    Some(placed) => break Ok(placed),
                    None => {
                        if let Err(error) = self.open_segment(&mut log, true) {
                            break Err(error);
                        }
                    }
                }
            };
            match placed {
                Ok(true) => moved += record.len() as u64,
                Ok(false) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        log.unpin(victim.segment, 1);
        self.shared.counters.cleaned_bytes.add(moved);
        result.map(|()| Cleaned::Moved(moved))
    }

    fn read_whole(&self, segment: u32, used: usize) -> Result<Vec<u8>, Lost> {
        let (to, from) = mpsc::sync_channel(1);
        let then = move |result: Result<&mut [u8], Lost>| {
            let _ = to.send(result.map(|bytes| bytes.to_vec()));
        };
        self.ring.read(self.offset(segment), used, Box::new(then)).map_err(|Refused| Lost::Closed)?;
        from.recv().unwrap_or(Err(Lost::Died))
    }

    /// Waits for what is being written, and gives back what nothing needs.
    pub(super) fn give_back(&self, done: &mut Maintained) {
        let mut log = self.shared.log.lock();
        while log.counts.writing > 0 {
            self.shared.changed.wait(&mut log);
        }
        let before = log.bytes();
        log.trim();
        done.released_bytes += before.saturating_sub(log.bytes());
        while self.shared.target.punches()
            && let Some(segment) = log.set_aside(self.shared.target.drains())
        {
            drop(log);
            let punched = self.shared.target.punch(self.offset(segment), self.segment_len as u64);
            log = self.shared.log.lock();
            log.given_back(segment, punched);
            done.released_bytes += if punched { self.segment_len as u64 } else { 0 };
        }
    }
}
