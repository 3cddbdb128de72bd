//! Layers: stores around a store. Each keeps the laws if what is inside does.
//!
//! | layer | what it adds | handles |
//! |---|---|---|
//! | [`Checked`] | a checksum over key and bytes, kept in memory: damage inside is found | its own |
//! | [`Sealed`] | AES-256-GCM-SIV over each page, tags kept in memory: inside nobody reads or forges a page | its own |
//! | [`Metered`] | how long calls take | as inside |
//! | [`Chaos`] | latency, errors, damage and sudden death, from a seed | as inside |
//!
//! A page has the same length on both sides of a layer. What is sealed doesn't compress: seal what leaves the machine, not what is compressed in memory.

/// The trait for a layer that is all in its field.
macro_rules! forwarded {
    ($layer:ident) => {
        impl Store for $layer {
            fn capabilities(&self) -> Capabilities {
                self.0.capabilities()
            }
            fn put(&self, pages: &[Page<'_>], handles: &mut [Option<Handle>]) -> Result<(), StoreError> {
                self.0.put(pages, handles)
            }
            fn fetch(
                &self,
                handle: Handle,
                key: PageKey,
                out: &mut [u8],
                waiter: &Waiter,
            ) -> Result<Fetch, StoreError> {
                self.0.fetch(handle, key, out, waiter)
            }
            fn fetch_run(
                &self,
                wanted: &[Wanted],
                out: &mut [u8],
                results: &mut [Result<Fetch, StoreError>],
                waiter: &Waiter,
            ) -> Result<(), StoreError> {
                self.0.fetch_run(wanted, out, results, waiter)
            }
            fn free(&self, handles: &[Handle]) {
                self.0.free(handles);
            }
            fn stats(&self) -> Stats {
                self.0.stats()
            }
            fn stored_len(&self, handle: Handle) -> Option<usize> {
                self.0.stored_len(handle)
            }
            fn figures(&self, tell: &mut dyn FnMut(&str, u64)) {
                self.0.figures(tell);
            }
            fn maintain(&self, budget: Budget) -> Maintained {
                self.0.maintain(budget)
            }
        }
    };
}
use forwarded;

mod chaos;
mod checked;
mod guarded;
mod metered;
#[cfg(feature = "seal")]
mod sealed;
mod timer;

pub use chaos::{Chaos, Mischief};
pub use checked::Checked;
#[cfg(feature = "plugin")]
pub(crate) use checked::sum;
pub use metered::Metered;
#[cfg(feature = "seal")]
pub use sealed::Sealed;
