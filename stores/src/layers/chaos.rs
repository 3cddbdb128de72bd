//! `chaos?…+…`: a store that misbehaves as it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use userswap_store::{
    Budget, Capabilities, Completion, Fetch, FetchKind, Handle, Integrity, Maintained, Page, PageKey, Stats,
    Store, StoreError, Waiter,
};

use super::timer::Timer;

/// What a [`Chaos`] does. By default nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Mischief {
    /// What chance is made of: the same calls in the same order meet the same mischief.
    pub seed: u64,
    /// Fetches are answered so much later, by another thread.
    pub latency: Option<Duration>,
    /// The share of puts that fail: [`Io`](StoreError::Io), as of a full device.
    pub put_errors: f64,
    /// The share of fetches that fail and may be tried again.
    pub fetch_errors: f64,
    /// The share of fetches that give a page with one bit flipped.
    pub corruption: f64,
    /// After so many puts and fetches every one fails, for good.
    pub countdown: Option<u64>,
}

impl Default for Mischief {
    fn default() -> Self {
        Self { seed: 1, latency: None, put_errors: 0.0, fetch_errors: 0.0, corruption: 0.0, countdown: None }
    }
}

/// Misbehaves around a store, for tests of whoever uses it. Handles are those of the store inside, and nothing inside is harmed.
pub struct Chaos {
    inner: Arc<dyn Store>,
    mischief: Mischief,
    capabilities: Capabilities,
    calls: AtomicU64,
    hurt: AtomicU64,
    timer: Option<Arc<Timer>>,
}

/// What comes over a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Spared,
    Failed,
    Ended,
    /// The bit of this number is flipped.
    Flipped(u64),
}

impl Chaos {
    /// The layer around this store.
    ///
    /// # Errors
    /// [`Io`](StoreError::Io) if latency is asked for and there can be no thread for it.
    pub fn new(inner: Arc<dyn Store>, mischief: Mischief) -> Result<Self, StoreError> {
        let mut capabilities = inner.capabilities();
        capabilities.name = format!("chaos+{}", capabilities.name).into();
        if mischief.corruption > 0.0 {
            capabilities.integrity = Integrity::None;
        }
        let timer = match mischief.latency {
            Some(_) => {
                capabilities.fetch = FetchKind::Mixed;
                Some(Arc::new(Timer::start()?))
            }
            None => None,
        };
        let (calls, hurt) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { inner, mischief, capabilities, calls, hurt, timer })
    }

    fn fate(&self, errors: f64, corruption: f64) -> Fate {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let fate = self.mischief.fate(call, errors, corruption);
        if fate != Fate::Spared {
            self.hurt.fetch_add(1, Ordering::Relaxed);
        }
        fate
    }
}

impl Mischief {
    fn fate(&self, call: u64, errors: f64, corruption: f64) -> Fate {
        if self.countdown.is_some_and(|countdown| call >= countdown) {
            return Fate::Ended;
        }
        let mut state = self.seed.wrapping_add(call.wrapping_mul(0xd6e8_feb8_6659_fd93));
        #[allow(clippy::cast_precision_loss, reason = "a chance")]
        let mut chance = || (random(&mut state) >> 11) as f64 / (1_u64 << 53) as f64;
        let (error, flip) = (chance() < errors, chance() < corruption);
        match (error, flip) {
            (true, _) => Fate::Failed,
            (_, true) => Fate::Flipped(random(&mut state)),
            _ => Fate::Spared,
        }
    }
}

impl Store for Chaos {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        handles.fill(None);
        match self.fate(self.mischief.put_errors, 0.0) {
            Fate::Ended => Err(StoreError::Closed),
            Fate::Failed => {
                let source = std::io::ErrorKind::StorageFull.into();
                Err(StoreError::Io { doing: "writing where chaos reigns", source })
            }
            Fate::Spared | Fate::Flipped(_) => self.inner.put(pages, handles),
        }
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.capabilities.check_buffer(out)?;
        let fate = self.fate(self.mischief.fetch_errors, self.mischief.corruption);
        let answered = match fate {
            Fate::Ended => Err(StoreError::Closed),
            Fate::Failed => {
                let source = std::io::ErrorKind::TimedOut.into();
                Err(StoreError::Io { doing: "reading where chaos reigns", source })
            }
            Fate::Spared if self.timer.is_none() => return self.inner.fetch(handle, key, out, waiter),
            Fate::Spared | Fate::Flipped(_) => {
                let (waiter, timer) = (waiter.clone(), self.timer.clone());
                let wait = self.mischief.latency.unwrap_or_default();
                let late = Waiter::new(Arc::new(Late { waiter, fate, wait, timer }), 0);
                self.inner.fetch(handle, key, out, &late)
            }
        };
        match (answered, &self.timer, self.mischief.latency) {
            (Ok(Fetch::Pending), ..) => Ok(Fetch::Pending),
            (answered, Some(timer), Some(wait)) => {
                fate.befall(out);
                let page = answered.map(|_| out.to_vec());
                let waiter = waiter.clone();
                timer.after(wait, move || match page {
                    Ok(page) => waiter.complete(Ok(&page)),
                    Err(error) => waiter.complete(Err(error)),
                });
                Ok(Fetch::Pending)
            }
            (answered, ..) => {
                fate.befall(out);
                answered
            }
        }
    }

    fn free(&self, handles: &[Handle]) {
        self.inner.free(handles);
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn stored_len(&self, handle: Handle) -> Option<usize> {
        self.inner.stored_len(handle)
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        tell("calls_hurt", self.hurt.load(Ordering::Relaxed));
        self.inner.figures(tell);
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        self.inner.maintain(budget)
    }
}

impl Fate {
    fn befall(self, page: &mut [u8]) {
        if let Self::Flipped(bit) = self
            && !page.is_empty()
        {
            let at = usize::try_from(bit >> 3).unwrap_or(0) % page.len();
            page[at] ^= 1 << (bit & 7);
        }
    }
}

/// A page that would have come later anyway.
struct Late {
    waiter: Waiter,
    fate: Fate,
    wait: Duration,
    timer: Option<Arc<Timer>>,
}

impl Completion for Late {
    fn complete(&self, _: u64, page: Result<&[u8], StoreError>) {
        let mut page = page.map(<[u8]>::to_vec);
        if let Ok(page) = &mut page {
            self.fate.befall(page);
        }
        let waiter = self.waiter.clone();
        let task = move || match page {
            Ok(page) => waiter.complete(Ok(&page)),
            Err(error) => waiter.complete(Err(error)),
        };
        match &self.timer {
            Some(timer) => timer.after(self.wait, task),
            None => task(),
        }
    }
}

/// A step of splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mischief_is_as_frequent_as_it_is_asked_for_and_the_same_again() {
        let mischief = Mischief { seed: 9, countdown: Some(10_000), ..Mischief::default() };
        let fates: Vec<_> = (0..10_001).map(|call| mischief.fate(call, 0.1, 0.05)).collect();
        let failed = fates.iter().filter(|fate| **fate == Fate::Failed).count();
        let flipped = fates.iter().filter(|fate| matches!(fate, Fate::Flipped(_))).count();
        assert!((900..1100).contains(&failed) && (380..520).contains(&flipped), "{failed}, {flipped}");
        assert_eq!(fates[10_000], Fate::Ended);
        assert!((0..10_001).map(|call| mischief.fate(call, 0.1, 0.05)).eq(fates));
        assert_eq!(mischief.fate(7, 0.0, 0.0), Fate::Spared);
        assert_eq!(mischief.fate(7, 1.0, 1.0), Fate::Failed);
    }
}
