//! Memory that the kernel swaps out: what everything is compared with.

use crate::error::Error;
use crate::subject::{MovedOut, Reply, Request, Subject, touch};
use crate::touch::Arena;
use std::time::Instant;
use userswap_uffd::Pagemap;

/// An ordinary mapping.
pub(crate) struct Kernel {
    arena: Arena,
    pagemap: Pagemap,
}

/// How often the kernel is asked before pages that it leaves are counted as left: some it passes over while other
/// threads have them in hand.
const TRIES: usize = 5;

impl Kernel {
    pub(crate) fn new(image: &[u8]) -> Result<Self, Error> {
        Ok(Self { arena: Arena::in_mapping(image)?, pagemap: Pagemap::this()? })
    }

    fn move_out(&self) -> Result<MovedOut, Error> {
        let (mut ns, mut left) = (0.0, self.arena.pages());
        for _ in 0..TRIES {
            let from = Instant::now();
            self.arena.page_out()?;
            ns += from.elapsed().as_secs_f64() * 1e9;
            left = self.arena.present(&self.pagemap)?;
            if left == 0 {
                break;
            }
        }
        Ok(MovedOut { pages: (self.arena.pages() - left) as u64, ns, memory_bytes: None })
    }
}

impl Subject for Kernel {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => self.move_out().map(Reply::MovedOut),
            Request::Touch(how) => touch(&mut self.arena, how),
            Request::Stages => Ok(Reply::Stages(None)),
        }
    }
}
