//! The memory that is joined in: a region that pages itself, or ordinary memory. The same bytes at the same places in both.

use clap::ValueEnum;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use userswap::PagedRegion;
use userswap_engine::core::Transition;
use userswap_engine::local::Expected;
use userswap_uffd::own::madvise;
use userswap_uffd::{Mapping, Protection, Span, page_size};

/// A stretch of memory.
pub(crate) struct Memory {
    bytes: Arc<Bytes>,
    heeded: Vec<Advice>,
    tidier: Option<Tidier>,
}

enum Bytes {
    Paged(PagedRegion),
    Plain(Mapping),
}

/// What is told of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Advice {
    /// That it is gone through in order.
    Order,
    /// What comes next.
    Soon,
    /// What was gone through, and may leave.
    Passed,
    /// What is done with for good.
    Drop,
    /// No more than that: with this alone nothing is told.
    Nothing,
}

impl Memory {
    /// So many bytes that keep a quarter of themselves resident.
    pub(crate) fn paged(bytes: usize, store: &str, inline: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let store = userswap_stores::open(store, page_size())?;
        let builder = PagedRegion::builder(bytes as u64, store).limit(bytes as u64 / 4);
        let region = if inline { builder.inline() } else { builder }.build()?;
        Ok(Self::new(Bytes::Paged(region)))
    }

    /// So many bytes that the kernel looks after.
    pub(crate) fn plain(bytes: usize) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self::new(Bytes::Plain(Mapping::new(bytes as u64, Protection::READ_WRITE)?)))
    }

    fn new(bytes: Bytes) -> Self {
        Self { bytes: Arc::new(bytes), heeded: Vec::new(), tidier: None }
    }

    /// Passes on these kinds of advice from now on.
    pub(crate) fn heed(&mut self, kinds: &[Advice]) -> std::io::Result<()> {
        self.heeded = kinds.to_vec();
        self.tidier = kinds.contains(&Advice::Passed).then(|| Tidier::start(&self.bytes)).transpose()?;
        Ok(())
    }

    /// Its bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: needed because the memory isn't Rust's. It is mapped, zeroed at first, and lives as long as `self`; it changes by way of
        // `&mut self` alone, for nobody else has a reference to it: the tidier only has it moved out, which changes no byte.
        unsafe { std::slice::from_raw_parts(self.bytes.start(), self.bytes.len()) }
    }

    /// Its bytes, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.start(), self.bytes.len()) }
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A range is gone through in order.
    pub(crate) fn in_order(&self, range: Range<usize>) {
        if self.heeded.contains(&Advice::Order) {
            match &*self.bytes {
                // A failure of advice changes nothing but the time it takes.
                Bytes::Paged(region) => drop(region.advise(range, Expected::Sequential)),
                Bytes::Plain(mapping) => advise(mapping, range, userswap_uffd::Advice::Sequential),
            }
        }
    }

    /// A range comes next.
    pub(crate) fn comes_next(&self, range: Range<usize>) {
        if self.heeded.contains(&Advice::Soon) {
            match &*self.bytes {
                Bytes::Paged(region) => drop(region.advise(range, Expected::WillNeed)),
                Bytes::Plain(mapping) => advise(mapping, range, userswap_uffd::Advice::WillNeed),
            }
        }
    }

    /// A range was gone through.
    pub(crate) fn is_passed(&self, range: Range<usize>) {
        if let Some(tidier) = &self.tidier {
            tidier.has(range);
        }
    }

    /// Nobody needs what is in a range any more. Whole pages of it may read as zeros from now on.
    pub(crate) fn is_done_with(&mut self, range: Range<usize>) {
        if self.heeded.contains(&Advice::Drop) {
            match &*self.bytes {
                Bytes::Paged(region) => {
                    // SAFETY: needed because it changes bytes; `&mut self` says that nobody has a reference to them.
                    let _ = unsafe { region.discard_shared(range) };
                }
                Bytes::Plain(mapping) => advise(mapping, range, userswap_uffd::Advice::DontNeed),
            }
        }
    }

    /// What has moved, to print.
    pub(crate) fn moved(&self) -> String {
        match &*self.bytes {
            Bytes::Paged(region) => {
                let pages = |transition| region.counts().get(transition);
                let (out, back) = (pages(Transition::Moved), pages(Transition::Installed));
                format!("{out} pages moved out, {back} came back")
            }
            Bytes::Plain(_) => "what moved is the kernel's affair".into(),
        }
    }
}

impl Bytes {
    fn start(&self) -> *mut u8 {
        match self {
            Self::Paged(region) => region.as_ptr(),
            Self::Plain(mapping) => mapping.as_ptr().as_ptr(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Paged(region) => region.len(),
            Self::Plain(mapping) => mapping.span().bytes(),
        }
    }
}

/// Tells the kernel. `DontNeed` is for those alone who have the only reference.
fn advise(mapping: &Mapping, range: Range<usize>, advice: userswap_uffd::Advice) {
    let page = page_size();
    let start = mapping.span().start();
    let (from, to) = (range.start.next_multiple_of(page), range.end / page * page);
    if let Ok(span) = Span::between(start + from as u64, start + to as u64) {
        // SAFETY: needed because advice can destroy memory. Of what this module gives `DontNeed` alone does, of a range that its owner is done with.
        let _ = unsafe { madvise(span, advice) };
    }
}

/// A thread that has moved out what was gone through, while the next is gone through.
struct Tidier {
    passed: Option<Sender<Range<usize>>>,
    thread: Option<JoinHandle<()>>,
}

impl Tidier {
    fn start(bytes: &Arc<Bytes>) -> std::io::Result<Self> {
        let bytes = Arc::clone(bytes);
        let (passed, ranges) = channel();
        let thread = std::thread::Builder::new().name("tidier".into()).spawn(move || {
            for range in ranges {
                match &*bytes {
                    // What stays in memory for a failure leaves later.
                    Bytes::Paged(region) => drop(region.evict(range)),
                    Bytes::Plain(mapping) => advise(mapping, range, userswap_uffd::Advice::PageOut),
                }
            }
        })?;
        Ok(Self { passed: Some(passed), thread: Some(thread) })
    }

    fn has(&self, range: Range<usize>) {
        if let Some(passed) = &self.passed {
            // It ends after this does.
            let _ = passed.send(range);
        }
    }
}

impl Drop for Tidier {
    fn drop(&mut self) {
        self.passed = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
