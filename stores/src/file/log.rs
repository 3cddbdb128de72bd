//! The log's bookkeeping: which record is where, which segment is what. No I/O, no waiting.
//!
//! A segment is filled in memory, written in one piece, and then read from the device. What is freed leaves holes; a segment without
//! live records is free again, one with few is [cleaned](Log::victim): its live records are appended anew. Records are found by their place,
//! and the place is in a table by handle, so that records can move.

use std::sync::Arc;

use userswap_store::{Handle, PageKey};

use super::book::Book;
use super::buffer::{Buffer, Full, blocks};
use super::place::Place;
use super::record::Kind;
use super::segment::{Segment, State};
use crate::slab::{Name, Slab};

/// So many segments puts leave free, for cleaning to move records into.
const KEPT_FOR_CLEANING: usize = 1;

pub(super) struct Log {
    segment_len: usize,
    /// So many segments there may be.
    most: usize,
    pub(super) places: Slab<Place>,
    pub(super) segments: Vec<Segment>,
    /// The segment that is being filled.
    open: Option<u32>,
    /// Segments with nothing in them, the next to be used last: those that have room on the device before others, the one that was freed first before others.
    free: Vec<u32>,
    /// Eras so far.
    eras: u32,
    /// Segments without records that a dead process may be writing to.
    suspects: Vec<u32>,
    /// Where all of it is written down for who comes after this process.
    pub(super) book: Option<Arc<Book>>,
    pub(super) spares: Vec<Buffer>,
    pub(super) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) pages: u64,
    pub(super) live_bytes: u64,
    pub(super) raw: u64,
    pub(super) filled: u64,
    /// Buffers of segments that aren't written yet.
    pub(super) buffers: usize,
    /// Of these, how many are on their way, and how many couldn't be written.
    pub(super) writing: usize,
    pub(super) failed: usize,
    /// Segments that take room on the device.
    pub(super) allocated: usize,
}

/// A found record.
pub(super) enum Found<'a> {
    /// In memory.
    Here(&'a [u8]),
    /// On the device; the segment won't be used again before [`Log::unpin`].
    There { segment: u32, offset: usize, len: usize },
}

/// Where a record was, and by which name, when it was found.
#[derive(Clone, Copy)]
pub(super) struct Trace {
    name: Name,
    place: Place,
    era: u32,
}

/// A segment to be written.
pub(super) struct Write {
    pub(super) segment: u32,
    pub(super) bytes: Full,
    pub(super) len: usize,
}

/// A segment to be cleaned, pinned: its live records are appended anew, each by [`Log::moved`].
pub(super) struct Victim {
    pub(super) segment: u32,
    pub(super) used: usize,
    pub(super) records: Vec<Moving>,
}

/// A record that is to move.
pub(super) struct Moving {
    name: Name,
    place: Place,
}

impl Moving {
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.place.offset()..self.place.offset() + self.place.len()
    }

    pub(super) fn kind(&self) -> Kind {
        self.place.kind()
    }
}

