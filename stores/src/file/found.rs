//! What a dead process has left of a log: out of its book.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use userswap_store::{Handle, PageKey};

use super::book::Book;
use super::buffer::{Buffer, Full};
use super::log::Log;
use super::record::{HEADER, UNIT};
use super::segment::{Segment, State};

/// A page, by the name it has now.
pub(super) struct FoundPage {
    pub(super) key: PageKey,
    pub(super) handle: Handle,
    /// The generation that its record is sealed under.
    pub(super) sealed: u32,
}

impl Log {
    /// The log that a book tells of, of a device that is as long as `on_device` segments.
    ///
    /// What wasn't on the device yet, as far as anybody was told, is in memory still and counts as what couldn't be written: it is to be
    /// [written again](Self::again), in the same place. Should the device be at it still for the dead process, it writes the same. But when all
    /// of that is freed, the place isn't used for anything else until the device has said that it is done with it.
    ///
    /// # Errors
    /// When buffers can't be mapped.
    pub(super) fn adopt(
        segment_len: usize,
        most: usize,
        book: &Arc<Book>,
        on_device: usize,
    ) -> io::Result<(Self, Vec<FoundPage>)> {
        let mut log = Self::new(segment_len, most, Some(Arc::clone(book)));
        let (mut buffers, mut moved) = (HashMap::new(), HashMap::new());
        for left in book.buffers_left()? {
            book.suspect(left.segment);
            if let Some(before) = left.before {
                moved.insert(before, left.segment);
                book.suspect(before);
            }
            buffers.insert(left.segment, Buffer::left(left.area, left.bytes));
        }
        let mut found = Vec::new();
        for noted in book.noted() {
            let mut place = noted.place;
            if let Some(to) = moved.get(&place.segment()) {
                place = place.in_segment(*to);
            }
            let end = place.offset() + place.len();
            let fits = (place.segment() as usize) < most && end <= segment_len;
            let Ok(entry) = u32::try_from(noted.entry) else { continue };
            if !fits || place.len() < HEADER || !place.len().is_multiple_of(UNIT) {
                book.remove(noted.entry);
                continue;
            }
            if place != noted.place {
                book.moved(entry, place);
            }
            let name = log.places.insert_at(noted.entry, place);
            log.have_segments(place.segment() as usize + 1);
            log.count(place.len(), place.kind());
            if let Some(segment) = log.segment_mut(place.segment()) {
                segment.live += place.len();
                segment.used = segment.used.max(end);
                segment.records.push(entry);
            }
            found.push(FoundPage {
                key: noted.key,
                handle: name.handle(|entry| entry),
                sealed: noted.sealed,
            });
        }
        let most_used = buffers.keys().map(|number| *number as usize + 1).max().unwrap_or(0);
        log.have_segments(on_device.max(most_used).min(most));
        for number in book.suspects() {
            if let Some(segment) = log.segment_mut(number) {
                segment.suspect = true;
            }
        }
        for number in 0..u32::try_from(log.segments.len()).unwrap_or(u32::MAX) {
            let buffer = buffers.remove(&number);
            let Some(segment) = log.segment_mut(number) else { continue };
            segment.allocated = segment.live > 0 || (number as usize) < on_device;
            let (allocated, lives) = (segment.allocated, segment.live > 0);
            segment.state = match buffer {
                Some(buffer) if lives => State::Failed(Full(Arc::new(buffer))),
                // What is in a buffer without records is nobody's.
                _ if lives => State::Written,
                _ => State::Free,
            };
            let failed = matches!(segment.state, State::Failed(_));
            log.counts.failed += usize::from(failed);
            log.counts.buffers += usize::from(failed);
            log.counts.allocated += usize::from(allocated);
            log.begin_era(number);
            if !lives {
                log.reset(number);
            }
        }
        Ok((log, found))
    }

    fn have_segments(&mut self, count: usize) {
        if self.segments.len() < count {
            self.segments.resize_with(count, Segment::new);
        }
    }
}
