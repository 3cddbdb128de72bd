//! Ordinary memory that nobody moves out: what a touch costs by itself.

use crate::error::Error;
use crate::subject::{MovedOut, Reply, Request, Subject, touch};
use crate::touch::Arena;

/// An ordinary mapping.
pub(crate) struct Plain {
    arena: Arena,
}

impl Plain {
    pub(crate) fn new(image: &[u8]) -> Result<Self, Error> {
        Ok(Self { arena: Arena::in_mapping(image)? })
    }
}

impl Subject for Plain {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => Ok(Reply::MovedOut(MovedOut { pages: 0, ns: 0.0, memory_bytes: None })),
            Request::Touch(how) => touch(&mut self.arena, how),
            Request::Stages => Ok(Reply::Stages(None)),
        }
    }
}
