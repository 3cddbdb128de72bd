//! A client: a process whose memory a daemon, another process, moves out and brings back.

use crate::error::Error;
use crate::subject::{MovedOut, Reply, Request, Subject, stage_times, touch};
use crate::touch::Arena;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap::{Client, Server, Store};
use userswap_uffd::page_size;

/// The client's side.
pub(crate) struct Cooperating {
    arena: Arena,
    /// Serves the daemon's orders as long as it's there.
    _client: Client,
}

impl Cooperating {
    pub(crate) fn new(image: &[u8], socket: &Path, regions: usize) -> Result<Self, Error> {
        let arena = Arena::in_parts(image, regions)?;
        let client = Client::builder(socket).connect()?;
        if !arena.parts().all(|part| client.offer(part)) {
            return Err(Error::Input("the memory to be moved out is offered already".into()));
        }
        Ok(Self { arena, _client: client })
    }
}

impl Subject for Cooperating {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => Err(Error::Input("a client's memory is moved out by its daemon".into())),
            Request::Touch(how) => touch(&mut self.arena, how),
            Request::Stages => Ok(Reply::Stages(None)),
        }
    }
}

/// The daemon's side: a server with one client.
pub(crate) struct Daemon {
    server: Server,
    store: Arc<dyn Store>,
    socket: PathBuf,
}

/// How long the client may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    pub(crate) fn new(store: &str, socket: &Path, stages: bool) -> Result<Self, Error> {
        let store = userswap_stores::open(store, page_size())?;
        let server = Server::builder(Arc::clone(&store)).listen(socket).stage_times(stages).start()?;
        Ok(Self { server, store, socket: socket.to_owned() })
    }

    fn client(&self) -> Result<u32, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(client) = self.server.clients().first() {
                return Ok(client.pid);
            }
            if Instant::now() > deadline {
                return Err(Error::Input("no client was taken on".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Subject for Daemon {
    fn answer(&mut self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::MoveOut => {}
            Request::Touch(_) => return Err(Error::Input("a daemon has no memory to touch".into())),
            Request::Stages => {
                return Ok(Reply::Stages(self.server.total().stages.as_ref().map(stage_times)));
            }
        }
        let client = self.client()?;
        let from = Instant::now();
        let moved = self.server.evict(client, None)?;
        let ns = from.elapsed().as_secs_f64() * 1e9;
        let memory_bytes = Some(self.store.stats().memory_bytes);
        Ok(Reply::MovedOut(MovedOut { pages: moved.stored, ns, memory_bytes }))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
