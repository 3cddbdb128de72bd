//! Which pages a program touched and when, as a file.
//!
//! ```text
//! userswap trace 1⏎
//! command: python3 analyse.py⏎         any number of lines `name: value`, in any order;
//! page-bytes: 4096⏎                    these two and window-us have to be there
//! window-us: 50000⏎
//! ⏎
//! numbers, 7 bits a byte, the lowest first, the top bit set in all but the last byte of each:
//!   0 T        a window ends; it lasted T microseconds
//!   1          what follows in this window was there for the first time, in the order of its addresses: when it was
//!              touched within the window isn't known
//!   2+2*D      the page at distance D from the one after the last; D is 2*d, or -2*d-1 where it is before that
//!   3+2*D L    L+2 pages in a row, the first at distance D
//! ```
//!
//! A page is in a window once, when it was first touched: that it was touched again before the window ended can't be seen. So
//! a trace says nothing of what happens within a window; a memory in which not even a window's pages have room can't be judged by it.

use std::time::Duration;

/// Accesses to pages, in windows of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// What was run.
    pub command: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// How long a window was meant to last.
    pub window: Duration,
    pages: Vec<u64>,
    windows: Vec<Window>,
}

/// One window of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    /// Where its pages end, among all.
    end: usize,
    /// Where those begin that were there for the first time.
    found: usize,
    lasted: Duration,
}

/// What is wrong with a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TraceError {
    /// It doesn't begin as one does.
    #[error("this is no trace: it doesn't begin with \"userswap trace 1\"")]
    NotATrace,
    /// A line of the head is missing or isn't what it should be.
    #[error("the trace's head has no {0} that makes sense")]
    Head(&'static str),
    /// It ends in the middle of something, or says what can't be.
    #[error("the trace is damaged at byte {0}")]
    Damaged(usize),
}

const FIRST_LINE: &str = "userswap trace 1\n";

/// More pages than a trace that anybody records has; a damaged one could name any number.
const MOST: usize = 1 << 28;

impl Trace {
    /// One without windows.
    pub fn new(command: String, page_bytes: u64, window: Duration) -> Self {
        Self { command, page_bytes, window, pages: Vec::new(), windows: Vec::new() }
    }

    /// Adds a window: the numbers of the pages in the order they were touched, and those that were `found` at its end.
    pub fn add(&mut self, touched: &[u64], found: &[u64], lasted: Duration) {
        self.pages.extend(touched);
        let at = self.pages.len();
        self.pages.extend(found);
        self.windows.push(Window { end: self.pages.len(), found: at, lasted });
    }

    /// The numbers of the pages, in the order they were touched.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// How many windows there are.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// How long all windows lasted.
    pub fn lasted(&self) -> Duration {
        self.windows.iter().map(|window| window.lasted).sum()
    }

    /// Different pages.
    pub fn footprint(&self) -> usize {
        let mut pages = self.pages.clone();
        pages.sort_unstable();
        pages.dedup();
        pages.len()
    }

    /// The most pages of one window.
    pub fn widest(&self) -> usize {
        let starts = std::iter::once(0).chain(self.windows.iter().map(|window| window.end));
        self.windows.iter().zip(starts).map(|(window, start)| window.end - start).max().unwrap_or(0)
    }

