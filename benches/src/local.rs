//! A region of the own process that pages itself.

use crate::error::Error;
use crate::subject::{MovedOut, Reply, Request, Subject, stage_times, touch};
use crate::touch::Arena;
use std::sync::Arc;
use std::time::Instant;
use userswap_engine::PagedRegion;
use userswap_store::Store;
use userswap_uffd::page_size;

/// The region and its store.
pub(crate) struct Local {
    arena: Arena,
    store: Arc<dyn Store>,
}

impl Local {
    pub(crate) fn new(image: &[u8], store: &str, inline: bool, stages: bool) -> Result<Self, Error> {
        let store = userswap_stores::open(store, page_size())?;
        let builder = PagedRegion::builder(image.len() as u64, Arc::clone(&store));
        let region = if inline { builder.inline() } else { builder }.build()?;
        if stages && let Some(space) = region.space() {
            space.time_stages();
        }
        Ok(Self { arena: Arena::in_region(region, image)?, store })
    }

    fn move_out(&self) -> Result<MovedOut, Error> {
        let Some(region) = self.arena.region() else {
            return Err(Error::Input("an arena that is no region".into()));
        };
        let from = Instant::now();
        let moved = region.evict(..)?;
        let ns = from.elapsed().as_secs_f64() * 1e9;
        Ok(MovedOut { pages: moved.stored, ns, memory_bytes: Some(self.store.stats().memory_bytes) })
    }
}

impl Subject for Local {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => self.move_out().map(Reply::MovedOut),
            Request::Touch(how) => touch(&mut self.arena, how),
            Request::Stages => {
                let space = self.arena.region().and_then(PagedRegion::space);
                Ok(Reply::Stages(space.and_then(|space| space.stages().map(stage_times))))
            }
        }
    }
}
