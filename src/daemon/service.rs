//! A server, a warden over its clients and a control socket: what a program that is a daemon consists of.

use super::confinement::Confinement;
use super::control::{ClientReport, Control, ControlError, ControlSocket, Status};
use super::error::ServerError;
use super::eyes::Sights;
use super::footprint::proportional_bytes;
use super::report::{StoreStatus, Totals};
use super::server::Server;
use super::settings::{PolicySettings, SettingsError};
use super::throttle::Throttle;
use super::warden::Warden;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use userswap_engine::MovedOut;
use userswap_policy::chromium::Hint;
use userswap_policy::working_set::{Run, WorkingSet};
use userswap_policy::{Limits, Policy};

/// What a service has beside its server.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// What the clients are held to.
    pub limits: Limits,
    /// Who decides, within these limits, what goes and what comes back: limits alone unless said otherwise.
    pub settings: PolicySettings,
    /// Or a policy of one's own, and where it is to be seen how scarce memory is. Operators may put one of the presets in its place.
    pub policy: Option<(Box<dyn Policy>, Option<PathBuf>)>,
    /// A path on the disk that pages go to, if they do.
    pub disk: Option<PathBuf>,
    /// Where to listen for orders.
    pub control: Option<&'a Path>,
    /// Or a socket for them that is there already.
    pub socket: Option<ControlSocket>,
    /// A brake for what grows faster than it can be moved out.
    pub throttle: Option<Throttle>,
}

/// A running daemon. Dropped without [`drain`](Self::drain), it leaves clients waiting, as a dropped [`Server`] does.
pub struct Service {
    desk: Arc<Desk>,
    control: Option<Control>,
}

/// Where orders are carried out.
pub(super) struct Desk {
    server: Arc<Server>,
    warden: Mutex<Option<Warden>>,
    /// The policy, if it is a preset.
    settings: Mutex<Option<PolicySettings>>,
    disk: Option<PathBuf>,
    /// Held while draining: once is enough.
    drained: Mutex<bool>,
    ended: OwnedFd,
}

impl Service {
    /// Starts to hold a server's clients to the limits and to listen for orders.
    ///
    /// # Errors
    /// When the control socket can't be had, or threads or descriptors can't.
    pub fn start(server: Server, options: Options<'_>) -> Result<Self, ControlError> {
        let failed = |doing| move |source| ControlError::Start { doing, source };
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed("making an eventfd")(error.into()))?;
        let server = Arc::new(server);
        let disk = options.disk;
        let (policy, sights, settings) = match options.policy {
            Some((mut own, pressure)) => {
                own.set_limits(options.limits);
                (own, Sights { pressure, disk: disk.clone(), ..Sights::default() }, None)
            }
            None => {
                let settings = options.settings;
                (settings.policy(options.limits), settings.sights(disk.clone()), Some(settings))
            }
        };
        let warden = Warden::start(Arc::clone(&server), policy, sights, options.throttle)
            .map_err(failed("starting the warden"))?;
        let desk = Arc::new(Desk {
            server,
            warden: Mutex::new(Some(warden)),
            settings: Mutex::new(settings),
            disk,
            drained: Mutex::new(false),
            ended,
        });
        let socket = match (options.socket, options.control) {
            (Some(socket), _) => Some(socket),
            (None, Some(path)) => Some(ControlSocket::bind(path)?),
            (None, None) => None,
        };
        let control = socket.map(|socket| Control::serve(socket, Arc::clone(&desk))).transpose()?;
        Ok(Self { desk, control })
    }

    /// Its server.
    pub fn server(&self) -> &Server {
        &self.desk.server
    }

    /// Counts a process against the limits also while it is no client, as it isn't when it has just been started.
    pub fn count(&self, pid: u32) {
        if let Some(warden) = &*self.desk.warden.lock() {
            warden.count(pid);
        }
    }

    /// The sums so far.
    pub fn totals(&self) -> Totals {
        self.desk.totals()
    }

    /// Brings everything back and lets every client go. Nobody is taken on any more.
    ///
    /// # Errors
    /// As [`Server::drain`]; it is served on then, and may be drained again.
    pub fn drain(&self) -> Result<(), ServerError> {
        self.desk.drain()
    }

    /// Readable once it was drained, by whatever way.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.desk.ended.as_fd()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both hold on to the desk, which holds the server.
        drop(self.control.take());
        drop(self.desk.warden.lock().take());
    }
}

