//! How long things took: counts in buckets whose width grows with the value.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Durations from a nanosecond to about a minute, told apart to 1/16 of their size. Recording is one addition; any number of
/// threads may record at once.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    longest: AtomicU64,
}

/// Buckets for each doubling of the value.
const STEPS: u64 = 16;

/// Values below this have a bucket each.
const STEPS_BITS: u32 = STEPS.trailing_zeros();

/// Longer than 2^36 ns goes in the last bucket.
const TOP_BIT: u32 = 36;

/// Eight bytes each.
const BUCKETS: usize = ((TOP_BIT - STEPS_BITS + 1) << STEPS_BITS) as usize;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), longest: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one that took so long.
    pub fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        // Rarely true, and a plain read the rest of the time.
        if ns > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The longest, in nanoseconds, exactly.
    pub fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// The least value, in nanoseconds, that `thousandths` of 1000 are at or below; at most 1/16 above the true one. 0 if
    /// nothing was recorded.
    pub fn quantile(&self, thousandths: u64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let rank = (u128::from(all) * u128::from(thousandths.min(1000))).div_ceil(1000).max(1);
        let mut seen = 0u128;
        for (at, count) in counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return last_of(at).min(self.longest());
            }
        }
        0
    }

    /// Adds what `other` counted.
    pub fn add(&self, other: &Self) {
        for (own, others) in self.buckets.iter().zip(&other.buckets) {
            let count = others.load(Ordering::Relaxed);
            if count > 0 {
                own.fetch_add(count, Ordering::Relaxed);
            }
        }
        self.longest.fetch_max(other.longest(), Ordering::Relaxed);
    }
}

impl Clone for Histogram {
    fn clone(&self) -> Self {
        let copy = Self::default();
        copy.add(self);
        copy
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50_ns", &self.quantile(500))
            .field("longest_ns", &self.longest())
            .finish()
    }
}

/// Where a value is counted. Values below 16 each have their own; above, the highest bit and the four below it say where.
fn bucket_of(ns: u64) -> usize {
    let ns = ns.min((1 << TOP_BIT) - 1);
    if ns < STEPS {
        return usize::try_from(ns).unwrap_or(0);
    }
    let shift = ns.ilog2() - STEPS_BITS;
    let step = (ns >> shift) - STEPS;
    usize::try_from(u64::from(shift + 1) * STEPS + step).unwrap_or(BUCKETS - 1)
}

/// The greatest value counted in a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    let step = bucket % STEPS + STEPS;
    ((step + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_at_most_a_sixteenth_wide() {
        for bit in 0..TOP_BIT {
            for ns in [1u64 << bit, (1 << bit) + 1, (1 << bit) + (1 << bit) / 3, (2 << bit) - 1] {
                let last = last_of(bucket_of(ns));
                assert!(last >= ns && last - ns <= ns / STEPS, "{ns} counted up to {last}");
                assert!(
                    bucket_of(last) == bucket_of(ns) && bucket_of(last + 1) != bucket_of(ns)
                        || bit + 1 == TOP_BIT
                );
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!((histogram.quantile(500), histogram.longest(), histogram.count()), (0, 0, 0));
        for ns in 1..=1000 {
            histogram.record(Duration::from_nanos(ns * 1000));
        }
        for (thousandths, ns) in [(500u64, 500_000u64), (990, 990_000), (999, 999_000), (1000, 1_000_000)] {
            let found = histogram.quantile(thousandths);
            assert!(found >= ns && found <= ns + ns / STEPS, "{thousandths}: {found}");
        }
        assert_eq!((histogram.longest(), histogram.count()), (1_000_000, 1000));
    }

    #[test]
    fn sums_are_the_same_as_recording_in_one() {
        let (one, two) = (Histogram::default(), Histogram::default());
        one.record(Duration::from_micros(5));
        two.record(Duration::from_millis(7));
        one.add(&two);
        assert_eq!((one.count(), one.longest()), (2, 7_000_000));
        assert_eq!(one.clone().count(), 2);
    }
}
