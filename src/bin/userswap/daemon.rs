//! `userswap daemon`

use crate::args::{self, Daemon, Logs};
use crate::config::Settings;
use crate::failure::{Failure, chain};
use crate::{logs, run};
use rustix::event::{PollFd, PollFlags};
use std::os::fd::AsFd;
use std::process::ExitCode;
use userswap::daemon::{Options, Service};
use userswap::run::Signals;
use userswap::{Contract, Server};
use userswap_policy::Limits;

/// Serves until it is told to end.
pub(crate) fn daemon(args: &Daemon, logs: Logs) -> Result<ExitCode, Failure> {
    let settings = Settings::of(args, logs)?;
    logs::start(settings.log, settings.log_level);
    let signals = Signals::take().map_err(|error| Failure::of("taking signals", &error))?;
    let service = start(&settings)?;
    tracing::info!(
        listen = %settings.listen.display(),
        store = settings.store,
        limit = settings.limit,
        "serving"
    );
    wait(&signals, &service);
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

fn start(settings: &Settings) -> Result<Service, Failure> {
    let store = run::open_store(&settings.store)?;
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
    let server = builder
        .start()
        .map_err(|error| Failure::of(&format!("listening at {}", settings.listen.display()), &error))?;
    let limits = Limits { resident: Some(settings.limit), client: Some(settings.client_limit), total: None };
    Ok(Service::start(server, Options { limits, control: settings.control.as_deref(), throttle: None })?)
}

/// Returns when everything was brought back and everybody let go.
fn wait(signals: &Signals, service: &Service) {
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
                tracing::info!("told to end: bringing everything back");
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
