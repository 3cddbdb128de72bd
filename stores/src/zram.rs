//! Compressed pages in memory as the kernel's zram keeps them, with what an administrator of zram does from a script done by itself.
//!
//! * **Idle**: a page that was neither put nor fetched for [`idle`](ZramSpec::idle).
//! * **Recompression**: pages of some [kinds](ZramSpec::recompress), and of [`threshold`](ZramSpec::threshold) bytes or more, are compressed again by zstd, with a dictionary where
//!   their owner has one. What didn't get smaller by a sixteenth is never tried again; if it is stored as it came, it is *incompressible*.
//! * **Writeback**: pages of some [kinds](ZramSpec::writeback) go to another store, any at all, no more than [so many bytes a day](ZramSpec::writeback_limit). Of each stay 44 bytes of memory.
//!   When the [memory limit](ZramSpec::mem_limit) is reached, the oldest of some go at once, of the same kinds but whatever their age.
//! * **Compaction**, same-filled pages, checksums: as all [ram stores](crate::ram) have them. It is one.
//! * **Statistics** under zram's names: [`MmStat`], [`BdStat`], [`IoStat`], each of which prints as the file of its name does, and all of which are among the store's
//!   [figures](Store::figures).

use std::fmt;
use std::sync::Arc;

use userswap_store::{
    Budget, Capabilities, Fetch, Handle, Maintained, Page, PageKey, Stats, Store, StoreError, Waiter, Wanted,
};

use crate::calls::Count;
use crate::clock::{self, Clock};
use crate::ram::{Builder, Ram, Recompress, Writeback};
use crate::spec::ZramSpec;

/// zram counts what is on its backing device in these.
const BLOCK: u64 = 4096;

/// A store as zram is one.
///
/// ```
/// use userswap_store::Store;
///
/// # #[cfg(all(feature = "ram-zstd", feature = "ram-lz4"))] {
/// let store = userswap_stores::open("zram?idle=30s&mem_limit=1G", 4096)?;
/// let mut huge = None;
/// store.figures(&mut |name, figure| if name == "huge_pages" { huge = Some(figure) });
/// assert_eq!(huge, Some(0));
/// # }
/// # Ok::<(), userswap_stores::SpecError>(())
/// ```
pub struct Zram {
    ram: Ram,
    capabilities: Capabilities,
    mem_limit: Option<u64>,
    invalid: Count,
}

/// The columns of zram's `mm_stat`, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmStat {
    /// Bytes the stored pages had, written back ones among them.
    pub orig_data_size: u64,
    /// Bytes of the objects in memory.
    pub compr_data_size: u64,
    /// All memory held for them, with rounding, free space, index, dictionaries.
    pub mem_used_total: u64,
    /// The most memory to hold; 0: no limit.
    pub mem_limit: u64,
    /// The most it ever was.
    pub mem_used_max: u64,
    /// Pages that are one word repeated.
    pub same_pages: u64,
    /// Pages of memory that compaction gave back.
    pub pages_compacted: u64,
    /// Pages in memory as they came.
    pub huge_pages: u64,
    /// Pages ever put that were kept as they came.
    pub huge_pages_since: u64,
}

/// The columns of zram's `bd_stat`, in its order and its unit of 4096 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BdStat {
    /// What is in the other store.
    pub bd_count: u64,
    /// What was asked of it.
    pub bd_reads: u64,
    /// What was written to it.
    pub bd_writes: u64,
}

/// The columns of zram's `io_stat`, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStat {
    /// Fetches that failed.
    pub failed_reads: u64,
    /// Puts that found no room, and pages that couldn't be written back.
    pub failed_writes: u64,
    /// Calls that no store allows, such as pages of another size.
    pub invalid_io: u64,
    /// Pages freed.
    pub notify_free: u64,
}

impl Zram {
    /// The store, empty, for pages of `page_size` bytes.
    ///
    /// # Errors
    /// Those of [`Builder::build`](crate::ram::Builder::build) and of the store to write back to.
    pub fn open(spec: ZramSpec, page_size: usize) -> Result<Self, StoreError> {
        Self::with_clock(spec, page_size, clock::from_now())
    }

