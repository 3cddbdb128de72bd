//! Pages go down: in the background, the old and those of full tiers, no more a second than was said.

use std::sync::atomic::Ordering;
use std::time::Duration;

use userswap_store::{Budget, Fetch, Handle, Maintained, Page, PageKey};

use super::Tier;
use super::ages::Count;
use super::entry::Entry;

/// Pages that go down together.
const BATCH: usize = 32;
/// Of a tier that is fuller than this, in thousandths, pages go down before their time.
const CROWDED: u64 = 900;
/// Chunks of the table that one call looks at: pages enough for a gigabyte.
const CHUNKS: usize = 1024;

/// Where background work is.
#[derive(Default)]
pub(super) struct Sinking {
    /// The chunk of the table to look at next.
    at: usize,
    /// Bytes that may go down still, and when that was counted.
    allowed: u64,
    counted: Duration,
    /// How old the pages are that were looked at so far.
    ages: Count,
}

/// A page that is to go down.
struct Old {
    handle: Handle,
    inside: Handle,
    key: PageKey,
    put: u32,
}

/// What came back soon goes down at so many times the age.
const KEPT: u32 = 4;

impl Tier {
    /// Has pages go down, about as many bytes as the budget says.
    pub(super) fn sink(&self, budget: Budget) -> Maintained {
        let mut done = Maintained::default();
        let mut sinking = self.sinking.lock();
        let now = (self.clock)();
        let mut left = match self.settings.rate {
            None => budget.bytes,
            Some(rate) => {
                let gained = now.saturating_sub(sinking.counted).as_millis().min(1000);
                let gained = rate.saturating_mul(u64::try_from(gained).unwrap_or(1000)) / 1000;
                sinking.allowed = sinking.allowed.saturating_add(gained).min(rate);
                sinking.counted = now;
                budget.bytes.min(sinking.allowed)
            }
        };
        let page_size = self.capabilities.page_size as u64;
        let ages = self.ages();
        let mut old: Vec<Vec<Old>> = self.tiers.iter().map(|_| Vec::new()).collect();
        for _ in 0..CHUNKS {
            if left < page_size {
                break;
            }
            let second = self.second();
            let Sinking { at, ages: counts, .. } = &mut *sinking;
            let next = self.table.look_at_chunk(*at, |handle, entry| {
                let (unused, tier) = (entry.unused(second), usize::from(entry.tier));
                counts.count(tier, unused);
                let times = if entry.kept { KEPT } else { 1 };
                let limit = ages.get(tier).copied().flatten().map(|limit| limit.saturating_mul(times));
                if limit.is_some_and(|limit| unused >= limit)
                    && let Some(of_tier) = old.get_mut(tier)
                {
                    let (inside, key, put) = (entry.inside, entry.key(), entry.put_at());
                    of_tier.push(Old { handle, inside, key, put });
                }
            });
            for (tier, of_tier) in old.iter_mut().enumerate() {
                for batch in of_tier.chunks(BATCH) {
                    if left < page_size {
                        break;
                    }
                    let fit = usize::try_from(left / page_size).unwrap_or(usize::MAX).min(batch.len());
                    let moved = self.sink_batch(tier, &batch[..fit]) * page_size;
                    done.moved_bytes += moved;
                    left -= moved;
                    if moved == 0 {
                        break;
                    }
                }
                of_tier.clear();
            }
            match next {
                Some(next) => sinking.at = next,
                None => {
                    sinking.at = 0;
                    self.ages.publish(&std::mem::take(&mut sinking.ages));
                    break;
                }
            }
        }
        sinking.allowed = sinking.allowed.saturating_sub(done.moved_bytes);
        done
    }

    /// By tier: after how many seconds unused a page goes down. `None`: never.
    fn ages(&self) -> Vec<Option<u32>> {
        let last = self.tiers.len() - 1;
        let each = self.tiers.iter().enumerate().map(|(number, level)| {
            if number == last || !level.ready {
                return None;
            }
            let age = self.settings.age.as_secs();
            let full = match level.capacity {
                Some(capacity) => level.store.stats().memory_bytes.saturating_mul(1000) / capacity.max(1),
                None => 0,
            };
            // From the whole age at nine tenths to none at all when it is full.
            let crowded = 1000_u64.saturating_sub(full).min(1000 - CROWDED);
            Some(u32::try_from(age * crowded / (1000 - CROWDED)).unwrap_or(u32::MAX))
        });
        each.collect()
    }

    /// Moves some pages of a tier to the next that takes them; how many.
    fn sink_batch(&self, tier: usize, batch: &[Old]) -> u64 {
        let Some(level) = self.tiers.get(tier) else { return 0 };
        let page_size = self.capabilities.page_size;
        let mut bytes = vec![0; batch.len() * page_size];
        let mut read = Vec::with_capacity(batch.len());
        for (old, page) in batch.iter().zip(bytes.chunks_exact_mut(page_size)) {
            // It may be gone by now, or be somebody else's: then its key is wrong.
            if let Ok(Fetch::Ready) = level.store.fetch(old.inside, old.key, page, &level.nobody) {
                read.push((old, &*page));
            }
        }
        let pages: Vec<_> = read.iter().map(|(old, bytes)| Page { key: old.key, bytes }).collect();
        let mut handles = vec![None; pages.len()];
        if pages.is_empty() {
            return 0;
        }
        let Ok(to) = self.put_from(tier + 1, &pages, &mut handles) else { return 0 };
        let Some(below) = self.tiers.get(usize::from(to)) else { return 0 };
        let mut left_behind = Vec::with_capacity(read.len());
        for ((old, _), handle) in read.iter().zip(handles) {
            let Some(inside) = handle else { continue };
            let moved = Entry::moved(old.key, to, inside, old.put, self.second());
            let unchanged = |entry: &Entry| {
                usize::from(entry.tier) == tier && entry.inside == old.inside && entry.key() == old.key
            };
            match self.table.replace_if(old.handle, moved, unchanged) {
                Ok(before) => left_behind.push(before.inside),
                // It was freed meanwhile.
                Err(unwanted) => below.store.free(&[unwanted.inside]),
            }
        }
        // Whoever looked a page up before it moved has been given it when this is through.
        self.moves.wait();
        level.store.free(&left_behind);
        level.sunk.fetch_add(left_behind.len() as u64, Ordering::Relaxed);
        left_behind.len() as u64
    }
}