impl Desk {
    pub(super) fn status(&self) -> Status {
        let limits = self.with_warden(Warden::limits);
        Status {
            worker_pid: std::process::id(),
            confinement: Confinement::of_this_process(),
            limit_bytes: limits.resident.unwrap_or(0),
            clients: self.clients(),
            store: StoreStatus::of(&self.server),
            totals: self.totals(),
        }
    }

    pub(super) fn clients(&self) -> Vec<ClientReport> {
        let report = |client: super::ClientStatus| ClientReport {
            pid: client.pid,
            resident_bytes: proportional_bytes(client.pid).unwrap_or(0),
            moved_out_bytes: client.out_bytes,
            standby_bytes: client.standby_bytes,
            stalled_us: u64::try_from(client.stalled.as_micros()).unwrap_or(u64::MAX),
        };
        self.server.clients().into_iter().map(report).collect()
    }

    pub(super) fn evict(&self, pid: u32, bytes: Option<u64>) -> Result<MovedOut, ServerError> {
        self.server.evict(pid, bytes)
    }

    pub(super) fn restore(&self, pid: u32) -> Result<u64, ServerError> {
        self.server.restore(pid)
    }

    pub(super) fn working_set(&self, pid: u32) -> Result<WorkingSet, ServerError> {
        self.server.working_set(pid)
    }

    pub(super) fn bring_early(&self, pid: u32, runs: &[Run]) -> Result<u64, ServerError> {
        self.server.bring_early(pid, runs)
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        if let Some(roster) = self.server.roster() {
            roster.note_limit(bytes);
        }
        if let Some(warden) = &*self.warden.lock() {
            warden.set_limits(Limits { resident: Some(bytes), ..warden.limits() });
        }
    }

    /// The policy in force, if it is a preset.
    pub(super) fn settings(&self) -> Option<PolicySettings> {
        self.settings.lock().clone()
    }

    /// Puts another policy in force, if its numbers make sense.
    pub(super) fn set_settings(&self, settings: PolicySettings) -> Result<(), SettingsError> {
        settings.check()?;
        let mut held = self.settings.lock();
        if let Some(warden) = &*self.warden.lock() {
            warden.set_policy(settings.policy(warden.limits()), settings.sights(self.disk.clone()));
        }
        *held = Some(settings);
        Ok(())
    }

    /// Tells the policy something of a client.
    pub(super) fn hint(&self, pid: u32, hints: &[Hint]) -> Result<(), ServerError> {
        if !self.server.pids().contains(&pid) {
            return Err(ServerError::NoClient { pid });
        }
        if let Some(warden) = &*self.warden.lock() {
            hints.iter().for_each(|hint| warden.hint(pid, *hint));
        }
        Ok(())
    }

    pub(super) fn drain(&self) -> Result<(), ServerError> {
        let mut drained = self.drained.lock();
        if *drained {
            return Ok(());
        }
        let pause = |paused| self.with_warden(|warden| warden.set_paused(paused));
        pause(true);
        if let Err(error) = self.server.drain() {
            pause(false);
            return Err(error);
        }
        *drained = true;
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
        Ok(())
    }

    fn totals(&self) -> Totals {
        Totals::of(&self.server, &self.with_warden(Warden::record))
    }

    fn with_warden<T: Default>(&self, ask: impl Fn(&Warden) -> T) -> T {
        self.warden.lock().as_ref().map(ask).unwrap_or_default()
    }
}
