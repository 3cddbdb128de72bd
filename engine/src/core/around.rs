//! How many pages come back together.

use super::index::PageIndex;
use userswap_policy::strides::Verdicts;

/// Fault-around: how many pages to bring in with one. Several threads may each read a stretch in order, so a few streams are
/// followed at once; each one's window doubles while faults come where it ended. A fault that continues none starts a new stream of
/// one page, in place of the one that went on least recently.
///
/// A fault where a stream was to go on says that its thread came past all that came along: that was used. What came along with the last window of a stream
/// that ends wasn't, as far as is known. While more than half was in vain windows stay short.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around {
    /// Most recently continued first.
    streams: [Stream; STREAMS],
    /// What was said of ranges of pages, the latest first.
    habits: [(u32, u32, Habit); HABITS],
    /// The last window was no stream's: something was said of the range, or it was ahead of all streams.
    was_aside: bool,
    /// Since they were last asked for.
    verdicts: Verdicts,
    /// Lately.
    lately: Verdicts,
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

/// The longest window while more comes along in vain than is used.
const SHORT: u32 = 4;

/// Verdicts remembered, about.
const LATELY: u32 = 256;

/// Streams followed in one region.
const STREAMS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The page after the last one brought in.
    next: u32,
    /// Pages brought in last; 0 for a stream that never was.
    window: u32,
    /// Pages that came along, and no fault behind them has told of yet.
    open: u32,
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

    /// A thread waits for `page`. How many pages are to come, that one first. `is_out` tells of pages before it whether they are out still: a stream that
    /// steps over such is none in order, though it may be one at even distances. As one of every other page steps over none where windows
    /// are even, one in eight is odd.
    pub(super) fn window(&mut self, page: PageIndex, most: u32, is_out: impl Fn(PageIndex) -> bool) -> u32 {
        let said = self.habits.iter().find(|(first, end, _)| (*first..*end).contains(&page.0));
        let said = said.map_or(Habit::Unknown, |(_, _, habit)| *habit);
        self.was_aside = said != Habit::Unknown;
        match said {
            Habit::Unknown => {}
            Habit::Sequential => return most.max(1),
            Habit::Random => return 1,
        }
        let found = self.streams.iter().position(|stream| stream.is_continued_by(page));
        let at = found.unwrap_or(STREAMS - 1);
        let stream = self.streams[at];
        let goes_on = found.is_some() && !(stream.next..page.0).any(|skipped| is_out(PageIndex(skipped)));
        match goes_on {
            true => self.judge(Verdicts { used: stream.open, unused: 0 }),
            false => self.judge(Verdicts { used: 0, unused: stream.open }),
        }
        self.streams[..=at].rotate_right(1);
        let most = if self.lately.unused > self.lately.used { most.min(SHORT) } else { most };
        let window = if goes_on { stream.window * 2 } else { 1 };
        let odd = u32::from(window >= most && page.0 / most.max(1) % 8 == 7);
        let window = window.min(most - odd.min(most)).max(1);
        self.streams[0] = Stream { next: page.0 + 1, window, open: 0 };
        window
    }

    /// What a stream will want next begins at `page`, and no thread waits for it yet. How many pages are to come.
    pub(super) fn go_on(&mut self, page: PageIndex, most: u32) -> u32 {
        let found = self.streams.iter().position(|stream| stream.is_continued_by(page));
        self.was_aside = found.is_none();
        let Some(at) = found else { return 1 };
        self.streams[..=at].rotate_right(1);
        let stream = &mut self.streams[0];
        // Whoever waits for `page` doesn't come here.
        stream.open += 1;
        stream.window = stream.window.min(most).max(1);
        stream.window
    }

    fn judge(&mut self, verdicts: Verdicts) {
        for kept in [&mut self.verdicts, &mut self.lately] {
            kept.used += verdicts.used;
            kept.unused += verdicts.unused;
        }
        if self.lately.used + self.lately.unused > LATELY {
            self.lately.used /= 2;
            self.lately.unused /= 2;
        }
    }

    /// The verdicts since the last time.
    pub(super) fn take_verdicts(&mut self) -> Verdicts {
        std::mem::take(&mut self.verdicts)
    }

    /// Whether the last window was no stream's.
    pub(super) fn was_aside(&self) -> bool {
        self.was_aside
    }

    /// The page after the last one brought in for the stream that `page` is in, if its window has grown to `whole`.
    pub(super) fn beyond(&self, page: PageIndex, whole: u32) -> Option<PageIndex> {
        let last = |stream: &&Stream| {
            stream.window >= whole
                && (stream.next - stream.window.min(stream.next)..stream.next).contains(&page.0)
        };
        self.streams.iter().find(last).map(|stream| PageIndex(stream.next))
    }

    /// The last window came to this end, and so many pages came along in it for the stream's sake: they await its verdict. What came for another reason, as a
    /// lot's neighbours do, says nothing of the stream, which goes on behind it all the same.
    pub(super) fn ran_to(&mut self, end: u32, along: u32) {
        if !self.was_aside {
            self.streams[0].next = end;
            self.streams[0].open += along;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_streams_keep_their_windows_and_strays_get_one_page() {
        let mut around = Around::default();
        let mut at = [0, 1_000, 4_096];
        for round in 0..8 {
            for page in &mut at {
                let window = around.window(PageIndex(*page), 32, |_| false);
                assert_eq!(window, (1 << round).min(32), "round {round}");
                around.ran_to(*page + window, window - 1);
                *page += window;
            }
        }
        around.expect(500, 600, Habit::Random);
        around.expect(550, 560, Habit::Sequential);
        for (page, window) in [(500, 1), (501, 1), (550, 32), (559, 32), (560, 1)] {
            assert_eq!(around.window(PageIndex(page), 32, |_| false), window);
        }
        for page in [90_000, 70_000, 50_000, 80_000, 60_000] {
            assert_eq!(around.window(PageIndex(page), 32, |_| false), 1);
        }
        // 1 + 2 + 4 + 8 + 16 + 32 + 32 + 32 pages a stream, of which the first of each window was asked for; nobody came past the last.
        let last = 3 * 31;
        assert_eq!(around.take_verdicts(), Verdicts { used: 3 * (127 - 8) - last, unused: last });
    }

    /// Every third page was taken for all of them, once a stream that had ended went on there by chance.
    #[test]
    fn who_steps_over_pages_that_are_out_is_no_stream_in_order() {
        for stride in [2, 3, 5] {
            let mut around = Around::default();
            let mut came = std::collections::HashSet::new();
            let mut touch = |around: &mut Around, page: u32| {
                if came.contains(&page) {
                    return 0;
                }
                let window = around.window(PageIndex(page), 32, |page| !came.contains(&page.0));
                came.extend(page..page + window);
                around.ran_to(page + window, window - 1);
                window
            };
            (0..600).for_each(|page| {
                touch(&mut around, page);
            });
            // It ended within a window, and another goes on behind it.
            let extra: u32 =
                (600..8_000).step_by(stride).map(|page| touch(&mut around, page).saturating_sub(1)).sum();
            assert!(extra < 600, "{extra} came along with every {stride}th page");
        }
    }

    /// Neighbours that came in lots were taken for a stream's, found unused where it ended, and real streams held short for it.
    #[test]
    fn what_comes_for_another_reason_has_no_verdict_and_the_stream_goes_on_behind_it() {
        let mut around = Around::default();
        for page in (0..100_000).step_by(1_000) {
            around.window(PageIndex(page), 32, |_| false);
            around.ran_to(page + 48, 0);
        }
        assert_eq!(around.take_verdicts(), Verdicts::default());
        for (page, window) in [(99_048, 2), (99_050, 4), (99_054, 8), (99_062, 16), (99_078, 32)] {
            assert_eq!(around.window(PageIndex(page), 32, |_| false), window);
            around.ran_to(page + window, window - 1);
        }
    }

    /// Where runs are short, most of what comes along past their ends would be in vain.
    #[test]
    fn windows_stay_short_while_more_comes_in_vain_than_is_used() {
        let mut around = Around::default();
        let (mut came, mut wanted) = (0, 0);
        for run in 0..400 {
            let (mut page, end) = (run * 1_000, run * 1_000 + 6);
            while page < end {
                let window = around.window(PageIndex(page), 32, |_| false);
                around.ran_to(page + window, window - 1);
                page += window;
            }
            came += page - run * 1_000;
            wanted += 6;
        }
        assert!(came * 4 <= wanted * 5, "{came} for {wanted}");
        for page in (500_000..502_000).step_by(4) {
            let window = around.window(PageIndex(page), 32, |_| false);
            around.ran_to(page + 4, 3);
            assert!(window <= 32 && (page < 501_900 || window >= 31), "{page}: {window}");
        }
    }
}
