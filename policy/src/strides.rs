//! What to bring in before it is asked for: pages at even distances, as threads go through them.
//!
//! One of these an address space, shown the pages that were waited for. Threads may go through several places, each in turn, so streams are
//! told apart by where they are, which tells threads apart as well. A stream's stride is what most of its last steps were (a majority vote,
//! which a few steps aside don't change; Leap, USENIX ATC 2020).
//!
//! Whether a page that came along is used can't be seen, for touching it raises no fault. But whoever waits for the page where a stream was to go on
//! has come past all that came along: that is the verdict (one that steps over some of it isn't told from one that doesn't), and until then it is open. What is open when a stream ends was in vain. So much is brought in
//! along a stream as was used of what came before: twice as much when all was, half when something else was wanted.

/// The streams of one address space.
#[derive(Clone, Debug, Default)]
pub struct Strides {
    /// The one that went on last first.
    streams: [Stream; STREAMS],
    verdicts: Verdicts,
}

/// Pages to bring in beside the one that is waited for: `count` of them, the first a `stride` after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// From one to the next, in pages; never 0.
    pub stride: i64,
    /// How many; 0 for none.
    pub count: u32,
}

/// What became of pages that came along.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdicts {
    /// Somebody came past them.
    pub used: u32,
    /// Their stream ended before.
    pub unused: u32,
}

/// Streams told apart.
const STREAMS: usize = 8;

/// Steps that have a vote.
const VOTERS: usize = 8;

/// A page farther from a stream than this, in pages, is none of its steps.
const REACH: u64 = 256;

/// A stream still goes on where it was to if it leaves so many of its steps out: what it would have waited for there was in memory.
const LEFT_OUT: i64 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where it is, with what was brought in; `None` for none.
    at: Option<u64>,
    steps: [i64; VOTERS],
    /// Steps taken, up to all that vote.
    taken: usize,
    next_vote: usize,
    /// What was to be brought in last, along which stride.
    ahead: u32,
    stride: i64,
    /// What came along and has no verdict yet.
    open: u32,
}

impl Strides {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A page is waited for. What else is worth bringing in, `most` pages at most; [`came`](Self::came) follows if anything is.
    pub fn asked(&mut self, page: u64, most: u32) -> Ahead {
        let distance = |stream: &Stream| stream.at.map_or(u64::MAX, |at| page.abs_diff(at));
        let nearest = || {
            let near = (0..STREAMS).min_by_key(|at| distance(&self.streams[*at]))?;
            (distance(&self.streams[near]) <= REACH).then_some(near)
        };
        let found = self.streams.iter().position(|stream| stream.goes_on_at(page)).or_else(nearest);
        let at = found.unwrap_or(STREAMS - 1);
        self.streams[..=at].rotate_right(1);
        let stream = &mut self.streams[0];
        if found.is_none() {
            self.verdicts.unused += stream.open;
            *stream = Stream::default();
        }
        stream.go(page, most, &mut self.verdicts)
    }

    /// So many came along with the page asked for last.
    pub fn came(&mut self, pages: u32) {
        self.streams[0].open = pages;
    }

    /// The verdicts since the last time.
    pub fn take_verdicts(&mut self) -> Verdicts {
        std::mem::take(&mut self.verdicts)
    }
}

impl Stream {
    /// Whether `page` is where it was to go on, with what was brought in behind it.
    fn goes_on_at(&self, page: u64) -> bool {
        let Some(at) = self.at.filter(|_| self.ahead > 0) else { return false };
        let way = page.wrapping_sub(at).cast_signed();
        way % self.stride == 0 && (1..=LEFT_OUT).contains(&(way / self.stride))
    }

    fn go(&mut self, page: u64, most: u32, verdicts: &mut Verdicts) -> Ahead {
        let all_used = self.goes_on_at(page);
        let open = std::mem::take(&mut self.open);
        *(if all_used { &mut verdicts.used } else { &mut verdicts.unused }) += open;
        let none = Ahead { stride: 1, count: 0 };
        let Some(at) = self.at.replace(page) else { return none };
        let step = if all_used { self.stride } else { page.wrapping_sub(at).cast_signed() };
        self.steps[self.next_vote] = step;
        self.next_vote = (self.next_vote + 1) % VOTERS;
        self.taken = (self.taken + 1).min(VOTERS);
        let Some(stride) = self.majority().filter(|stride| *stride != 0) else {
            self.ahead = 0;
            return none;
        };
        let count = if all_used || self.ahead == 0 { (self.ahead * 2).max(1) } else { self.ahead / 2 };
        // Nothing is brought in for a step that isn't the stream's.
        let count = if step == stride { count.min(most) } else { 0 };
        let end = i64::from(count).checked_mul(stride).and_then(|way| page.checked_add_signed(way));
        let Some(end) = end else {
            self.ahead = 0;
            return none;
        };
        (self.ahead, self.stride, self.at) = (count, stride, Some(end));
        Ahead { stride, count }
    }

