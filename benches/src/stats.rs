//! Percentiles of touches, and medians over rounds.

use serde::{Deserialize, Serialize};

/// How long the touches of one pass took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pass {
    /// Touches.
    pub(crate) touches: usize,
    /// How many of them led to a page fault. The others found a page that came with a neighbour's.
    pub(crate) faults: usize,
    /// Over the touches that led to a fault, in nanoseconds.
    pub(crate) p50_ns: f64,
    /// 99th percentile, likewise.
    pub(crate) p99_ns: f64,
    /// 99.9th percentile, likewise.
    pub(crate) p999_ns: f64,
    /// Over all touches.
    pub(crate) mean_ns: f64,
    /// A touch's nanoseconds in the middle one of all blocks of [`BLOCK`] consecutive touches: the mean without the few
    /// blocks in which the machine had something else to do.
    pub(crate) block_ns: f64,
    /// From the first thread's start to the last one's end.
    pub(crate) wall_ns: f64,
    /// Of the touches that led to a fault: the values below which 0, 1, 2 … [`PARTS`] parts of all lie, in nanoseconds.
    pub(crate) cdf_ns: Vec<f64>,
    /// Touches in each of [`SLICES`] equal parts of the time, all threads together.
    pub(crate) timeline: Vec<f64>,
}

/// Steps of a distribution.
pub(crate) const PARTS: usize = 100;

/// Steps of a timeline.
pub(crate) const SLICES: usize = 40;

/// Several times the pages that come with one fault, far fewer than a pass has.
const BLOCK: usize = 128;

impl Pass {
    /// From every touch's nanoseconds, in order, thread by thread. The touches that led to no fault are the shortest.
    pub(crate) fn new(threads: &[Vec<u32>], faults: usize, wall_ns: f64) -> Self {
        let blocks = threads.iter().flat_map(|touches| touches.chunks(BLOCK)).map(mean);
        let block_ns = Spread::of(blocks).map_or(0.0, |spread| spread.median);
        let timeline = timeline(threads);
        let mut touches = threads.concat();
        touches.sort_unstable();
        let faults = faults.min(touches.len());
        let faulting = &touches[touches.len() - faults..];
        Self {
            touches: touches.len(),
            faults,
            p50_ns: quantile(faulting, 500),
            p99_ns: quantile(faulting, 990),
            p999_ns: quantile(faulting, 999),
            mean_ns: mean(&touches),
            block_ns,
            wall_ns,
            cdf_ns: (0..=PARTS).map(|part| quantile(faulting, part * 1000 / PARTS)).collect(),
            timeline,
        }
    }

    /// Pages a second, all threads together.
    pub(crate) fn throughput(&self) -> f64 {
        self.touches as f64 * 1e9 / self.wall_ns.max(1.0)
    }
}

/// How many touches ended in which part of the time that the slowest thread took.
fn timeline(threads: &[Vec<u32>]) -> Vec<f64> {
    let whole = |touches: &Vec<u32>| touches.iter().map(|&ns| u64::from(ns)).sum::<u64>();
    let longest = threads.iter().map(whole).max().unwrap_or(0).max(1);
    let mut slices = vec![0.0; SLICES];
    for touches in threads {
        let mut now = 0;
        for &ns in touches {
            now += u64::from(ns);
            let slice = (u128::from(now - 1.min(now)) * SLICES as u128 / u128::from(longest)) as usize;
            slices[slice.min(SLICES - 1)] += 1.0;
        }
    }
    slices
}

fn mean(touches: &[u32]) -> f64 {
    let sum: u64 = touches.iter().map(|&ns| u64::from(ns)).sum();
    sum as f64 / touches.len().max(1) as f64
}

/// The value below which so many in a thousand of the sorted values lie; 0 of none.
fn quantile(sorted: &[u32], per_mille: usize) -> f64 {
    let at = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
    sorted.get(at).map_or(0.0, |&ns| f64::from(ns))
}

/// One figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let high = values.len() / 2;
        let low = (values.len() - 1) / 2;
        Some(Self { median: f64::midpoint(values[low], values[high]), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touches_without_a_fault_are_no_part_of_the_percentiles() {
        let pass = Pass::new(&[vec![30, 10, 1, 2], vec![20, 40]], 4, 100.0);
        assert_eq!((pass.touches, pass.faults), (6, 4));
        assert_eq!((pass.p50_ns, pass.p99_ns), (20.0, 40.0));
        assert!((pass.mean_ns - 103.0 / 6.0).abs() < 1e-9);
        assert_eq!(Pass::new(&[], 0, 0.0).p50_ns, 0.0);
        assert_eq!(Pass::new(&[vec![5]], 9, 1.0).faults, 1);
    }

    #[test]
    fn one_long_wait_is_no_part_of_the_middle_block() {
        let mut touches = vec![10; 5 * BLOCK];
        touches[BLOCK] = 1_000_000;
        let pass = Pass::new(&[touches], 5 * BLOCK, 1.0);
        assert!(pass.mean_ns > 1000.0);
        assert_eq!(pass.block_ns, 10.0);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let pass = Pass::new(&[(1..=1000).rev().collect()], 1000, 1.0);
        assert_eq!((pass.p50_ns, pass.p99_ns, pass.p999_ns), (500.0, 990.0, 999.0));
    }

    #[test]
    fn every_touch_is_in_the_timeline_once() {
        let pass = Pass::new(&[vec![10; 80], vec![20; 20]], 100, 800.0);
        assert_eq!(pass.timeline.len(), SLICES);
        assert_eq!(pass.timeline.iter().sum::<f64>(), 100.0);
        assert_eq!((pass.timeline[0], pass.timeline[SLICES - 1]), (3.0, 2.0));
        assert_eq!((pass.cdf_ns.len(), pass.cdf_ns[PARTS]), (PARTS + 1, 20.0));
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).map(|spread| spread.median), Some(2.5));
    }
}