impl Log {
    pub(super) fn new(segment_len: usize, most: usize, book: Option<Arc<Book>>) -> Self {
        Self {
            segment_len,
            most,
            places: Slab::new(),
            segments: Vec::new(),
            open: None,
            free: Vec::new(),
            eras: 0,
            suspects: Vec::new(),
            book,
            spares: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Memory it takes, buffers included.
    pub(super) fn bytes(&self) -> u64 {
        let buffers = (self.counts.buffers + self.spares.len()) * self.segment_len;
        let records: usize = self.segments.iter().map(|segment| segment.records.capacity() * 4).sum();
        let segments = self.segments.capacity() * size_of::<Segment>();
        let book = self.book.as_ref().map_or(0, |book| book.bytes());
        (buffers + records + segments) as u64 + self.places.bytes() + book
    }

    /// Whether there is room for another page's name.
    pub(super) fn has_names(&self) -> bool {
        self.book.as_ref().is_none_or(|book| self.counts.pages < book.room() as u64)
    }

    /// Appends a page's record to the open segment. `None` if that has no room, or there is none.
    pub(super) fn append(&mut self, key: PageKey, record: &[u8], kind: Kind) -> Option<Handle> {
        let (number, at) = self.make_room(record.len())?;
        let place = Place::new(number, at, record.len(), kind);
        let name = self.places.insert(place);
        let Ok(entry) = u32::try_from(name.entry) else {
            self.places.remove(name);
            return None;
        };
        self.fill(number, at, record, entry);
        if let Some(book) = &self.book {
            book.enter(entry, key, key.generation, place);
        }
        self.count(record.len(), kind);
        Some(name.handle(|entry| entry))
    }

    pub(super) fn count(&mut self, len: usize, kind: Kind) {
        self.counts.pages += 1;
        self.counts.live_bytes += len as u64;
        self.counts.raw += u64::from(kind == Kind::Raw);
        self.counts.filled += u64::from(kind == Kind::Filled);
    }

    /// Appends a record that is moving. `None` if there is no room; `Some(false)` if it doesn't need to move any more.
    pub(super) fn moved(&mut self, moving: &Moving, record: &[u8]) -> Option<bool> {
        if self.places.get(moving.name) != Some(&moving.place) {
            return Some(false);
        }
        let (number, at) = self.make_room(record.len())?;
        let entry = u32::try_from(moving.name.entry).ok()?;
        let to = Place::new(number, at, record.len(), moving.kind());
        if let Some(place) = self.places.get_mut(moving.name) {
            *place = to;
        }
        self.fill(number, at, record, entry);
        if let Some(book) = &self.book {
            book.moved(entry, to);
        }
        self.leave(moving.place);
        Some(true)
    }

    fn make_room(&mut self, len: usize) -> Option<(u32, usize)> {
        let number = self.open?;
        let segment = self.segment(number)?;
        let at = segment.used;
        (at + len <= self.segment_len).then_some((number, at))
    }

    fn fill(&mut self, number: u32, at: usize, record: &[u8], entry: u32) {
        let Some(segment) = self.segment_mut(number) else { return };
        if let State::Open(buffer) = &mut segment.state {
            buffer[at..at + record.len()].copy_from_slice(record);
        }
        segment.used = at + record.len();
        segment.live += record.len();
        segment.records.push(entry);
    }

    /// Ends the open segment: it is to be written. `None` if there is none, or nothing lives in it.
    pub(super) fn close(&mut self) -> Option<Write> {
        let number = self.open.take()?;
        let segment_len = self.segment_len;
        let segment = self.segment_mut(number)?;
        let (state, used) = (std::mem::replace(&mut segment.state, State::Free), segment.used);
        let State::Open(mut buffer) = state else { return None };
        if segment.live == 0 {
            self.begin_era(number);
            self.reset(number);
            self.counts.buffers -= 1;
            buffer.is_of(None, None);
            self.spares.push(buffer);
            return None;
        }
        let len = blocks(used).min(segment_len);
        buffer[used..len].fill(0);
        let bytes = Full(Arc::new(buffer));
        segment.state = State::Writing(bytes.clone());
        segment.records.shrink_to_fit();
        let fresh = !std::mem::replace(&mut segment.allocated, true);
        self.counts.allocated += usize::from(fresh);
        self.counts.writing += 1;
        Some(Write { segment: number, bytes, len })
    }

    /// Whether a segment can be opened: for cleaning, or for puts, with `room` bytes of the device that may be taken still.
    pub(super) fn can_open(&self, cleaning: bool, room: u64) -> bool {
        let keep = if cleaning { 0 } else { KEPT_FOR_CLEANING };
        self.could_be_opened() > keep
            && self.next_free().is_some_and(|(_, allocated)| allocated || room >= self.segment_len as u64)
    }

    fn could_be_opened(&self) -> usize {
        self.free.len() + self.most.saturating_sub(self.segments.len())
    }

    /// Opens a segment with this buffer.
    pub(super) fn open(&mut self, buffer: Buffer) {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.segments.push(Segment::new());
                u32::try_from(self.segments.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.begin_era(number);
        buffer.is_of(Some(number), None);
        if let Some(segment) = self.segment_mut(number) {
            segment.state = State::Open(buffer);
            segment.used = 0;
            self.open = Some(number);
            self.counts.buffers += 1;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What [`open`](Self::open) would take, and whether it has room on the device already.
    fn next_free(&self) -> Option<(usize, bool)> {
        match self.free.last() {
            Some(number) => Some((*number as usize, self.segment(*number)?.allocated)),
            None => (self.segments.len() < self.most).then_some((self.segments.len(), false)),
        }
    }

    /// A write ended.
    pub(super) fn written(&mut self, number: u32, ok: bool) {
        let Some(segment) = self.segments.get_mut(number as usize) else { return };
        let State::Writing(bytes) = &segment.state else { return };
        let bytes = bytes.clone();
        self.counts.writing -= 1;
        if ok {
            segment.state = State::Written;
            self.counts.buffers -= 1;
            bytes.0.is_of(None, None);
            // If somebody reads it still, its memory goes with the last of them.
            self.spares.extend(Arc::try_unwrap(bytes.0).ok().filter(|buffer| !buffer.was_left()));
        } else {
            segment.state = State::Failed(bytes);
            self.counts.failed += 1;
        }
        self.settle(number);
    }

    /// Segments that couldn't be written, to be tried again. With `elsewhere`, in other places where there are any.
    pub(super) fn again(&mut self, elsewhere: bool) -> Vec<Write> {
        let failed: Vec<u32> = (0..)
            .zip(&self.segments)
            .filter(|(_, segment)| matches!(segment.state, State::Failed(_)))
            .map(|(number, _)| number)
            .collect();
        failed.into_iter().filter_map(|number| self.write_again(number, elsewhere)).collect()
    }

    fn write_again(&mut self, number: u32, elsewhere: bool) -> Option<Write> {
        let to = if elsewhere { self.relocate(number) } else { number };
        let segment_len = self.segment_len;
        let segment = self.segment_mut(to)?;
        let State::Failed(bytes) = &segment.state else { return None };
        let (bytes, len) = (bytes.clone(), blocks(segment.used).min(segment_len));
        segment.state = State::Writing(bytes.clone());
        self.counts.failed -= 1;
        self.counts.writing += 1;
        Some(Write { segment: to, bytes, len })
    }

    /// Gives an unwritten segment another number, and never uses the old one again. The number it has then.
    fn relocate(&mut self, from: u32) -> u32 {
        let Some((to, _)) = self.next_free() else { return from };
        let Ok(to) = u32::try_from(to) else { return from };
        if self.free.pop().is_none() {
            self.segments.push(Segment::new());
        }
        let Some(segment) = self.segment_mut(from) else { return from };
        let moving = std::mem::replace(segment, Segment { state: State::Set, ..Segment::new() });
        let is_of = |number, before| {
            if let State::Failed(bytes) = &moving.state {
                bytes.0.is_of(Some(number), before);
            }
        };
        is_of(to, Some(from));
        for entry in &moving.records {
            if let Some(name) = self.places.name(*entry as usize)
                && let Some(place) = self.places.get_mut(name)
                && place.segment() == from
            {
                *place = place.in_segment(to);
                if let Some(book) = &self.book {
                    book.moved(*entry, *place);
                }
            }
        }
        is_of(to, None);
        if let Some(segment) = self.segment_mut(to) {
            let was_allocated = segment.allocated;
            *segment = Segment { allocated: true, ..moving };
            // The old one's room isn't given back: who knows what is the matter with it.
            self.counts.allocated += usize::from(!was_allocated);
        }
        to
    }

    /// Where the record is that a handle names.
    pub(super) fn trace(&self, handle: Handle) -> Option<Trace> {
        let name = Name::of(handle)?;
        let place = *self.places.get(name)?;
        Some(Trace { name, place, era: self.segment(place.segment())?.era })
    }

    /// Whether what a trace leads to is a record still, alive or not.
    pub(super) fn is_there(&self, trace: &Trace) -> bool {
        self.segment(trace.place.segment()).is_some_and(|segment| segment.era == trace.era)
    }

    /// Has a record live again that was freed, by another handle, for this page; it is sealed under this generation. `None` if it is overwritten, or lives.
    pub(super) fn revive(&mut self, trace: &Trace, key: PageKey, sealed: u32) -> Option<Handle> {
        let Trace { name, place, .. } = *trace;
        let number = place.segment();
        if self.places.get(name).is_some() || !self.is_there(trace) || !self.has_names() {
            return None;
        }
        if matches!(self.segment(number)?.state, State::Free) {
            // What cleaning needs isn't given away.
            if self.could_be_opened() <= KEPT_FOR_CLEANING {
                return None;
            }
            let at = self.free.iter().position(|free| *free == number)?;
            self.free.remove(at);
            self.segment_mut(number)?.state = State::Written;
        }
        let name = self.places.insert(place);
        let Ok(entry) = u32::try_from(name.entry) else {
            self.places.remove(name);
            return None;
        };
        let segment = self.segment_mut(number)?;
        segment.live += place.len();
        segment.records.push(entry);
        if let Some(book) = &self.book {
            book.enter(entry, key, sealed, place);
        }
        self.count(place.len(), place.kind());
        Some(name.handle(|entry| entry))
    }

    /// The record a handle names. A record on the device is pinned.
    pub(super) fn find(&mut self, handle: Handle) -> Option<Found<'_>> {
        let place = *self.places.get(Name::of(handle)?)?;
        let (from, len) = (place.offset(), place.len());
        let segment = self.segments.get_mut(place.segment() as usize)?;
        match &segment.state {
            State::Open(buffer) => buffer.get(from..from + len).map(Found::Here),
            State::Writing(bytes) | State::Failed(bytes) => bytes.0.get(from..from + len).map(Found::Here),
            State::Written => {
                segment.readers += 1;
                Some(Found::There { segment: place.segment(), offset: from, len })
            }
            State::Free | State::Set => None,
        }
    }

    /// So many reads ended.
    pub(super) fn unpin(&mut self, number: u32, reads: usize) {
        if let Some(segment) = self.segment_mut(number) {
            segment.readers -= u32::try_from(reads).unwrap_or(0);
            self.settle(number);
        }
    }

    /// Forgets a record.
    pub(super) fn free(&mut self, handle: Handle) -> bool {
        let Some(name) = Name::of(handle) else { return false };
        let Some(place) = self.places.remove(name) else { return false };
        if let Some(book) = &self.book {
            book.remove(name.entry);
        }
        self.counts.pages -= 1;
        self.counts.live_bytes -= place.len() as u64;
        self.counts.raw -= u64::from(place.kind() == Kind::Raw);
        self.counts.filled -= u64::from(place.kind() == Kind::Filled);
        self.leave(place);
        true
    }

    /// A record isn't at this place any more.
    fn leave(&mut self, place: Place) {
        if let Some(segment) = self.segment_mut(place.segment()) {
            segment.live -= place.len();
            self.settle(place.segment());
        }
    }

    /// What is without live records is used again, unless somebody has to do with it still.
    fn settle(&mut self, number: u32) {
        let Some(segment) = self.segments.get_mut(number as usize) else { return };
        if segment.live != 0 || segment.readers != 0 {
            return;
        }
        match &segment.state {
            State::Open(_) => {
                segment.used = 0;
                segment.records.clear();
                self.begin_era(number);
            }
            State::Written => self.reset(number),
            State::Failed(_) => {
                self.counts.failed -= 1;
                self.counts.buffers -= 1;
                self.begin_era(number);
                self.reset(number);
            }
            State::Free | State::Writing(_) | State::Set => {}
        }
    }

    /// Nothing lives in it. What it has on the device is there still.
    pub(super) fn reset(&mut self, number: u32) {
        let Some(segment) = self.segment_mut(number) else { return };
        let Segment { allocated, era, used, suspect, .. } = *segment;
        *segment = Segment { allocated, era, used, suspect, ..Segment::new() };
        if suspect {
            segment.state = State::Set;
            self.suspects.push(number);
            // What is on the device there doesn't live again.
            self.begin_era(number);
            return;
        }
        let has_room = |free: &u32| self.segment(*free).is_some_and(|free| free.allocated);
        let at = self.free.partition_point(|free| !has_room(free));
        self.free.insert(at, number);
    }

    /// What was in a segment is overwritten from now on, or isn't there.
    pub(super) fn begin_era(&mut self, number: u32) {
        self.eras = self.eras.wrapping_add(1);
        let era = self.eras;
        if let Some(segment) = self.segment_mut(number) {
            segment.era = era;
        }
    }

    /// The written segment with the most dead bytes, if these are at least `least`. Pinned.
    pub(super) fn victim(&mut self, least: usize) -> Option<Victim> {
        let number = self.worst(least)?;
        let segment = self.segments.get_mut(number as usize)?;
        segment.readers += 1;
        let here = |entry: &u32| {
            let name = self.places.name(*entry as usize)?;
            let place = *self.places.get(name)?;
            (place.segment() == number).then_some(Moving { name, place })
        };
        let records = segment.records.iter().filter_map(here).collect();
        Some(Victim { segment: number, used: segment.used, records })
    }

    pub(super) fn has_victim(&self, least: usize) -> bool {
        self.worst(least).is_some()
    }

    fn worst(&self, least: usize) -> Option<u32> {
        let dead = |segment: &Segment| segment.used - segment.live;
        let (number, segment) = (0..)
            .zip(&self.segments)
            .filter(|(_, segment)| matches!(segment.state, State::Written) && !segment.unreadable)
            .max_by_key(|(_, segment)| dead(segment))?;
        (dead(segment) >= least).then_some(number)
    }

    /// Not to be cleaned again.
    pub(super) fn give_up(&mut self, number: u32) {
        if let Some(segment) = self.segment_mut(number) {
            segment.unreadable = true;
        }
    }

    /// A free segment that takes room on the device, set aside until [`given_back`](Self::given_back). One that a dead process may be writing to first, if giving
    /// room back waits for that.
    pub(super) fn set_aside(&mut self, drains: bool) -> Option<u32> {
        if drains && let Some(number) = self.suspects.pop() {
            return Some(number);
        }
        let at =
            self.free.iter().position(|number| self.segment(*number).is_some_and(|free| free.allocated))?;
        let number = self.free.remove(at);
        self.begin_era(number);
        self.segment_mut(number)?.state = State::Set;
        Some(number)
    }

    pub(super) fn given_back(&mut self, number: u32, done: bool) {
        let Some(segment) = self.segments.get_mut(number as usize) else { return };
        // One that a dead process may be writing to isn't known to take any room.
        let was_allocated = std::mem::replace(&mut segment.allocated, !done);
        self.counts.allocated = self.counts.allocated + usize::from(!done) - usize::from(was_allocated);
        if done
            && std::mem::replace(&mut segment.suspect, false)
            && let Some(book) = &self.book
        {
            book.absolve(number);
        }
        self.reset(number);
    }

    /// The share of segments that can be had without cleaning, in percent.
    pub(super) fn percent_free(&self) -> usize {
        self.could_be_opened() * 100 / self.most.max(1)
    }

    /// Lets go of memory that nothing needs.
    pub(super) fn trim(&mut self) {
        let idle = |segment: &Segment| matches!(segment.state, State::Open(_)) && segment.live == 0;
        if self.open.is_some_and(|number| self.segment(number).is_some_and(idle)) {
            let _ = self.close();
        }
        self.spares.clear();
        self.places.trim();
        if let Some(book) = &self.book {
            book.shrink(self.places.end());
        }
        for segment in &mut self.segments {
            if matches!(segment.state, State::Free) {
                segment.records = Vec::new();
            }
        }
    }

    fn segment(&self, number: u32) -> Option<&Segment> {
        self.segments.get(number as usize)
    }

    pub(super) fn segment_mut(&mut self, number: u32) -> Option<&mut Segment> {
        self.segments.get_mut(number as usize)
    }
}
