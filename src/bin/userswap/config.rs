//! A daemon's settings: its arguments, and what a file says where there are none.

use crate::args::{Contract, Daemon, Logs, PATIENCE};
use crate::bytes::Bytes;
use crate::failure::{Failure, Status};
use crate::logs::{Format, Level};
use crate::policy;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use userswap::daemon::settings::PolicySettings;

/// A configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    listen: Option<PathBuf>,
    control: Option<PathBuf>,
    store: Option<String>,
    policy: Option<String>,
    limit: Option<Bytes>,
    client_limit: Option<Bytes>,
    #[serde(default)]
    allow: Vec<u32>,
    clients_per_user: Option<usize>,
    patience: Option<u32>,
    sandbox: Option<bool>,
    contract: Option<Contract>,
    stage_times: Option<bool>,
    log: Option<Format>,
    log_level: Option<Level>,
}

/// What a daemon is started with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: PathBuf,
    pub(crate) control: Option<PathBuf>,
    pub(crate) store: String,
    pub(crate) policy: PolicySettings,
    pub(crate) limit: u64,
    pub(crate) client_limit: u64,
    pub(crate) allow: Vec<u32>,
    pub(crate) clients_per_user: Option<usize>,
    pub(crate) patience: Duration,
    pub(crate) sandbox: bool,
    pub(crate) contract: Contract,
    pub(crate) stage_times: bool,
    pub(crate) log: Format,
    pub(crate) log_level: Level,
}

/// Where pages go unless said otherwise.
pub(crate) const STORE: &str = "ram:lz4";

impl Settings {
    /// What the arguments say, then the file, then what is usual.
    pub(crate) fn of(args: &Daemon, logs: Logs) -> Result<Self, Failure> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let listen = args.listen.clone().or(file.listen).ok_or_else(|| {
            Failure::new(
                Status::Usage,
                "say where to listen for programs: --listen PATH, or listen in the configuration",
            )
        })?;
        let size = |arg: Option<Bytes>, file: Option<Bytes>| arg.or(file).map_or(0, |bytes| bytes.0);
        Ok(Self {
            listen,
            control: args.control.clone().or(file.control),
            store: args.store.clone().or(file.store).unwrap_or_else(|| STORE.to_owned()),
            policy: match args.policy.as_deref().or(file.policy.as_deref()) {
                Some(policy) => policy::read(policy)?,
                None => PolicySettings::default(),
            },
            limit: size(args.limit, file.limit),
            client_limit: size(args.client_limit, file.client_limit),
            clients_per_user: args.clients_per_user.or(file.clients_per_user),
            allow: if args.allow.is_empty() { file.allow } else { args.allow.clone() },
            patience: Duration::from_secs(args.patience.or(file.patience).unwrap_or(PATIENCE).into()),
            sandbox: !args.no_sandbox && file.sandbox.unwrap_or(true),
            contract: args.contract.or(file.contract).unwrap_or(Contract::Extended),
            stage_times: args.stage_times || file.stage_times.unwrap_or(false),
            log: logs.log.or(file.log).unwrap_or(Format::Text),
            log_level: logs.log_level.or(file.log_level).unwrap_or(Level::Info),
        })
    }
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::of(&format!("reading {}", path.display()), &error))?;
    toml::from_str(&text).map_err(|error| toml_failure(path, &text, &error))
}

/// What is wrong with a file, and where.
pub(crate) fn toml_failure(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let line =
        error.span().map(|span| text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1);
    let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
    Failure::new(Status::Usage, format!("{}{line}: {}", path.display(), error.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn every_key_is_taken() {
        let file = parse(
            "listen='/a'\ncontrol='/b'\nstore='ram:lz4'\npolicy='off'\nlimit='2G'\nclient-limit=4096\nallow=[1,2]\n\
             patience=5\nsandbox=false\ncontract='strict'\nstage-times=true\nlog='json'\nlog-level='debug'",
        )
        .unwrap();
        assert_eq!((file.limit, file.client_limit), (Some(Bytes(2 << 30)), Some(Bytes(4096))));
        assert_eq!((file.allow, file.contract), (vec![1, 2], Some(Contract::Strict)));
        assert_eq!((file.stage_times, file.policy.as_deref()), (Some(true), Some("off")));
        assert_eq!((file.patience, file.sandbox), (Some(5), Some(false)));
        assert_eq!((file.log, file.log_level), (Some(Format::Json), Some(Level::Debug)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(parse("limt='2G'").unwrap_err().contains("limt"));
        assert!(parse("limit='2X'").unwrap_err().contains("2X"));
        assert!(parse("limit=-1").unwrap_err().contains("negative"));
    }
}
