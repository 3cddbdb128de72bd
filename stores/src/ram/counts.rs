//! What a store counts.

use std::sync::atomic::Ordering;

use userswap_store::Stats;

use super::Ram;
use super::object::Form;
use super::same::Same;
use super::writeback::Back;
use crate::calls::Count;

/// What a shard's entries amount to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pages: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) raw: u64,
    pub(crate) filled: u64,
    pub(crate) elsewhere: u64,
    /// Pages that are the same as others.
    pub(crate) same: u64,
    compressed: u64,
    /// Objects that came raw, ever.
    pub(crate) raw_puts: u64,
    pub(crate) puts: u64,
    pub(crate) frees: u64,
    pub(crate) fetches: u64,
}

impl Counts {
    /// Which of them counts objects of this form.
    pub(super) fn of(&mut self, form: Form) -> &mut u64 {
        match form {
            Form::Raw | Form::DenseRaw => &mut self.raw,
            Form::Filled => &mut self.filled,
            Form::Elsewhere => &mut self.elsewhere,
            Form::Same => &mut self.same,
            _ => &mut self.compressed,
        }
    }
}

/// What a store counts that isn't in its [`Stats`].
pub(crate) struct Inside {
    /// Without the store pages are written back to.
    pub(crate) stats: Stats,
    pub(crate) most_memory_bytes: u64,
    pub(crate) compacted_bytes: u64,
    /// Pages ever put that were kept as they came.
    pub(crate) raw_puts: u64,
    pub(crate) elsewhere_pages: u64,
    pub(crate) elsewhere_fetches: u64,
    pub(crate) written_back_pages: u64,
    pub(crate) failed_writebacks: u64,
}

impl Ram {
    pub(crate) fn inside(&self) -> Inside {
        let (counts, back) = (self.index.counts(), self.back.as_ref());
        let of_back = |count: fn(&Back) -> &Count| back.map_or(0, |back| count(back).get());
        Inside {
            stats: self.own_stats(&counts),
            most_memory_bytes: self.held.most(),
            compacted_bytes: self.compacted_bytes.get(),
            raw_puts: counts.raw_puts,
            elsewhere_pages: counts.elsewhere,
            elsewhere_fetches: of_back(|back| &back.read),
            written_back_pages: of_back(|back| &back.written),
            failed_writebacks: of_back(|back| &back.failed),
        }
    }

    /// Without the store pages are written back to.
    pub(super) fn own_stats(&self, counts: &Counts) -> Stats {
        let in_handles = self.in_handles.load(Ordering::Relaxed);
        let filled_puts = self.filled_puts.load(Ordering::Relaxed);
        // Bytes that several pages have in common have an entry of their own.
        let of_same = |count: fn(&Same) -> &Count| self.same.as_ref().map_or(0, |same| count(same).get());
        let (made, ended) = (of_same(|same| &same.made), of_same(|same| &same.ended));
        let mut stats = Stats::default();
        stats.pages = (counts.pages + in_handles).saturating_sub(made - ended.min(made));
        stats.raw_bytes = stats.pages * self.capabilities.page_size as u64;
        stats.stored_bytes = counts.stored_bytes + self.dictionaries.stored_bytes();
        stats.memory_bytes = self.held.bytes();
        stats.same_filled_pages = counts.filled + in_handles;
        stats.incompressible_pages = counts.raw;
        stats.puts = (counts.puts + filled_puts).saturating_sub(made);
        stats.fetches = counts.fetches + self.filled_fetches.load(Ordering::Relaxed);
        stats.frees = (counts.frees + filled_puts.saturating_sub(in_handles)).saturating_sub(ended);
        stats.full = self.full.load(Ordering::Relaxed);
        stats.fetch_errors = self.fetch_errors.load(Ordering::Relaxed);
        stats.bad_frees = self.bad_frees.load(Ordering::Relaxed);
        stats
    }
}
