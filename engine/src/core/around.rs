//! How many pages come back together.

use super::index::PageIndex;

/// Fault-around: how many pages to bring in with one. Several threads may each read a stretch in order, so a few streams are
/// followed at once; each one's window doubles while faults come where it ended. A fault that continues none starts a new stream of
/// one page, in place of the one that went on least recently.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around {
    /// Most recently continued first.
    streams: [Stream; STREAMS],
    /// What was said of ranges of pages, the latest first.
    habits: [(u32, u32, Habit); HABITS],
    /// The last window was that of a range of which something was said, and no stream's.
    was_said: bool,
}

/// How a range is said to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Habit {
    /// Nothing was said: fault-around finds out.
    #[default]
    Unknown,
    /// In order: all that may come along does, from the first fault on.
    Sequential,
    /// In no order: nothing comes along.
    Random,
}

/// Ranges of which it is remembered.
const HABITS: usize = 4;

/// Streams followed in one region.
const STREAMS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The page after the last one brought in.
    next: u32,
    /// Pages brought in last; 0 for a stream that never was.
    window: u32,
}

impl Stream {
    /// A step over the edge of the last run, or a few pages past it, still continues it.
    fn is_continued_by(self, page: PageIndex) -> bool {
        page.0.wrapping_sub(self.next) < self.window
    }
}

impl Around {
    /// Remembers how the pages from `first` up to `end` are used, in place of what was said longest ago.
    pub(super) fn expect(&mut self, first: u32, end: u32, habit: Habit) {
        self.habits.rotate_right(1);
        self.habits[0] = (first, end, habit);
    }

    pub(super) fn window(&mut self, page: PageIndex, most: u32) -> u32 {
        let said = self.habits.iter().find(|(first, end, _)| (*first..*end).contains(&page.0));
        let said = said.map_or(Habit::Unknown, |(_, _, habit)| *habit);
        self.was_said = said != Habit::Unknown;
        match said {
            Habit::Unknown => {}
            Habit::Sequential => return most.max(1),
            Habit::Random => return 1,
        }
        let found = self.streams.iter().position(|stream| stream.is_continued_by(page));
        let at = found.unwrap_or(STREAMS - 1);
        let window = if found.is_some() { self.streams[at].window * 2 } else { 1 };
        self.streams[..=at].rotate_right(1);
        let window = window.clamp(1, most.max(1));
        self.streams[0] = Stream { next: page.0 + 1, window };
        window
    }

    /// The page after the last one brought in for the stream that `page` is in, if its window has grown to `whole`.
    pub(super) fn beyond(&self, page: PageIndex, whole: u32) -> Option<PageIndex> {
        let last = |stream: &&Stream| {
            stream.window >= whole
                && (stream.next - stream.window.min(stream.next)..stream.next).contains(&page.0)
        };
        self.streams.iter().find(last).map(|stream| PageIndex(stream.next))
    }

    pub(super) fn ran_to(&mut self, end: u32) {
        if !self.was_said {
            self.streams[0].next = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_streams_keep_their_windows_and_strays_get_one_page() {
        let mut around = Around::default();
        let mut at = [0, 1_000, 2_000];
        for round in 0..8 {
            for page in &mut at {
                let window = around.window(PageIndex(*page), 32);
                assert_eq!(window, (1 << round).min(32), "round {round}");
                *page += window;
                around.ran_to(*page);
            }
        }
        around.expect(500, 600, Habit::Random);
        around.expect(550, 560, Habit::Sequential);
        for (page, window) in [(500, 1), (501, 1), (550, 32), (559, 32), (560, 1)] {
            assert_eq!(around.window(PageIndex(page), 32), window);
        }
        for page in [90_000, 70_000, 50_000, 80_000, 60_000] {
            assert_eq!(around.window(PageIndex(page), 32), 1);
        }
    }
}
