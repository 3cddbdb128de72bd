//! The real work of a client: carrying out what the daemon orders, after looking at it.
//!
//! Nothing here talks: the [`Agent`](crate::agent) feeds it messages and sends its answers.

use userswap_uffd::{Outcome, Span, SpanError, Stop};

use crate::contract::{
    GetPartitionAllocSuperPagesUsed, MapArea, MemoryRegion, Method, MovePtesLeavingMapping,
};
use crate::extension::{Drop, DropHow, MAX_MOVES, MoveRange, MoveResult, MoveStop, Mover};
use crate::superpages::{Superpages, superpages_used};
use crate::wire::MAX_REGIONS;

/// What a receiver does to memory: the kernel, or in a test something that takes notes.
pub trait Memory: Send {
    /// mremap(MAYMOVE|DONTUNMAP|FIXED) of `src` to `dest`, the length unchanged.
    ///
    /// # Errors
    /// The kernel's: nothing was moved.
    fn move_ptes(&mut self, src: Span, dest: u64) -> Result<(), userswap_uffd::Error>;

    /// mmap(PROT_NONE, FIXED|PRIVATE|ANONYMOUS) over `area`.
    ///
    /// # Errors
    /// The kernel's.
    fn map_none(&mut self, area: Span) -> Result<(), userswap_uffd::Error>;

    /// madvise(DONTNEED) of `area`.
    ///
    /// # Errors
    /// The kernel's.
    fn dont_need(&mut self, area: Span) -> Result<(), userswap_uffd::Error>;

    /// UFFDIO_MOVE of `src` to `dest`.
    fn uffd_move(&mut self, src: Span, dest: u64) -> Outcome;

    /// mincore(2): which pages of `area` are in core, one element a page.
    ///
    /// # Errors
    /// The kernel's; some of it isn't mapped.
    fn in_core(&mut self, area: Span, pages: &mut Vec<bool>) -> Result<(), userswap_uffd::Error>;
}

/// Ends the process that couldn't carry out a one-way order, as the contract demands: the daemon takes the memory for moved and
/// would serve it wrongly.
pub trait Kill: Send {
    /// Ends the process and says why. One that returns, for a test to look at, makes the agent close the connection.
    fn kill(&mut self, reason: &ReceiverError);
}

/// Says a sentence on standard error and aborts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abort;

impl Kill for Abort {
    fn kill(&mut self, reason: &ReceiverError) {
        use std::error::Error;
        let cause = reason.source().map(|source| format!(": {source}")).unwrap_or_default();
        let sentence =
            format!("userswap: this process ends, for an order of the swap daemon failed: {reason}{cause}\n");
        // Not by the standard library: its lock may be held by a thread that waits for the daemon.
        let _ = rustix::io::write(rustix::stdio::stderr(), sentence.as_bytes());
        std::process::abort();
    }
}

/// Why an order wasn't carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiverError {
    /// A range that is none.
    #[error("{method} of {region:?}: no range of whole pages")]
    NotARange {
        /// The order.
        method: &'static str,
        /// The range it names.
        region: MemoryRegion,
        /// What is wrong with it.
        source: SpanError,
    },
    /// A destination or area outside of what the client set aside for it.
    #[error("{method}: {area:?} is not inside the {within}")]
    Outside {
        /// The order.
        method: &'static str,
        /// The range it names.
        area: Span,
        /// Where it should lie.
        within: &'static str,
    },
    /// A source that is the client end's own memory.
    #[error("{method}: the source {src:?} is not the program's, it touches the {what}")]
    OwnSource {
        /// The order.
        method: &'static str,
        /// The source.
        src: Span,
        /// What it touches.
        what: &'static str,
    },
    /// The kernel refused.
    #[error("{method} of {area:?}")]
    Kernel {
        /// The order.
        method: &'static str,
        /// The range it names.
        area: Span,
        /// The kernel's reason.
        source: userswap_uffd::Error,
    },
    /// The program couldn't say which superpages it uses.
    #[error("asking which areas are in use")]
    Superpages(#[source] std::io::Error),
}

/// What the client set aside, and what of its own must stay.
#[derive(Clone, Copy, Debug)]
pub struct Areas {
    /// Where `MovePTEsLeavingMapping` may move to.
    pub swap: Span,
    /// Where UFFDIO_MOVE may move to.
    pub staging: Option<Span>,
    /// The mapping with the agent's stack: it must be there while an order is carried out.
    pub stack: Option<Span>,
}

