//! Settings of a server.

use super::admission::Admission;
use super::error::ServerError;
use super::heir::Heritage;
use super::server::Server;
use std::path::PathBuf;
use std::sync::Arc;
use userswap_engine::Engine;
use userswap_ipc::{Contract, Listener};
use userswap_policy::Budget;
use userswap_store::{Handle, PageKey, Store};

/// Settings of a [`Server`].
pub struct ServerBuilder {
    pub(super) store: Arc<dyn Store>,
    pub(super) path: Option<PathBuf>,
    pub(super) mode: u32,
    pub(super) contract: Contract,
    pub(super) allowed: Vec<u32>,
    pub(super) clients_per_user: usize,
    pub(super) budget: Budget,
    pub(super) handlers: Option<usize>,
    pub(super) around: Option<u32>,
    pub(super) standby: bool,
    pub(super) pages_per_region: u32,
    pub(super) staging: u64,
    pub(super) unmodified: bool,
    pub(super) stage_times: bool,
    pub(super) listener: Option<Listener>,
    pub(super) heritage: Option<(Heritage, Objects)>,
}

/// What a store was found to hold.
pub(super) type Objects = Vec<(PageKey, Handle)>;

/// A user's processes that may be clients at the same time: a thread and five descriptors each.
const CLIENTS_PER_USER: usize = 1024;

impl ServerBuilder {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            path: None,
            mode: 0o600,
            contract: Contract::Extended,
            allowed: Vec::new(),
            clients_per_user: CLIENTS_PER_USER,
            budget: Budget::default(),
            handlers: None,
            around: None,
            standby: false,
            pages_per_region: 16,
            staging: 32 << 20,
            unmodified: false,
            stage_times: false,
            listener: None,
            heritage: None,
        }
    }

    /// Listen for clients on a Unix socket at `path`, or at the abstract address behind an `@`.
    #[must_use]
    pub fn listen(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The contract spoken: with the extensions unless told otherwise.
    #[must_use]
    pub fn contract(mut self, contract: Contract) -> Self {
        self.contract = contract;
        self
    }

    /// Take clients of this user on too, beside root's and the daemon's own. They need no privilege: the daemon passes them
    /// `/dev/userfaultfd`. The socket is open to everybody then, and who isn't allowed is turned away.
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Self {
        self.allowed.push(uid);
        self.mode = 0o666;
        self
    }

    /// How many processes of a user may be clients at the same time, 1024 unless said otherwise. Root and the daemon's own user are held to nothing; forked children
    /// beyond that are served, and not moved out any more.
    #[must_use]
    pub fn clients_per_user(mut self, most: usize) -> Self {
        self.clients_per_user = most;
        self
    }

    /// Hold all clients together under so many bytes in memory. 0 is no limit.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.budget.total = Some(bytes);
        self
    }

    /// Hold each client under so many bytes in memory. 0 is no limit.
    #[must_use]
    pub fn client_limit(mut self, bytes: u64) -> Self {
        self.budget.client = Some(bytes);
        self
    }

    /// How many threads serve faults.
    #[must_use]
    pub fn handlers(mut self, handlers: usize) -> Self {
        self.handlers = Some(handlers);
        self
    }

    /// The most pages brought in with one fault.
    #[must_use]
    pub fn around(mut self, pages: u32) -> Self {
        self.around = Some(pages);
        self
    }

    /// Let moved pages wait in their slots, uncompressed, while there are slots enough: a page touched again soon comes back cheaply.
    #[must_use]
    pub fn standby(mut self, standby: bool) -> Self {
        self.standby = standby;
        self
    }

    /// Pages moved by one order of the mirrored contract, 16 unless said otherwise.
    #[must_use]
    pub fn pages_per_region(mut self, pages: u32) -> Self {
        self.pages_per_region = pages.clamp(1, 512);
        self
    }

    /// Take programs on that know nothing of userswap and have its library loaded beside them: what of their memory may be moved is
    /// found out by looking at it.
    #[must_use]
    pub fn unmodified(mut self, unmodified: bool) -> Self {
        self.unmodified = unmodified;
        self
    }

    /// Measure the [stages](userswap_engine::Stages) of faults, too.
    #[must_use]
    pub fn stage_times(mut self, measured: bool) -> Self {
        self.stage_times = measured;
        self
    }

    /// Listen here, at a socket that is there already.
    #[must_use]
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Serve on who was served by a worker that has died, and leave what a successor needs. `found` is all that the store was found to hold.
    #[must_use]
    pub fn heritage(mut self, heritage: Heritage, found: Vec<(PageKey, Handle)>) -> Self {
        self.heritage = Some((heritage, found));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it can't listen, or threads or descriptors can't be had.
    pub fn start(self) -> Result<Server, ServerError> {
        Server::start(self)
    }

    pub(super) fn admission(&self) -> Admission {
        Admission {
            contract: self.contract,
            allowed: self.allowed.clone(),
            // Whoever may not open it needs no passing of it either: a client then does what it can by itself.
            device: userswap_uffd::open_device().ok(),
            staging_pages: self.staging / userswap_uffd::page_bytes(),
            pages_per_region: self.pages_per_region,
            unmodified: self.unmodified,
            roster: None,
        }
    }

    pub(super) fn engine(&self, observer: Arc<dyn userswap_engine::Observer>) -> Result<Engine, ServerError> {
        let mut builder =
            Engine::builder(Arc::clone(&self.store)).observer(observer).stage_times(self.stage_times);
        if let Some(handlers) = self.handlers {
            builder = builder.handlers(handlers);
        }
        if let Some(around) = self.around {
            builder = builder.around(around);
        }
        builder.build().map_err(|source| ServerError::Start { doing: "starting the engine", source })
    }
}
