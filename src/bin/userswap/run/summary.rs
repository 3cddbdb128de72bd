//! What a run came to: a line for people, JSON for machines.

use super::{Bytes, Totals};
use serde::Serialize;
use std::fmt;
use userswap::run::Unmanaged;

/// The report of `userswap run`. What a daemon elsewhere did is in that one's books, and `null` here.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) totals: Option<Totals>,
    /// Measured here when a daemon elsewhere served; otherwise it is in the totals.
    #[serde(rename = "peak_pss_anon_bytes", skip_serializing_if = "Option::is_none")]
    pub(crate) peak_pss_anon_bytes: Option<u64>,
    /// What ran as it always does.
    pub(crate) unmanaged: Vec<Unmanaged>,
    pub(crate) duration_s: f64,
}

impl Report {
    pub(crate) fn new(totals: Option<Totals>, unmanaged: Vec<Unmanaged>) -> Self {
        Self { totals, peak_pss_anon_bytes: None, unmanaged, duration_s: 0.0 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.duration_s)?;
        if let Some(totals) = &self.totals {
            write!(
                f,
                ", at most {} in memory, {} pages out and {} in, {} faults (p50 {} µs, p99 {} µs)",
                Bytes(totals.peak_pss_anon_bytes),
                totals.pages_out,
                totals.pages_in,
                totals.faults,
                totals.fault_ns.p50 / 1000,
                totals.fault_ns.p99 / 1000
            )?;
            if totals.store_memory_bytes > 0 {
                write!(f, ", {} stored in {}", Bytes(totals.raw_bytes), Bytes(totals.store_memory_bytes))?;
            }
            if totals.poisoned_pages > 0 {
                write!(f, ", {} PAGES LOST", totals.poisoned_pages)?;
            }
            if totals.limit.samples_over > 0 {
                write!(
                    f,
                    ", over the limit in {} of {} samples, by {} at most",
                    totals.limit.samples_over,
                    totals.limit.samples,
                    Bytes(totals.limit.worst_over_bytes)
                )?;
            }
        } else if let Some(peak) = self.peak_pss_anon_bytes {
            write!(f, ", at most {} in memory, served by a daemon elsewhere", Bytes(peak))?;
        }
        for unmanaged in &self.unmanaged {
            write!(f, "; {} not managed: {}", unmanaged.program, unmanaged.reason)?;
            if unmanaged.processes > 1 {
                write!(f, " ({} processes)", unmanaged.processes)?;
            }
        }
        Ok(())
    }
}