    /// As it stands in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let command: String = self.command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut out = format!(
            "{FIRST_LINE}command: {command}\npage-bytes: {}\nwindow-us: {}\n\n",
            self.page_bytes,
            self.window.as_micros()
        )
        .into_bytes();
        let (mut next, mut from) = (0, 0);
        for window in &self.windows {
            put_runs(&mut out, &self.pages[from..window.found], &mut next);
            if window.found < window.end {
                put(&mut out, 1);
                put_runs(&mut out, &self.pages[window.found..window.end], &mut next);
            }
            put(&mut out, 0);
            put(&mut out, u64::try_from(window.lasted.as_micros()).unwrap_or(u64::MAX));
            from = window.end;
        }
        out
    }

    /// From the bytes of a file.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TraceError> {
        Self::from_bytes_within(bytes, MOST)
    }

    /// The same of a trace that has no more than `most` pages: a few bytes can name millions of them.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn from_bytes_within(bytes: &[u8], most: usize) -> Result<Self, TraceError> {
        let rest = bytes.strip_prefix(FIRST_LINE.as_bytes()).ok_or(TraceError::NotATrace)?;
        let end = rest.windows(2).position(|two| two == b"\n\n").ok_or(TraceError::Head("end"))?;
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| TraceError::Head("text"))?;
        let value = |name: &'static str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value).ok_or(TraceError::Head(name))
        };
        let number = |name| value(name)?.parse::<u64>().map_err(|_| TraceError::Head(name));
        let mut trace = Self::new(
            value("command")?.to_owned(),
            number("page-bytes")?,
            Duration::from_micros(number("window-us")?),
        );
        let mut body = Body { bytes, at: FIRST_LINE.len() + end + 2 };
        trace.read(&mut body, most.min(MOST)).ok_or(TraceError::Damaged(body.at))?;
        Ok(trace)
    }

    fn read(&mut self, body: &mut Body<'_>, most: usize) -> Option<()> {
        let (mut next, mut found) = (0u64, None);
        while body.at < body.bytes.len() {
            match body.number()? {
                0 => {
                    let lasted = Duration::from_micros(body.number()?);
                    let end = self.pages.len();
                    self.windows.push(Window { end, found: found.take().unwrap_or(end), lasted });
                }
                1 if found.is_none() => found = Some(self.pages.len()),
                1 => return None,
                code => {
                    let distance = (code - 2) / 2;
                    let first = if distance % 2 == 0 {
                        next.checked_add(distance / 2)?
                    } else {
                        next.checked_sub(distance / 2 + 1)?
                    };
                    let length = if code % 2 == 0 { 1 } else { body.number()?.checked_add(2)? };
                    next = first.checked_add(length)?;
                    let room = most.checked_sub(usize::try_from(length).ok()?)?;
                    if self.pages.len() > room {
                        return None;
                    }
                    self.pages.extend(first..next);
                }
            }
        }
        // All that was said belongs to a window.
        (self.windows.last().map_or(0, |window| window.end) == self.pages.len() && found.is_none())
            .then_some(())
    }
}

struct Body<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Body<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            self.at += 1;
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn put_runs(out: &mut Vec<u8>, mut pages: &[u64], next: &mut u64) {
    while let Some(&first) = pages.first() {
        let follows = pages.windows(2).take_while(|two| two[1] == two[0] + 1).count();
        let distance = if first >= *next { (first - *next) * 2 } else { (*next - first) * 2 - 1 };
        put(out, 2 + 2 * distance + u64::from(follows > 0));
        if follows > 0 {
            put(out, follows as u64 - 1);
        }
        *next = first + follows as u64 + 1;
        pages = &pages[follows + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Trace {
        let mut trace = Trace::new("a command\nof two lines".into(), 4096, Duration::from_millis(50));
        trace.add(&[7, 8, 9, 3, 1 << 36, 2], &[100, 101], Duration::from_micros(51_234));
        trace.add(&[], &[], Duration::ZERO);
        trace.add(&[2, 1, 0, 0], &[], Duration::from_millis(50));
        trace.add(&[], &[5, 6, 9], Duration::from_secs(5_000));
        trace
    }

    #[test]
    fn a_trace_is_read_as_it_was_written() {
        let trace = sample();
        let bytes = trace.to_bytes();
        let read = Trace::from_bytes(&bytes).unwrap();
        assert_eq!(read, Trace { command: "a command of two lines".into(), ..trace });
        assert_eq!((read.pages().len(), read.footprint(), read.windows(), read.widest()), (15, 12, 4, 8));
        assert!(read.lasted() > Duration::from_secs(5_000));
        // A window of pages in a row is a few bytes.
        let mut long = Trace::new(String::new(), 4096, Duration::ZERO);
        long.add(&(0..100_000).collect::<Vec<_>>(), &[], Duration::ZERO);
        assert!(long.to_bytes().len() < 80, "{}", long.to_bytes().len());
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_an_error_or_another_trace_and_nothing_worse() {
        let bytes = sample().to_bytes();
        for end in 0..bytes.len() {
            if let Ok(short) = Trace::from_bytes(&bytes[..end]) {
                assert!(short.windows() < 4, "{end}");
            }
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                let _ = Trace::from_bytes(&changed);
            }
        }
        assert_eq!(Trace::from_bytes(b"hello"), Err(TraceError::NotATrace));
        let head = |text: &str| Trace::from_bytes(format!("{FIRST_LINE}{text}\n\n").as_bytes());
        assert_eq!(head("command: x\npage-bytes: 4096"), Err(TraceError::Head("window-us")));
        assert_eq!(head("command: x\npage-bytes: many\nwindow-us: 5"), Err(TraceError::Head("page-bytes")));
        assert!(head("command: x\npage-bytes: 4096\nwindow-us: 5\nnote: anything").is_ok());
    }
}
