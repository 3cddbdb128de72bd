//! Where a page that is put goes.

use std::sync::atomic::Ordering;

use userswap_store::{Handle, Page, StoreError};

use super::Tier;
use super::entry::Entry;
use super::returns::Past;

impl Tier {
    /// Puts a batch, all or nothing: stretches of pages with the same past together.
    pub(super) fn put_all(
        &self,
        pages: &[Page<'_>],
        handles: &mut [Option<Handle>],
    ) -> Result<(), StoreError> {
        let now = self.second();
        let mut tiers = Vec::with_capacity(pages.len());
        let mut pasts = Vec::with_capacity(pages.len());
        let mut at = 0;
        while at < pages.len() {
            let past = |page: &Page<'_>| self.returns.past(page.key, now, self.settings.age);
            let first = past(&pages[at]);
            let to = at + 1 + pages[at + 1..].iter().take_while(|page| past(page) == first).count();
            match self.put_stretch(first, &pages[at..to], &mut handles[at..to]) {
                Ok(tier) => tiers.resize(to, tier),
                Err(error) => {
                    for (handle, tier) in handles.iter_mut().zip(&tiers) {
                        if let (Some(inside), Some(level)) =
                            (handle.take(), self.tiers.get(usize::from(*tier)))
                        {
                            level.store.free(&[inside]);
                        }
                    }
                    return Err(error);
                }
            }
            pasts.resize(to, first);
            if first != Past::Soon {
                self.pass_large(&pages[at..to], &mut handles[at..to], &mut tiers[at..to]);
            }
            at = to;
        }
        for ((page, handle), (tier, past)) in pages.iter().zip(handles).zip(tiers.iter().zip(pasts)) {
            *handle = handle.map(|inside| {
                self.table.insert(Entry::new(page.key, *tier, inside, past == Past::Soon, now))
            });
        }
        Ok(())
    }

    /// Puts pages of one past into a tier; which one.
    fn put_stretch(
        &self,
        past: Past,
        pages: &[Page<'_>],
        handles: &mut [Option<Handle>],
    ) -> Result<u8, StoreError> {
        // The guess may be wrong: only where that costs no reading.
        let below = self.tiers.get(1).filter(|below| below.ready && past == Past::Late);
        if let Some(below) = below
            && below.store.put(pages, handles).is_ok()
        {
            below.straight.fetch_add(pages.len() as u64, Ordering::Relaxed);
            return Ok(1);
        }
        if past == Past::Soon
            && let Some(top) = self.tiers.first()
        {
            top.kept.fetch_add(pages.len() as u64, Ordering::Relaxed);
        }
        self.put_from(0, pages, handles)
    }

    /// Of pages that were just put, hands those that take too much on to the next tiers, as long as these take them.
    fn pass_large(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>], tiers: &mut [u8]) {
        // A page as it came may take a header more, so a share of 1 is no limit.
        let Some(most) = self.settings.admit.filter(|share| *share < 1.0) else { return };
        let most = self.capabilities.page_size as f64 * most;
        for from in 0..self.tiers.len().saturating_sub(1) {
            let Some(level) = self.tiers.get(from).filter(|level| level.ready) else { break };
            let is_large = |handle: &Option<Handle>| {
                handle.and_then(|handle| level.store.stored_len(handle)).is_some_and(|len| len as f64 > most)
            };
            let large: Vec<usize> = (0..pages.len())
                .filter(|at| usize::from(tiers[*at]) == from && is_large(&handles[*at]))
                .collect();
            if large.is_empty() {
                continue;
            }
            let passed: Vec<_> = large.iter().map(|at| pages[*at]).collect();
            let mut below = vec![None; passed.len()];
            let Ok(to) = self.put_from(from + 1, &passed, &mut below) else { break };
            for (at, inside) in large.iter().zip(below) {
                let Some(above) = std::mem::replace(&mut handles[*at], inside) else { continue };
                // Nobody has been told of it yet.
                level.store.free(&[above]);
                tiers[*at] = to;
            }
            level.large.fetch_add(large.len() as u64, Ordering::Relaxed);
        }
    }
}
