//! Bringing back: whole ranges, on the way to leaving them to the kernel again.

use super::{AROUND, piece_span};
use crate::core::PageIndex;
use crate::fault::{FaultWork, Why};
use crate::memory::MemoryError;
use crate::space::{CalledOff, Space};
use std::sync::Arc;
use std::time::Duration;
use userswap_uffd::Span;

/// How often pages that others bring back are looked after.
pub(crate) const ON_THE_WAY: Duration = Duration::from_micros(100);

impl Space {
    /// Brings back everything that is out of the regions in `span` and, where nothing of a region is out any more, leaves its
    /// range to the kernel again. Returns the pages that came back.
    ///
    /// # Errors
    /// When the address space is gone.
    pub fn bring_back(self: &Arc<Self>, span: Span, around: u32) -> Result<u64, MemoryError> {
        let _mover = self.mover.lock();
        let mut work = FaultWork::new(around);
        let before = self.out_in(span);
        // What others are bringing back, or the store will give later, is waited for; what had to go back is asked for again.
        while self.ask_back(&mut work, span) {
            // Nothing can be put back there any more, however often it is asked for.
            if self.memory().is_gone() {
                return Err(MemoryError::Gone);
            }
            std::thread::sleep(ON_THE_WAY);
        }
        let brought = u64::from(before.saturating_sub(self.out_in(span)));
        self.unregister_if_back()?;
        self.reclaim_slots()?;
        Ok(brought)
    }

    /// Brings in what is at an address, and as much behind it as goes with it, before anybody asks for it; unless that was called off since.
    pub(crate) fn bring_ahead(self: &Arc<Self>, work: &mut FaultWork, addr: u64, called_off: CalledOff) {
        let Some(_on) = self.called_off.try_read().filter(|now| **now == called_off) else { return };
        let is_away = {
            let directory = self.shared();
            directory.find(addr).is_some_and(|(region, page)| region.lock().state(page).is_away())
        };
        if is_away {
            work.bring(self, addr, Why::Ahead);
        }
    }

    /// Asks for every page of `span` that is out and not on its way. Whether some are on their way then, for longer than this call.
    fn ask_back(self: &Arc<Self>, work: &mut FaultWork, span: Span) -> bool {
        let mut on_the_way = false;
        for part in self.live_parts(span) {
            for page in (0..part.piece.pages).map(|n| part.piece.first.plus(n)) {
                // The lock is let go before the work, which takes it.
                let wanted = {
                    let shard = part.region.lock();
                    if shard.state(page).is_away() { shard.address(page) } else { None }
                };
                if let Some((addr, _)) = wanted {
                    work.bring(self, addr, Why::All(u32::MAX));
                }
            }
            let shard = part.region.lock();
            on_the_way |= (0..part.piece.pages).map(|n| part.piece.first.plus(n)).any(|page| {
                // A page that isn't mapped any more is nobody's to wait for.
                let state = shard.state(page);
                (state.is_away() || shard.is_on_its_way(page)) && shard.address(page).is_some()
            });
        }
        on_the_way
    }

    /// Pages out in the parts of `span`, lost ones aside.
    fn out_in(&self, span: Span) -> u32 {
        self.live_parts(span)
            .iter()
            .map(|part| {
                let shard = part.region.lock();
                let pages = (0..part.piece.pages).map(|n| part.piece.first.plus(n));
                let out = pages.filter(|page| shard.state(*page).is_out()).count();
                u32::try_from(out).unwrap_or(u32::MAX)
            })
            .sum()
    }

    /// Takes every region with a part in `span` out of care, all of it, bringing back what is out. Its range is left to the kernel.
    ///
    /// # Errors
    /// [`MemoryError::Refused`] if pages of it are still on their way, or couldn't be brought back; it stays in care.
    pub fn let_go(self: &Arc<Self>, span: Span) -> Result<(), MemoryError> {
        for part in self.live_parts(span) {
            let whole: Vec<Span> = {
                let shard = part.region.lock();
                shard.mapped().iter().filter_map(|piece| piece_span(*piece)).collect()
            };
            for piece in whole {
                self.bring_back(piece, AROUND)?;
            }
        }
        let _mover = self.mover.lock();
        let mut directory = self.exclusive();
        let parts = directory.parts(span);
        if parts.iter().any(|part| part.region.lock().out() > 0) {
            if self.memory().is_gone() {
                return Err(MemoryError::Gone);
            }
            let reason = "part of it is still out".into();
            return Err(MemoryError::Refused { doing: "letting go of", span, reason });
        }
        // See `unregister_if_back`. A range that stays registered costs its first touches a fault, and nothing else.
        let safe = !directory.any_out();
        for part in &parts {
            let (pieces, registered) = {
                let mut shard = part.region.lock();
                let pieces: Vec<Span> =
                    shard.mapped().iter().filter_map(|piece| piece_span(*piece)).collect();
                let registered = shard.is_registered();
                shard.set_registered(false);
                (pieces, registered)
            };
            for piece in pieces {
                if registered && safe {
                    // A range that is gone without our knowing needs no unregistering.
                    let _ = self.memory().unregister(piece);
                } else if registered {
                    self.note_leftover(piece);
                }
                directory.take(piece);
            }
        }
        self.write_down(&directory, 0);
        Ok(())
    }

    /// Leaves every region's range to the kernel, where no removal of its pages is pending, if nothing at all is out. The caller
    /// holds the mover.
    ///
    /// Nothing at all: the kernel unregisters whatever is mapped at an address, also while it changes, and what landed there
    /// a moment ago may be another region. With pages out, their owner would read zeros.
    #[doc(hidden)]
    pub fn unregister_if_back(&self) -> Result<(), MemoryError> {
        let mut present = Vec::new();
        let directory = self.shared();
        if directory.is_closed() {
            return Err(MemoryError::Gone);
        }
        if directory.any_out() {
            return Ok(());
        }
        for part in directory.all() {
            let region = &part.region;
            let mapped = {
                let shard = region.lock();
                if !shard.is_registered() {
                    continue;
                }
                shard.mapped().to_vec()
            };
            let mut pending = false;
            for piece in &mapped {
                let Some(span) = piece_span(*piece) else { continue };
                self.memory().resident(span, &mut present)?;
                let base = piece.first;
                let is_present = |page: PageIndex| {
                    page.0
                        .checked_sub(base.0)
                        .and_then(|at| present.get(at as usize))
                        .copied()
                        .unwrap_or(true)
                };
                pending |= region.lock().settle_removed(base, piece.pages, &is_present);
            }
            if pending || region.lock().out() > 0 {
                continue;
            }
            region.lock().set_registered(false);
            for span in mapped.iter().filter_map(|piece| piece_span(*piece)) {
                if let Err(MemoryError::Gone) = self.memory().unregister(span) {
                    return Err(MemoryError::Gone);
                }
            }
        }
        self.unregister_leftover();
        Ok(())
    }
}