/// Carries out orders.
pub struct Receiver<M> {
    memory: M,
    areas: Areas,
    superpages: Box<dyn Superpages>,
}

impl<M: Memory> Receiver<M> {
    /// One that works on `memory` within `areas`, and asks `superpages` what the program uses.
    pub fn new(memory: M, areas: Areas, superpages: Box<dyn Superpages>) -> Self {
        Self { memory, areas, superpages }
    }

    /// `MovePTEsLeavingMapping`.
    ///
    /// # Errors
    /// What is wrong with the order, or the kernel's refusal: nothing was moved, and the process is to be killed.
    pub fn move_ptes(&mut self, order: &MovePtesLeavingMapping) -> Result<(), ReceiverError> {
        let method = Method::MOVE_PTES_LEAVING_MAPPING.name;
        let (src, dest) = self.check_move(method, order.src, order.dest, Mover::Remap)?;
        let moved = self.memory.move_ptes(src, dest.start());
        moved.map_err(|source| ReceiverError::Kernel { method, area: src, source })
    }

    /// `MapArea`.
    ///
    /// # Errors
    /// As [`Receiver::move_ptes`].
    pub fn map_area(&mut self, order: &MapArea) -> Result<(), ReceiverError> {
        self.drop_area(Method::MAP_AREA.name, order.area, DropHow::MapArea)
    }

    /// `GetPartitionAllocSuperPagesUsed`: what of the program's areas is in core.
    ///
    /// # Errors
    /// [`ReceiverError::Superpages`].
    pub fn superpages_used(
        &mut self,
        question: &GetPartitionAllocSuperPagesUsed,
    ) -> Result<Vec<MemoryRegion>, ReceiverError> {
        let mut offered = Vec::new();
        if question.max_superpages != 0 {
            self.superpages.areas(&mut offered).map_err(ReceiverError::Superpages)?;
        }
        let own = [Some(self.areas.swap), self.areas.staging, self.areas.stack];
        for own in own.into_iter().flatten() {
            offered = offered.iter().flat_map(|area| without(*area, &own)).collect();
        }
        let most = usize::try_from(question.max_superpages).ok();
        let memory = &mut self.memory;
        let mut pages = Vec::new();
        let in_core = |area: Span| match memory.in_core(area, &mut pages) {
            Ok(()) => pages.contains(&true),
            // Unmapped since it was offered.
            Err(_) => false,
        };
        Ok(superpages_used(&offered, most, MAX_REGIONS, in_core))
    }

    /// `Move`. Nothing is touched but the stack: what the order is carried out with, and the answer, lie there. So no range of
    /// the order can hold what carrying it out needs.
    ///
    /// What is wrong with a range, or was refused by the kernel, is in its result.
    pub fn move_ranges(&mut self, mover: Mover, moves: &[MoveRange], results: &mut [MoveResult; MAX_MOVES]) {
        let mut work = [Work::Nothing; MAX_MOVES];
        for (work, range) in work.iter_mut().zip(moves) {
            *work = self.plan(range, mover);
        }
        let work = work.get_mut(..moves.len().min(MAX_MOVES)).unwrap_or_default();
        self.carry_out(mover, work);
        for (result, work) in results.iter_mut().zip(work) {
            *result = work.result();
        }
    }

    /// `Drop`.
    ///
    /// # Errors
    /// As [`Receiver::move_ptes`], at the first area; those before it were dropped.
    pub fn drop_areas(&mut self, order: &Drop) -> Result<(), ReceiverError> {
        let method = Method::DROP.name;
        order.areas.iter().try_for_each(|area| self.drop_area(method, *area, order.how))
    }

    fn carry_out(&mut self, mover: Mover, work: &mut [Work]) {
        for work in work {
            if let Work::Planned { src, dest } = *work {
                *work = Work::Done(match mover {
                    Mover::Remap => remap(&mut self.memory, src, dest),
                    Mover::UffdMove => outcome(self.memory.uffd_move(src, dest), src),
                });
            }
        }
    }

    fn plan(&self, range: &MoveRange, mover: Mover) -> Work {
        let src = MemoryRegion::new(range.src, range.len);
        match self.check_move(Method::MOVE.name, src, range.dest, mover) {
            Ok((src, dest)) => Work::Planned { src, dest: dest.start() },
            Err(_) => Work::Done(MoveResult { moved: 0, stop: MoveStop::Refused }),
        }
    }

