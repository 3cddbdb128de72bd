//! Memory of the daemon's own process, in care beside that of its clients.
#![allow(unsafe_code)]

use super::error::ServerError;
use super::server::Server;
use std::sync::Arc;
use userswap_engine::{Keep, LocalReach, MemoryError, MovedOut, Pacer, Space, SpaceId, Watched};
use userswap_uffd::{Span, Uffd, page_bytes};

impl Server {
    /// Takes `ranges` of this process into care by a userfaultfd of the caller's, whose handshake is made. It should have the
    /// features for events and for moving ([`Features`](userswap_uffd::Features)): changes that raise no event go by unseen, and
    /// without `MOVE` nothing can be moved out.
    ///
    /// The ranges are moved out by [`evict_own`](Self::evict_own) and come back when they are touched, by
    /// [`restore_own`](Self::restore_own), and when the server is drained. Limits are for clients; this memory is outside of them.
    ///
    /// # Errors
    /// When there is no memory or descriptor for it, or a range overlaps another. None is in care then.
    ///
    /// # Safety
    /// * Each range is one private anonymous mapping, readable and writable, and the caller has the say over it. If it is unmapped
    ///   or moved while nothing of it is registered, which raises no event, it must have been let go of before.
    /// * Its contents may go and come back behind its users' backs: no device writes to it, and no handler of the server's
    ///   needs it. Neither the allocator of this program nor the stacks of its threads live there.
    /// * If the userfaultfd reports forks, this process forks by the bare system call alone: the C library's fork holds the allocator's
    ///   locks until a handler, which may be waiting for them, has read of it.
    /// * It isn't registered with another userfaultfd, and whoever holds another descriptor of this one leaves the ranges alone.
    pub unsafe fn adopt_own(&self, uffd: Uffd, ranges: &[Span]) -> Result<SpaceId, ServerError> {
        let reach = LocalReach::new(self.inner.admission.staging_pages * page_bytes())?;
        let memory = Watched::new(uffd, reach)
            .map_err(|source| ServerError::Start { doing: "making a ring", source })?;
        let (id, space) = self
            .engine()
            .adopt(Arc::new(memory))
            .map_err(|source| ServerError::Start { doing: "watching memory of this process", source })?;
        for range in ranges {
            if let Err(error) = space.manage(*range) {
                self.engine().forget(id);
                return Err(error.into());
            }
        }
        Ok(id)
    }

    /// Moves out up to `bytes` (all there is, with `None`) of the memory adopted as `id`. Returns when they are out.
    ///
    /// # Errors
    /// Why it stopped early; nothing is lost.
    pub fn evict_own(&self, id: SpaceId, bytes: Option<u64>) -> Result<MovedOut, ServerError> {
        let pages = bytes.map_or(u64::MAX, |bytes| bytes.div_ceil(page_bytes()));
        Ok(Pacer::new().move_out(self.own(id)?.as_ref(), pages, Keep::Stored)?)
    }

    /// Brings all of the memory adopted as `id` back. Returns the bytes.
    ///
    /// # Errors
    /// That it couldn't be.
    pub fn restore_own(&self, id: SpaceId) -> Result<u64, ServerError> {
        Ok(self.engine().bring_back_all(&self.own(id)?)? * page_bytes())
    }

    fn own(&self, id: SpaceId) -> Result<Arc<Space>, ServerError> {
        self.engine().space(id).ok_or(ServerError::Memory(MemoryError::Gone))
    }
}