    /// The same, by this clock.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn with_clock(spec: ZramSpec, page_size: usize, clock: Clock) -> Result<Self, StoreError> {
        let backing = spec.backing.map(|backing| backing.open(page_size)).transpose()?;
        Self::over(ZramSpec { backing: None, ..spec }, backing, page_size, clock)
    }

    /// The same, with this store to write back to instead of the specification's.
    ///
    /// # Errors
    /// Those of [`Builder::build`](crate::ram::Builder::build).
    pub fn over(
        spec: ZramSpec,
        backing: Option<Arc<dyn Store>>,
        page_size: usize,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let (name, builder) = Self::builder(&spec, backing, page_size, clock)?;
        Ok(Self::of(builder.build()?, name, spec.mem_limit))
    }

    /// For [`Spec::open_kept`](crate::spec::Spec::open_kept): what a dead process has left, `behind` being what the store behind was found to hold.
    pub(crate) fn open_kept(
        spec: ZramSpec,
        backing: Option<Arc<dyn Store>>,
        page_size: usize,
        left: Option<std::fs::File>,
        behind: &[(PageKey, Handle)],
    ) -> Result<(Self, Vec<(PageKey, Handle)>), StoreError> {
        let (name, builder) = Self::builder(&spec, backing, page_size, clock::from_now())?;
        let builder = builder.recoverable(true);
        let (ram, found) = match left {
            Some(left) => builder.rebuild_over(left, behind)?,
            None => (builder.build()?, Vec::new()),
        };
        Ok((Self::of(ram, name, spec.mem_limit), found))
    }

    /// What its pages in memory are in.
    pub(crate) fn arena_file(&self) -> &std::fs::File {
        self.ram.arena_file()
    }

    fn of(ram: Ram, name: String, mem_limit: Option<u64>) -> Self {
        let mut capabilities = ram.capabilities();
        capabilities.name = name.into();
        Self { ram, capabilities, mem_limit, invalid: Count::default() }
    }

    fn builder(
        spec: &ZramSpec,
        backing: Option<Arc<dyn Store>>,
        page_size: usize,
        clock: Clock,
    ) -> Result<(String, Builder), StoreError> {
        let recompress = spec.dense.map(|level| Recompress {
            level,
            kinds: spec.recompress,
            idle: spec.idle,
            threshold: spec.threshold,
        });
        let writeback = backing.map(|store| Writeback {
            store,
            kinds: spec.writeback,
            idle: spec.writeback_idle,
            limit: spec.writeback_limit,
        });
        let name = match &writeback {
            Some(to) => format!("zram:{}", to.store.capabilities().name),
            None => "zram".to_owned(),
        };
        let mut builder = Ram::with_codec(spec.codec()?).page_size(page_size).clock(clock);
        builder = builder
            .deduplicate(spec.dedup)
            .dictionary(spec.dictionary)
            .recompress(recompress)
            .write_back(writeback);
        if let Some(bytes) = spec.mem_limit {
            builder = builder.capacity(bytes);
        }
        Ok((name, builder))
    }

    /// What zram tells in `mm_stat`.
    pub fn mm_stat(&self) -> MmStat {
        let inside = self.ram.inside();
        let pages = inside.stats.pages;
        MmStat {
            orig_data_size: pages * self.capabilities.page_size as u64,
            compr_data_size: inside.stats.stored_bytes,
            mem_used_total: inside.stats.memory_bytes,
            mem_limit: self.mem_limit.unwrap_or(0),
            mem_used_max: inside.most_memory_bytes,
            same_pages: inside.stats.same_filled_pages,
            pages_compacted: inside.compacted_bytes / BLOCK,
            huge_pages: inside.stats.incompressible_pages,
            huge_pages_since: inside.raw_puts,
        }
    }

    /// What zram tells in `bd_stat`.
    pub fn bd_stat(&self) -> BdStat {
        let inside = self.ram.inside();
        let blocks = |pages: u64| pages * self.capabilities.page_size as u64 / BLOCK;
        BdStat {
            bd_count: blocks(inside.elsewhere_pages),
            bd_reads: blocks(inside.elsewhere_fetches),
            bd_writes: blocks(inside.written_back_pages),
        }
    }

    /// What zram tells in `io_stat`.
    pub fn io_stat(&self) -> IoStat {
        let (stats, inside) = (self.ram.stats(), self.ram.inside());
        IoStat {
            failed_reads: stats.fetch_errors,
            failed_writes: stats.full + inside.failed_writebacks,
            invalid_io: self.invalid.get(),
            notify_free: stats.frees,
        }
    }

    fn counted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(result, Err(StoreError::Unsupported { .. })) {
            self.invalid.add(1);
        }
        result
    }
}