    fn check_move(
        &self,
        method: &'static str,
        src: MemoryRegion,
        dest: u64,
        mover: Mover,
    ) -> Result<(Span, Span), ReceiverError> {
        let src = span(method, src)?;
        let dest = span(method, MemoryRegion::new(dest, src.len()))?;
        let (within, name) = match mover {
            Mover::Remap => (Some(self.areas.swap), SWAP_AREA),
            Mover::UffdMove => (self.areas.staging, STAGING_AREA),
        };
        if !within.is_some_and(|within| within.contains_span(&dest)) {
            return Err(ReceiverError::Outside { method, area: dest, within: name });
        }
        let own = [
            (Some(self.areas.swap), SWAP_AREA),
            (self.areas.staging, STAGING_AREA),
            (self.areas.stack, "agent's stack"),
        ];
        match own.iter().find(|(own, _)| own.is_some_and(|own| own.overlaps(&src))) {
            Some((_, what)) => Err(ReceiverError::OwnSource { method, src, what }),
            None => Ok((src, dest)),
        }
    }

    fn drop_area(
        &mut self,
        method: &'static str,
        area: MemoryRegion,
        how: DropHow,
    ) -> Result<(), ReceiverError> {
        let area = span(method, area)?;
        let in_swap = self.areas.swap.contains_span(&area);
        let in_staging = self.areas.staging.is_some_and(|staging| staging.contains_span(&area));
        let dropped = match how {
            DropHow::MapArea if in_swap => self.memory.map_none(area),
            DropHow::DontNeed if in_swap || in_staging => self.memory.dont_need(area),
            // Staging must stay mapped as it is.
            DropHow::MapArea => return Err(ReceiverError::Outside { method, area, within: SWAP_AREA }),
            DropHow::DontNeed => {
                return Err(ReceiverError::Outside { method, area, within: "swap or staging area" });
            }
        };
        dropped.map_err(|source| ReceiverError::Kernel { method, area, source })
    }
}

const SWAP_AREA: &str = "swap area";
const STAGING_AREA: &str = "staging area";

/// One range of an order, on the stack while it is carried out.
#[derive(Clone, Copy)]
enum Work {
    Nothing,
    Planned { src: Span, dest: u64 },
    Done(MoveResult),
}

impl Work {
    fn result(&self) -> MoveResult {
        match self {
            Self::Done(result) => *result,
            Self::Nothing | Self::Planned { .. } => MoveResult { moved: 0, stop: MoveStop::Refused },
        }
    }
}

fn remap(memory: &mut impl Memory, src: Span, dest: u64) -> MoveResult {
    match memory.move_ptes(src, dest) {
        Ok(()) => MoveResult { moved: src.len(), stop: MoveStop::None },
        Err(e) => {
            let stop = match e.errno() {
                Some(libc::EAGAIN) => MoveStop::Busy,
                Some(libc::EFAULT | libc::ENOENT) => MoveStop::Unmapped,
                Some(libc::ENOMEM) => MoveStop::NoMemory,
                _ => MoveStop::Refused,
            };
            MoveResult { moved: 0, stop }
        }
    }
}

fn outcome(outcome: Outcome, src: Span) -> MoveResult {
    let stop = match outcome.stop {
        None if outcome.done == src.len() => MoveStop::None,
        Some(Stop::Present) => MoveStop::Present,
        None | Some(Stop::Busy) => MoveStop::Busy,
        Some(Stop::Unmapped) => MoveStop::Unmapped,
        Some(Stop::Pinned) => MoveStop::Pinned,
        Some(Stop::Hole) => MoveStop::Hole,
        Some(Stop::NoMemory) => MoveStop::NoMemory,
        Some(_) => MoveStop::Refused,
    };
    MoveResult { moved: outcome.done, stop }
}

fn span(method: &'static str, region: MemoryRegion) -> Result<Span, ReceiverError> {
    Span::new(region.address, region.length).map_err(|source| ReceiverError::NotARange {
        method,
        region,
        source,
    })
}

fn without(area: Span, own: &Span) -> impl Iterator<Item = Span> {
    let (before, after) = area.subtract(own);
    before.into_iter().chain(after)
}

#[cfg(test)]
mod tests;
