//! What to bring in before it is asked for: pages at even distances, as a thread goes through them.
//!
//! One of these a thread, shown the pages the thread had to wait for. A thread may go through several places in turn, so a few streams are
//! told apart by where they are. A stream's stride is what most of its last steps were (a majority vote, which a few steps
//! aside don't change). So much is brought in along it as was used of what came before: twice as much when all was, half when something
//! else was wanted.

/// The streams of one thread.
#[derive(Clone, Debug)]
pub struct Strides {
    /// The one that went on last first.
    streams: [Stream; STREAMS],
    /// Pages brought in at once, at most.
    most: u32,
}

/// Pages to bring in beside the one that is waited for: `count` of them, the first a `stride` after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// From one to the next, in pages; never 0.
    pub stride: i64,
    /// How many; 0 for none.
    pub count: u32,
}

/// Streams told apart.
const STREAMS: usize = 8;

/// Steps that have a vote.
const VOTERS: usize = 8;

/// A page farther from a stream than this, in pages, is none of its steps.
const REACH: u64 = 256;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where it is, with what was brought in; `None` for none.
    at: Option<u64>,
    steps: [i64; VOTERS],
    /// Steps taken, up to all that vote.
    taken: usize,
    next_vote: usize,
    /// What was brought in last, along which stride.
    ahead: u32,
    stride: i64,
}

impl Strides {
    /// Nothing seen yet. At most `most` pages are to be brought in at once.
    pub fn new(most: u32) -> Self {
        Self { streams: [Stream::default(); STREAMS], most }
    }

    /// A page is waited for. What else is worth bringing in.
    pub fn asked(&mut self, page: u64) -> Ahead {
        let distance = |stream: &Stream| stream.at.map_or(u64::MAX, |at| page.abs_diff(at));
        let on_the_way = |stream: &Stream| {
            stream.at.is_some_and(|at| at.checked_add_signed(stream.stride) == Some(page)) && stream.ahead > 0
        };
        let nearest = || {
            let near = (0..STREAMS).min_by_key(|at| distance(&self.streams[*at]))?;
            (distance(&self.streams[near]) <= REACH).then_some(near)
        };
        let found = self.streams.iter().position(on_the_way).or_else(nearest);
        let at = found.unwrap_or(STREAMS - 1);
        self.streams[..=at].rotate_right(1);
        let stream = &mut self.streams[0];
        if found.is_none() {
            *stream = Stream::default();
        }
        stream.go(page, self.most)
    }
}

impl Stream {
    fn go(&mut self, page: u64, most: u32) -> Ahead {
        let all_used =
            self.ahead > 0 && self.at.is_some_and(|at| at.checked_add_signed(self.stride) == Some(page));
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
        let Some(end) = end else { return none };
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
        let mut strides = Strides::new(32);
        let (mut there, mut unused) = (HashSet::new(), HashSet::new());
        let mut came = Came { touched: 0, asked: 0, along: 0, used: 0 };
        for page in pages {
            came.touched += 1;
            came.used += usize::from(unused.remove(&page));
            if !there.insert(page) {
                continue;
            }
            came.asked += 1;
            let ahead = strides.asked(page);
            for n in 1..=i64::from(ahead.count) {
                let other = page.checked_add_signed(n * ahead.stride).unwrap();
                if there.insert(other) {
                    came.along += 1;
                    unused.insert(other);
                }
            }
        }
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
        for stride in [2, 3, 7, 50] {
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
        let mut strides = Strides::new(32);
        (0..20).rev().for_each(|page| {
            let ahead = strides.asked(page);
            assert!(page.checked_add_signed(ahead.stride * i64::from(ahead.count)).is_some());
        });
        (u64::MAX - 20..=u64::MAX).for_each(|page| {
            strides.asked(page);
        });
        strides.asked(0);
    }
}
