//! A program that does to its memory whatever programs do, from a seed, and knows at each moment what must be there.

use std::sync::{Arc, RwLock};
use userswap_engine::Space;
use userswap_tests::own::{free_lazily, free_range, give_notice, map_over, move_mapping, remove, unmap_span};
use userswap_tests::pages::Pages;
use userswap_tests::random::Random;
use userswap_uffd::own::mremap_dontunmap;
use userswap_uffd::{Span, page_bytes};

/// Runs `steps` steps on `block`, which is managed and this program's alone, and unmaps it in the end.
///
/// What it maps anew it puts into care itself, and takes out before it unmaps, as an engine's embedder would. While it does,
/// it holds `calm` shared: nobody may unregister anything then.
pub(crate) fn run(space: &Arc<Space>, calm: &RwLock<()>, block: Span, seed: u64, steps: u64) {
    let holds = vec![0; block.pages() as usize];
    let mut program = Program { space, calm, pages: pages_of(block), holds, random: Random::new(seed) };
    for step in 0..steps {
        program.step(seed << 32 | (step + 1));
    }
    program.check_all();
    let _calm = calm.read().unwrap();
    give_notice(space, program.pages.span());
    unmap_span(program.pages.span());
}

struct Program<'a> {
    space: &'a Arc<Space>,
    calm: &'a RwLock<()>,
    pages: Pages,
    /// What each page must hold.
    holds: Vec<u64>,
    random: Random,
}

impl Program<'_> {
    fn step(&mut self, value: u64) {
        let page = self.random.below(self.pages.len());
        match self.random.below(100) {
            0..40 => self.write(page, value),
            40..84 => self.check(page),
            84..90 => self.forget(page),
            90..94 => self.free_some(page, value),
            94..96 => self.replace(page),
            96..98 => self.move_away(),
            98 => self.grow_and_shrink(),
            _ => self.check_all(),
        }
    }

    fn write(&mut self, page: u64, value: u64) {
        self.pages.fill(page, value);
        self.holds[page as usize] = value;
    }

    fn check(&self, page: u64) {
        assert_eq!(
            self.pages.read(page),
            Ok(self.holds[page as usize]),
            "page {page} of {:?}",
            self.pages.span()
        );
    }

    fn check_all(&self) {
        (0..self.pages.len()).for_each(|page| self.check(page));
    }

    /// A few pages from `page` on.
    fn some(&mut self, page: u64) -> Pages {
        let count = (1 + self.random.below(6)).min(self.pages.len() - page);
        self.pages.part(page, count)
    }

    fn clear(&mut self, some: &Pages, page: u64) {
        self.holds[page as usize..][..some.len() as usize].fill(0);
    }

    fn forget(&mut self, page: u64) {
        let some = self.some(page);
        remove(some.span());
        self.clear(&some, page);
        self.check(page);
    }

    /// What is lazily freed reads as it was or as zeros until it is written.
    fn free_some(&mut self, page: u64, value: u64) {
        let some = self.some(page);
        free_lazily(some.span());
        for n in 0..some.len() {
            let was = self.holds[(page + n) as usize];
            let found = some.read(n);
            assert!(found == Ok(was) || found == Ok(0), "{found:?}, {was:#x} was freed lazily");
            self.write(page + n, value + n);
        }
    }

    /// Unmapped and mapped anew at the same place, as allocators do. No other mapping can take the place meanwhile.
    fn replace(&mut self, page: u64) {
        let some = self.some(page);
        let calm = self.calm.read().unwrap();
        give_notice(self.space, some.span());
        if self.random.one_in(2) {
            let away = free_range(some.span().len()).leak();
            // SAFETY: needed because the pages vanish from the range and replace those at the target; both are this program's own.
            // Fails where parts of the range are registered and others aren't; mapping over it does what is wanted in any case.
            if unsafe { mremap_dontunmap(some.span(), away.start()) }.is_ok() {
                assert_eq!(pages_of(away).read(0), Ok(self.holds[page as usize]));
            }
            unmap_span(away);
        }
        map_over(some.span());
        self.space.manage_new(&[self.pages.span()]).unwrap();
        drop(calm);
        self.clear(&some, page);
        self.check(page);
    }

    fn move_away(&mut self) {
        let span = self.pages.span();
        self.resize(span.len());
        self.check_all();
    }

    fn grow_and_shrink(&mut self) {
        let before = self.pages.len();
        if !self.resize(2 * self.pages.span().len()) {
            return;
        }
        for page in before..self.pages.len() {
            self.check(page);
            self.write(page, page);
        }
        self.check_all();
        // Shrinking never fails: it is unmapping the rest.
        assert!(self.resize(before * page_bytes()));
        self.check_all();
    }

    /// The kernel moves only what is one mapping; parts that were replaced, or are registered while others aren't, are mappings of
    /// their own. Says whether it did.
    fn resize(&mut self, len: u64) -> bool {
        let _calm = self.calm.read().unwrap();
        let span = self.pages.span();
        give_notice(self.space, span);
        let moved = move_mapping(span, len, None);
        let now = moved.unwrap_or(span);
        self.space.manage_new(&[now]).unwrap();
        self.pages = pages_of(now);
        self.holds.resize(now.pages() as usize, 0);
        now.len() == len
    }
}

fn pages_of(span: Span) -> Pages {
    // SAFETY: read-write memory of this program's, mapped until it unmaps it.
    unsafe { Pages::new(span) }
}