    /// What more than half of the steps were, once there are enough.
    fn majority(&self) -> Option<i64> {
        let steps = &self.steps[..self.taken];
        let (mut candidate, mut lead) = (0, 0u32);
        for step in steps {
            match (lead, *step == candidate) {
                (0, _) => (candidate, lead) = (*step, 1),
                (_, true) => lead += 1,
                (_, false) => lead -= 1,
            }
        }
        let votes = steps.iter().filter(|step| **step == candidate).count();
        (steps.len() >= VOTERS / 2 && votes * 2 > steps.len()).then_some(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    struct Came {
        touched: usize,
        /// Waited for.
        asked: usize,
        along: usize,
        used: usize,
    }

    /// A thread touches pages; what is there stays.
    fn touch(pages: impl Iterator<Item = u64>) -> Came {
        let mut strides = Strides::new();
        let (mut there, mut unused) = (HashSet::new(), HashSet::new());
        let mut came = Came { touched: 0, asked: 0, along: 0, used: 0 };
        for page in pages {
            came.touched += 1;
            came.used += usize::from(unused.remove(&page));
            if !there.insert(page) {
                continue;
            }
            came.asked += 1;
            let ahead = strides.asked(page, 32);
            let before = came.along;
            for n in 1..=i64::from(ahead.count) {
                let other = page.checked_add_signed(n * ahead.stride).unwrap();
                if there.insert(other) {
                    came.along += 1;
                    unused.insert(other);
                }
            }
            if ahead.count > 0 {
                strides.came(u32::try_from(came.along - before).unwrap());
            }
        }
        let Verdicts { used, unused } = strides.take_verdicts();
        let open: u32 = strides.streams.iter().map(|stream| stream.open).sum();
        assert_eq!((used + unused + open) as usize, came.along, "each has a verdict, or will have");
        // None is said to be used that isn't, but for a tenth that is stepped over. The last of each stream wasn't told of.
        assert!(used as usize * 10 <= came.used * 11, "{used} of {}", came.used);
        assert!(came.used.saturating_sub(used as usize) <= (open + unused) as usize);
        came
    }

    fn random(count: usize, of: u64) -> impl Iterator<Item = u64> {
        let mut state = 7u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % of
        })
        .take(count)
    }

    /// At least 80 % of what came along is used, and most of what is touched came along.
    fn assert_good(name: &str, came: &Came) {
        assert!(came.used * 100 >= came.along * 80, "{name}: {} of {} used", came.used, came.along);
        assert!(came.asked * 2 < came.touched, "{name}: {} of {} waited for", came.asked, came.touched);
    }

    #[test]
    fn in_order_forwards_backwards_and_in_strides() {
        assert_good("in order", &touch(0..1_000));
        assert_good("from the end", &touch((10_000..11_000).rev()));
        for stride in [2, 3, 7, 17, 50] {
            assert_good("strided", &touch((0..1_000).map(|n| n * stride)));
        }
    }

    #[test]
    fn several_at_once() {
        let starts = [0u64, 100_000, 200_000, 300_000];
        assert_good("in turn", &touch((0..4_000).map(|n| starts[n % 4] + n as u64 / 4 * (n as u64 % 4 + 1))));
        // Not in turn, but as it comes.
        let mut at = starts;
        let mixed: Vec<u64> = random(4_000, 4)
            .map(|which| {
                let at = &mut at[usize::try_from(which).unwrap()];
                *at += which + 1;
                *at
            })
            .collect();
        assert_good("mixed", &touch(mixed.into_iter()));
    }

    #[test]
    fn steps_aside_dont_end_a_stream() {
        let pages = (0..2_000u64).map(|n| if n % 10 == 9 { 1_000_000 + n * 997 } else { n });
        assert_good("with steps aside", &touch(pages));
    }

    #[test]
    fn random_pages_come_alone() {
        for of in [1_000, 10_000, 1_000_000] {
            let came = touch(random(20_000, of));
            assert!(came.along * 20 <= came.asked, "{} along with {} of {of}", came.along, came.asked);
        }
    }

    #[test]
    fn the_ends_of_memory_are_no_trouble() {
        let mut strides = Strides::new();
        (0..20).rev().for_each(|page| {
            let ahead = strides.asked(page, 32);
            assert!(page.checked_add_signed(ahead.stride * i64::from(ahead.count)).is_some());
        });
        (u64::MAX - 20..=u64::MAX).for_each(|page| {
            strides.asked(page, 32);
        });
        strides.asked(0, 32);
    }
}
