//! `metered+…`: how long a store's calls take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use userswap_store::{
    Budget, Capabilities, Completion, Fetch, FetchKind, Handle, Maintained, Page, PageKey, Stats, Store,
    StoreError, Waiter, Wanted,
};

/// Measures the calls of a store. Its [`figures`](Store::figures) are, in nanoseconds, p50, p99 and max of:
///
/// | name | what |
/// |---|---|
/// | `put` | a call of `put`, divided by its pages |
/// | `fetch` | a page that is there at once; of a run, the call divided by its pages |
/// | `late` | a page that comes later, from the call to its completion |
/// | `maintain` | a call of `maintain` |
pub struct Metered {
    inner: Arc<dyn Store>,
    capabilities: Capabilities,
    times: Arc<Times>,
}

#[derive(Default)]
struct Times {
    put: Histogram,
    fetch: Histogram,
    late: Histogram,
    maintain: Histogram,
}

impl Metered {
    /// The layer around this store.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let mut capabilities = inner.capabilities();
        capabilities.name = format!("metered+{}", capabilities.name).into();
        Self { inner, capabilities, times: Arc::default() }
    }

    /// What the store inside is given to complete by.
    fn waiter(&self, waiter: &Waiter, started: Instant) -> Waiter {
        if self.capabilities.fetch == FetchKind::Ready {
            return waiter.clone();
        }
        let timed = Timed { waiter: waiter.clone(), started, times: Arc::clone(&self.times) };
        Waiter::new(Arc::new(timed), 0)
    }
}

impl Store for Metered {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        let started = Instant::now();
        let result = self.inner.put(pages, handles);
        if result.is_ok() {
            self.times.put.add_each(started.elapsed(), pages.len());
        }
        result
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        let started = Instant::now();
        let result = self.inner.fetch(handle, key, out, &self.waiter(waiter, started));
        if let Ok(Fetch::Ready) = result {
            self.times.fetch.add_each(started.elapsed(), 1);
        }
        result
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        let started = Instant::now();
        self.inner.fetch_run(wanted, out, results, &self.waiter(waiter, started))?;
        let ready = results.iter().filter(|result| matches!(result, Ok(Fetch::Ready))).count();
        self.times.fetch.add_each(started.elapsed(), ready);
        Ok(())
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
        let times = &self.times;
        for (p50, p99, max, histogram) in [
            ("put_p50_ns", "put_p99_ns", "put_max_ns", &times.put),
            ("fetch_p50_ns", "fetch_p99_ns", "fetch_max_ns", &times.fetch),
            ("late_p50_ns", "late_p99_ns", "late_max_ns", &times.late),
            ("maintain_p50_ns", "maintain_p99_ns", "maintain_max_ns", &times.maintain),
        ] {
            tell(p50, histogram.quantile(50));
            tell(p99, histogram.quantile(99));
            tell(max, histogram.max.load(Ordering::Relaxed));
        }
        self.inner.figures(tell);
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        let started = Instant::now();
        let done = self.inner.maintain(budget);
        self.times.maintain.add_each(started.elapsed(), 1);
        done
    }
}

/// A page that comes later.
struct Timed {
    waiter: Waiter,
    started: Instant,
    times: Arc<Times>,
}

impl Completion for Timed {
    fn complete(&self, token: u64, page: Result<&[u8], StoreError>) {
        if page.is_ok() {
            self.times.late.add_each(self.started.elapsed(), 1);
        }
        self.waiter.for_place(token).complete(page);
    }
}

/// Times by their size, an eighth exact.
struct Histogram {
    counts: [AtomicU64; Self::BUCKETS],
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; Self::BUCKETS], max: AtomicU64::new(0) }
    }
}

impl Histogram {
    const BUCKETS: usize = 62 * 8;

    /// Counts `pages` that took `all` together.
    fn add_each(&self, all: Duration, pages: usize) {
        if pages == 0 {
            return;
        }
        let each = u64::try_from(all.as_nanos() / pages as u128).unwrap_or(u64::MAX);
        self.counts[Self::bucket(each)].fetch_add(pages as u64, Ordering::Relaxed);
        self.max.fetch_max(each, Ordering::Relaxed);
    }

    /// The time that so many percent don't exceed; 0 if there is none.
    fn quantile(&self, percent: u64) -> u64 {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let rank = (counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Self::upper(bucket).min(self.max.load(Ordering::Relaxed));
            }
        }
        0
    }

    /// Below 8 each has its own; then eight to each power of two.
    fn bucket(ns: u64) -> usize {
        if ns < 8 {
            return usize::try_from(ns).unwrap_or(0);
        }
        let log = ns.ilog2();
        (log as usize - 2) * 8 + usize::try_from(ns >> (log - 3) & 7).unwrap_or(0)
    }

    fn upper(bucket: usize) -> u64 {
        if bucket < 8 {
            return bucket as u64;
        }
        let (log, eighth) = (bucket / 8 + 2, (bucket % 8) as u128);
        u64::try_from(((8 + eighth + 1) << (log - 3)) - 1).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_that_holds_it() {
        for ns in
            (0..64).flat_map(|shift| [1_u64 << shift, (1 << shift) + 1, (1 << shift) - 1]).chain([u64::MAX])
        {
            let bucket = Histogram::bucket(ns);
            assert!(bucket < Histogram::BUCKETS, "{ns}");
            assert!(ns <= Histogram::upper(bucket), "{ns}");
            assert!(bucket == 0 || ns > Histogram::upper(bucket - 1), "{ns}");
        }
    }

    #[test]
    fn quantiles_are_an_eighth_exact() {
        let times = Histogram::default();
        assert_eq!(times.quantile(50), 0);
        (1..=1000).for_each(|us| times.add_each(Duration::from_micros(us), 1));
        for (percent, ns) in [(50, 500_000), (99, 990_000)] {
            assert!((ns..=ns + ns / 8).contains(&times.quantile(percent)), "p{percent}");
        }
        assert_eq!(times.quantile(100), 1_000_000);
        times.add_each(Duration::from_millis(1), 100_000);
        assert_eq!(times.quantile(99), 10);
    }
}
