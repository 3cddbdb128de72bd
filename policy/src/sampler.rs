//! What can be seen of a program's memory: the seam between that and the choice of what goes out.

/// Sees what can be seen of one address space. Blocks, and sets of their pages, are those of [`Victims`](crate::Victims).
///
/// Every kernel tells of pages that come back, since each takes a fault that is served, and of what is in memory, by the page table. Whether a page in memory is used it doesn't
/// tell; who finds out that by a fault of his own takes the page out for it, which is the choice's to do (it *tries* a block). What a kernel tells beside that, without a
/// fault that is served, are [`uses`](Self::uses): of one that notes accesses, or of one that notes writes (asynchronous write protection and `PAGEMAP_SCAN`).
pub trait Sampler {
    /// Why it can't be looked.
    type Error;

    /// Tells which pages came in since the last time, in order. `false`: there was more than is told, or nobody has asked before.
    fn arrivals(&mut self, tell: &mut dyn FnMut(u64, u64)) -> bool;

    /// Tells which pages are in memory, of the blocks that are wanted.
    ///
    /// # Errors
    /// When the page table can't be read.
    fn residents(
        &mut self,
        wanted: &dyn Fn(u64) -> bool,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Self::Error>;

    /// Tells which pages were used, or written to, while they were in memory, since the last time. `false`: nothing sees that here, and that nothing is told
    /// says nothing.
    fn uses(&mut self, tell: &mut dyn FnMut(u64, u64)) -> bool {
        let _ = tell;
        false
    }
}
