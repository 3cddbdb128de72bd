//! How many pages come back together.

use super::index::PageIndex;

/// Fault-around: how many pages to bring in with one. Several threads may each read a stretch in order, so a few streams are
/// followed at once; each one's window doubles while faults come where it ended. A fault that continues none starts a new stream of
/// one page, in place of the one that went on least recently.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Around {
    /// Most recently continued first.
    streams: [Stream; STREAMS],
}

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
    pub(super) fn window(&mut self, page: PageIndex, most: u32) -> u32 {
        let found = self.streams.iter().position(|stream| stream.is_continued_by(page));
        let at = found.unwrap_or(STREAMS - 1);
        let window = if found.is_some() { self.streams[at].window * 2 } else { 1 };
        self.streams[..=at].rotate_right(1);
        let window = window.clamp(1, most.max(1));
        self.streams[0] = Stream { next: page.0 + 1, window };
        window
    }

    pub(super) fn ran_to(&mut self, end: u32) {
        self.streams[0].next = end;
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
        for page in [90_000, 70_000, 50_000, 80_000, 60_000] {
            assert_eq!(around.window(PageIndex(page), 32), 1);
        }
    }
}
