//! `userswap daemon`

use crate::args::{self, Daemon, Logs};
use crate::config::Settings;
use crate::failure::{Failure, Status, chain};
use crate::{logs, policy, run, sandbox};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Resource;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use userswap::daemon::control::ControlSocket;
use userswap::daemon::{self, Confinement, Heritage, Keeper, Notifier, Options, Service};
use userswap::run::Signals;
use userswap::{Contract, Server};
use userswap_ipc::Listener;
use userswap_policy::Limits;
use userswap_store::StoreError;
use userswap_stores::spec::{Kept, Spec, SpecError};

/// Serves until it is told to end.
pub(crate) fn daemon(args: &Daemon, logs: Logs) -> Result<ExitCode, Failure> {
    let settings = Settings::of(args, logs)?;
    logs::start(settings.log, settings.log_level);
    allow_descriptors();
    let spec = userswap_stores::spec::parse(&settings.store).map_err(|error| run::store_failure(&error))?;
    let (inherited, notifier) = if spec.can_outlive() {
        match keep(&settings, spec.has_keys())? {
            daemon::Kept::Over(status) => return Ok(ExitCode::from(status)),
            daemon::Kept::Worker { listener, control, heritage, notifier } => {
                (Some((listener, control, heritage)), notifier)
            }
        }
    } else {
        (None, alone()?)
    };
    let signals = Signals::take().map_err(|error| Failure::of("taking signals", &error))?;
    let roster = inherited.as_ref().map(|(_, _, heritage)| Arc::clone(heritage.roster()));
    let service = start(&settings, spec, inherited)?;
    if settings.sandbox {
        sandbox::filter(&settings.store, false)
            .map_err(|failure| if roster.is_some() { failure.end_at_once() } else { failure })?;
    }
    let confinement = Confinement::of_this_process();
    tracing::info!(
        listen = %settings.listen.display(),
        store = settings.store,
        policy = ?settings.policy.preset,
        limit = settings.limit,
        capabilities = confinement.capabilities.join(","),
        filtered = confinement.system_calls_filtered,
        "serving"
    );
    if let Some(notifier) = &notifier {
        notifier.ready();
    }
    wait(&signals, &service, notifier.as_deref());
    if let Some(roster) = roster {
        roster.set_ended();
    }
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// The way to the service manager of a daemon of one process.
fn alone() -> Result<Option<Arc<Notifier>>, Failure> {
    if daemon::has_returned() {
        return Err(Failure::new(
            Status::Usage,
            "a daemon that was killed left what this store can't take up: start it with the store that it had, and end it in good order",
        ));
    }
    let notifier =
        Notifier::of_environment().map_err(|error| Failure::of("finding the service manager", &error))?;
    Ok(notifier.map(Arc::new))
}

/// As many as may be: a client takes five, and its forked children two each.
fn allow_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "no more descriptors than a process has by default");
    }
}

/// Splits into a keeper and its workers. Where the store outlives a worker everything does.
fn keep(settings: &Settings, has_keys: bool) -> Result<daemon::Kept, Failure> {
    let mode = if settings.allow.is_empty() { 0o600 } else { 0o666 };
    let keeper = Keeper::new(&settings.listen, mode, settings.control.as_deref())
        .map_err(|error| Failure::of(&format!("listening at {}", settings.listen.display()), &error))?;
    let keeper = keeper.patience(settings.patience).has_keys(has_keys);
    keeper.keep_alone().map_err(|error| Failure::of("starting a worker", &error))
}

fn start(
    settings: &Settings,
    spec: Spec,
    inherited: Option<(Listener, Option<ControlSocket>, Heritage)>,
) -> Result<Service, Failure> {
    let disk = policy::disk(&spec);
    let waiting = inherited.as_ref().is_some_and(|(_, _, heritage)| heritage.epoch() > 1);
    let opened = |error| {
        let failure = run::store_failure(&SpecError::Open { spec: settings.store.clone(), source: error });
        // Nothing that others wait for is to be given up: the next worker may have more luck.
        if waiting { failure.end_at_once() } else { failure }
    };
    let confined = || if settings.sandbox { sandbox::drop_capabilities() } else { Ok(()) };
    let (store, inherited) = match inherited {
        None => {
            // Opened with all there is: a directory may be somebody else's.
            let store = spec.open(userswap_uffd::page_size()).map_err(opened)?;
            confined()?;
            (store, None)
        }
        Some((listener, control, heritage)) => {
            let at_once = |failure: Failure| if waiting { failure.end_at_once() } else { failure };
            let left = heritage.arenas();
            // The first is opened with all there is, those that go on as it need nothing.
            if !left.is_empty() {
                confined().map_err(at_once)?;
            }
            let keys = heritage.roster().keys();
            let Kept { store, found, left: new } =
                spec.open_kept(userswap_uffd::page_size(), &left, keys).map_err(opened)?;
            if left.is_empty() {
                confined().map_err(at_once)?;
                let noted = heritage.roster().note_arenas(new);
                noted.map_err(|source| opened(StoreError::Io { doing: "keeping a store", source }))?;
            }
            (store, Some((listener, control, heritage, found)))
        }
    };
    let contract = match settings.contract {
        args::Contract::Strict => Contract::Strict,
        args::Contract::Extended => Contract::Extended,
    };
    let mut builder = Server::builder(store)
        .contract(contract)
        .unmodified(contract == Contract::Extended)
        .stage_times(settings.stage_times)
        .listen(&settings.listen);
    for uid in &settings.allow {
        builder = builder.allow_uid(*uid);
    }
    if let Some(most) = settings.clients_per_user {
        builder = builder.clients_per_user(most);
    }
    let (mut limit, mut socket) = (settings.limit, None);
    if let Some((listener, control, heritage, found)) = inherited {
        limit = heritage.roster().limit().unwrap_or(limit);
        socket = control;
        builder = builder.listener(listener).heritage(heritage, found);
    }
    let server = builder
        .start()
        .map_err(|error| Failure::of(&format!("listening at {}", settings.listen.display()), &error))?;
    let limits = Limits { resident: Some(limit), client: Some(settings.client_limit), total: None };
    let control = settings.control.as_deref();
    let settings = settings.policy.clone();
    let options = Options { limits, control, socket, disk, settings, ..Options::default() };
    Service::start(server, options).map_err(|error| {
        let failure = Failure::from(error);
        if waiting { failure.end_at_once() } else { failure }
    })
}

/// Returns when everything was brought back and everybody let go.
fn wait(signals: &Signals, service: &Service, notifier: Option<&Notifier>) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(service.ended(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut fds, None);
        if fds[1].revents().contains(PollFlags::IN) {
            return;
        }
        while let Some(arrived) = signals.next() {
            if arrived.asks_to_end() {
                if notifier.is_some_and(Notifier::is_left_to_the_next) {
                    // Bringing everything back may take what the machine hasn't, and whoever killed the keeper.
                    tracing::error!("the keeper has died: what is left is the next one's");
                    std::process::exit(1);
                }
                tracing::info!("told to end: bringing everything back");
                if let Some(notifier) = notifier {
                    notifier.stopping();
                }
                // Ended in the middle, it would leave programs waiting for their memory for ever.
                if let Err(error) = service.drain() {
                    tracing::error!(
                        error = chain(&error),
                        "not everything could be brought back: still serving"
                    );
                }
            } else if arrived.asks_to_stop() {
                tracing::warn!("stopped, it would leave programs waiting: not stopping");
            }
        }
    }
}