impl MmStat {
    /// Its columns, by name.
    pub fn columns(&self) -> [(&'static str, u64); 9] {
        [
            ("orig_data_size", self.orig_data_size),
            ("compr_data_size", self.compr_data_size),
            ("mem_used_total", self.mem_used_total),
            ("mem_limit", self.mem_limit),
            ("mem_used_max", self.mem_used_max),
            ("same_pages", self.same_pages),
            ("pages_compacted", self.pages_compacted),
            ("huge_pages", self.huge_pages),
            ("huge_pages_since", self.huge_pages_since),
        ]
    }
}

impl BdStat {
    /// Its columns, by name.
    pub fn columns(&self) -> [(&'static str, u64); 3] {
        [("bd_count", self.bd_count), ("bd_reads", self.bd_reads), ("bd_writes", self.bd_writes)]
    }
}

impl IoStat {
    /// Its columns, by name.
    pub fn columns(&self) -> [(&'static str, u64); 4] {
        [
            ("failed_reads", self.failed_reads),
            ("failed_writes", self.failed_writes),
            ("invalid_io", self.invalid_io),
            ("notify_free", self.notify_free),
        ]
    }
}

impl fmt::Display for MmStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, &self.columns())
    }
}

impl fmt::Display for BdStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, &self.columns())
    }
}

impl fmt::Display for IoStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, &self.columns())
    }
}

/// Columns of eight places at least, a space between.
fn line(f: &mut fmt::Formatter<'_>, columns: &[(&str, u64)]) -> fmt::Result {
    for (number, (_, figure)) in columns.iter().enumerate() {
        let space = if number == 0 { "" } else { " " };
        write!(f, "{space}{figure:>8}")?;
    }
    Ok(())
}

impl Store for Zram {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
        self.counted(self.ram.put(pages, handles))
    }

    fn fetch(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
        waiter: &Waiter,
    ) -> Result<Fetch, StoreError> {
        self.counted(self.ram.fetch(handle, key, out, waiter))
    }

    fn fetch_run(
        &self,
        wanted: &[Wanted],
        out: &mut [u8],
        results: &mut [Result<Fetch, StoreError>],
        waiter: &Waiter,
    ) -> Result<(), StoreError> {
        self.counted(self.ram.fetch_run(wanted, out, results, waiter))
    }

    fn fetch_in_handler(
        &self,
        handle: Handle,
        key: PageKey,
        out: &mut [u8],
    ) -> Option<Result<(), StoreError>> {
        self.ram.fetch_in_handler(handle, key, out)
    }

    fn free(&self, handles: &[Handle]) {
        self.ram.free(handles);
    }

    fn stats(&self) -> Stats {
        self.ram.stats()
    }

    fn stored_len(&self, handle: Handle) -> Option<usize> {
        self.ram.stored_len(handle)
    }

    fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
        for (name, figure) in self.mm_stat().columns() {
            tell(name, figure);
        }
        let (bd, io) = (self.bd_stat().columns(), self.io_stat().columns());
        bd.into_iter().chain(io).for_each(|(name, figure)| tell(name, figure));
        self.ram.figures(tell);
    }

    fn maintain(&self, budget: Budget) -> Maintained {
        self.ram.maintain(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_print_as_zrams_files_do() {
        let io = IoStat { failed_reads: 1, failed_writes: 0, invalid_io: 123_456_789, notify_free: 4 };
        assert_eq!(io.to_string(), "       1        0 123456789        4");
        let names = MmStat::default().columns().map(|(name, _)| name);
        assert_eq!(MmStat::default().to_string().split_whitespace().count(), names.len());
        assert_eq!(BdStat::default().to_string(), "       0        0        0");
    }
}
