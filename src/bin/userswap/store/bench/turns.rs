//! Who is measured when: the store, lz4 and copying take turns at blocks of pages, each as often first as the others.

use super::pages::Pages;
use crate::failure::{Failure, Status};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;
use userswap_store::{Completion, Fetch, Handle, PageKey, Store, StoreError, Waiter};

/// Pages of a turn: few enough to be in the nearer caches for who comes next, so that all but the first find them alike.
pub(super) const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Store,
    Lz4,
    Copy,
}

const ALL: [Who; 3] = [Who::Store, Who::Lz4, Who::Copy];

/// One round's times, of each.
pub(super) struct Turns {
    pub(super) times: [Round; 3],
    next: usize,
}

/// Nanoseconds a page.
#[derive(Default)]
pub(super) struct Round(pub(super) Vec<u64>);

impl Turns {
    pub(super) fn new(round: u32) -> Self {
        Self { times: Default::default(), next: round as usize }
    }

    /// Has each take its turn.
    pub(super) fn take(
        &mut self,
        turn: &mut dyn FnMut(Who, &mut Round) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for place in 0..ALL.len() {
            let who = (self.next + place) % ALL.len();
            turn(ALL[who], &mut self.times[who])?;
        }
        self.next += 1;
        Ok(())
    }
}

impl Round {
    /// So many pages took from `started` to now.
    pub(super) fn add(&mut self, started: Instant, pages: usize) {
        let each = started.elapsed().as_nanos() / pages.max(1) as u128;
        self.0.extend(std::iter::repeat_n(u64::try_from(each).unwrap_or(u64::MAX), pages));
    }
}

/// lz4 and copying, with all they need made before.
pub(super) struct Bare {
    table: lz4_flex::block::CompressTable,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// Where each page's compressed bytes are; empty for one that didn't get smaller.
    packed: Vec<Range<usize>>,
    bytes: Vec<u8>,
    page_size: usize,
}

impl Bare {
    pub(super) fn new(pages: usize, page_size: usize) -> Self {
        Self {
            table: lz4_flex::block::CompressTable::default(),
            buffer: vec![0; lz4_flex::block::get_maximum_output_size(page_size)],
            out: vec![0; page_size],
            packed: vec![0..0; pages],
            bytes: Vec::new(),
            page_size,
        }
    }

    /// What the pages take compressed, those as they are that get no smaller.
    pub(super) fn packed_bytes(&self) -> u64 {
        self.packed
            .iter()
            .map(|range| if range.is_empty() { self.page_size } else { range.len() } as u64)
            .sum()
    }

    pub(super) fn compress(
        &mut self,
        pages: &Pages,
        block: Range<usize>,
        times: &mut Round,
    ) -> Result<(), Failure> {
        for at in block {
            let started = Instant::now();
            let packed =
                lz4_flex::block::compress_into_with_table(pages.page(at), &mut self.buffer, &mut self.table);
            times.add(started, 1);
            let len = packed.map_err(|error| Failure::of("compressing a page", &error))?;
            if len < self.page_size {
                self.packed[at] = self.bytes.len()..self.bytes.len() + len;
                self.bytes.extend_from_slice(&self.buffer[..len]);
            }
        }
        Ok(())
    }

    pub(super) fn decompress(&mut self, block: &[usize], times: &mut Round) -> Result<(), Failure> {
        for at in block {
            let packed = &self.bytes[self.packed[*at].clone()];
            if packed.is_empty() {
                continue;
            }
            let started = Instant::now();
            let len = lz4_flex::block::decompress_into(packed, &mut self.out);
            times.add(started, 1);
            if len.map_err(|error| Failure::of("decompressing a page", &error))? != self.page_size {
                return Err(Failure::new(Status::Failed, "lz4 gave a page of another length"));
            }
        }
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        pages: &Pages,
        block: Range<usize>,
        times: &mut Round,
    ) -> Result<(), Failure> {
        for at in block {
            let started = Instant::now();
            self.out.copy_from_slice(pages.page(at));
            times.add(started, 1);
            std::hint::black_box(&mut self.out);
        }
        Ok(())
    }

    pub(super) fn copy_out(
        &mut self,
        pages: &Pages,
        block: &[usize],
        times: &mut Round,
    ) -> Result<(), Failure> {
        block.iter().try_for_each(|at| self.copy(pages, *at..at + 1, times))
    }
}

/// Gets pages, and waits for those that come later.
pub(super) struct Gets {
    out: Vec<u8>,
    later: Arc<Later>,
}

#[derive(Default)]
struct Later {
    page: Mutex<Option<Option<Vec<u8>>>>,
    came: Condvar,
}

impl Gets {
    pub(super) fn new(page_size: usize) -> Self {
        Self { out: vec![0; page_size], later: Arc::default() }
    }

    /// The page, or `None` if it doesn't come. Its time is until it is there.
    pub(super) fn get(
        &mut self,
        store: &dyn Store,
        handle: Handle,
        key: PageKey,
        times: &mut Round,
    ) -> Option<&[u8]> {
        // What was there is the page before.
        self.out.fill(0xa5);
        let waiter = Waiter::new(self.later.clone(), 0);
        let started = Instant::now();
        let fetched = store.fetch(handle, key, &mut self.out, &waiter);
        let came = match fetched {
            Ok(Fetch::Ready) => true,
            Ok(Fetch::Pending) => match self.later.wait() {
                Some(page) => {
                    self.out = page;
                    true
                }
                None => false,
            },
            Err(_) => false,
        };
        times.add(started, 1);
        came.then_some(&*self.out)
    }
}

impl Later {
    fn wait(&self) -> Option<Vec<u8>> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(came) = page.take() {
                return came;
            }
            page = self.came.wait(page).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Completion for Later {
    fn complete(&self, _: u64, page: Result<&[u8], StoreError>) {
        let page = page.ok().map(<[u8]>::to_vec);
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = Some(page);
        self.came.notify_all();
    }
}
