//! Which pages a program had in memory, as a file.
//!
//! ```text
//! userswap working set 1⏎
//! page-bytes: 4096⏎
//! 7f25c0a00 512⏎        pages in a row: the address of the first by the page size, in hexadecimal, and how many.
//! 7f25c0d01 3⏎          Each line is behind the one before
//! ```

use std::fmt::Write;

/// Pages of one address space, by what follows what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkingSet {
    page_bytes: u64,
    runs: Vec<Run>,
}

/// Pages in a row: the address of the first by the page size, and how many.
pub type Run = (u64, u64);

/// What is wrong with the file of a working set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// It doesn't begin as one does.
    #[error("this is no working set: it doesn't begin with \"userswap working set 1\"")]
    NotOne,
    /// It doesn't say how large a page is.
    #[error("line 2 of the working set has to be \"page-bytes: \" and a power of two")]
    PageBytes,
    /// A line that makes no sense, or isn't behind the one before.
    #[error(
        "line {0} of the working set is no run of pages behind those before: a hexadecimal number, and how many pages"
    )]
    Line(usize),
}

const FIRST_LINE: &str = "userswap working set 1";

/// No address is behind this, in pages.
const END: u64 = 1 << 52;

impl WorkingSet {
    /// Of runs in order. Those that touch become one; what isn't in order is left out.
    pub fn new(page_bytes: u64, runs: impl IntoIterator<Item = Run>) -> Self {
        let mut set = Self { page_bytes, runs: Vec::new() };
        for (first, pages) in runs.into_iter().filter(|(_, pages)| *pages > 0) {
            match set.runs.last_mut() {
                Some((at, before)) if *at + *before == first => *before += pages,
                Some((at, before)) if *at + *before > first => {}
                _ => set.runs.push((first, pages)),
            }
        }
        set
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Its runs of pages, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(_, pages)| pages).sum()
    }

    /// As it stands in a file.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\npage-bytes: {}\n", self.page_bytes);
        for (first, pages) in &self.runs {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{first:x} {pages}");
        }
        text
    }

    /// From what stands in a file, of which nothing is believed: it takes no more memory than four times the text.
    ///
    /// # Errors
    /// [`WorkingSetError`], with the line.
    pub fn from_text(text: &str) -> Result<Self, WorkingSetError> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(WorkingSetError::NotOne);
        }
        let page_bytes = lines.next().and_then(|line| line.strip_prefix("page-bytes: ")?.parse().ok());
        let page_bytes =
            page_bytes.filter(|bytes: &u64| bytes.is_power_of_two()).ok_or(WorkingSetError::PageBytes)?;
        let mut set = Self { page_bytes, runs: Vec::new() };
        let mut end = 0;
        for (line, number) in lines.zip(3..) {
            let run = parse(line).filter(|(first, _)| *first >= end).ok_or(WorkingSetError::Line(number))?;
            end = run.0 + run.1;
            set.runs.push(run);
        }
        Ok(set)
    }
}

fn parse(line: &str) -> Option<Run> {
    let (first, pages) = line.split_once(' ')?;
    let (first, pages) = (u64::from_str_radix(first, 16).ok()?, pages.parse::<u64>().ok()?);
    let end = first.checked_add(pages)?;
    (pages > 0 && end <= END).then_some((first, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_it_was_written() {
        let set = WorkingSet::new(4096, [(0x10, 2), (0x12, 1), (0x11, 9), (0x20, 0), (0xfff_ffff, 5)]);
        assert_eq!(set.runs(), [(0x10, 3), (0xfff_ffff, 5)]);
        assert_eq!(set.to_text(), "userswap working set 1\npage-bytes: 4096\n10 3\nfffffff 5\n");
        assert_eq!(WorkingSet::from_text(&set.to_text()), Ok(set.clone()));
        assert_eq!(set.pages(), 8);
        let none = WorkingSet::new(4096, []);
        assert_eq!(WorkingSet::from_text(&none.to_text()), Ok(none));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let of = |body: &str| WorkingSet::from_text(&format!("{FIRST_LINE}\npage-bytes: 4096\n{body}"));
        for body in [
            "10",
            "10 0",
            "10 -1",
            "g 1",
            "10 1\n10 1",
            "10 2\n11 1",
            "fffffffffffffff 1",
            "1 ffffffffffffffff",
            "10  1",
        ] {
            let line = 3 + body.matches('\n').count();
            assert_eq!(of(body), Err(WorkingSetError::Line(line)), "{body}");
        }
        assert_eq!(WorkingSet::from_text(""), Err(WorkingSetError::NotOne));
        for size in ["", "page-bytes: 4095\n", "page-bytes: 0\n"] {
            let text = format!("{FIRST_LINE}\n{size}10 1\n");
            assert_eq!(WorkingSet::from_text(&text), Err(WorkingSetError::PageBytes));
        }
    }
}
