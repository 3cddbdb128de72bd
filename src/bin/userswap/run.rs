//! `userswap run`

pub(crate) mod progress;
mod summary;

use crate::args::{Logs, Run};
use crate::bytes::Bytes;
use crate::config::STORE;
use crate::failure::{Failure, Status, chain};
use crate::logs::{self, Format, Level};
use crate::policy;
use crate::sandbox;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use summary::Report;
use userswap::daemon::footprint::proportional_bytes;
use userswap::daemon::report::Totals;
use userswap::daemon::{Options, Service, Throttle};
use userswap::run::command::Beside;
use userswap::run::{Command, Descendants, Ended, NotRunnable, Program, Scratch, Signals};
use userswap::{Server, Store};
use userswap_policy::Limits;

/// Runs the command, and ends as it did.
pub(crate) fn run(args: &Run, logs: Logs) -> Result<ExitCode, Failure> {
    logs::start(logs.log.unwrap_or(Format::Text), logs.log_level.unwrap_or(Level::Warn));
    let signals = Signals::take().map_err(|error| ours("taking signals", &error))?;
    let report = args.report.as_deref().map(ReportFile::create).transpose()?;
    let program = find(&args.command)?;
    let started = Instant::now();
    let (ended, mut told) = match &args.daemon {
        Some(path) => served_elsewhere(args, &signals, &program, path)?,
        None => served_here(args, &signals, &program)?,
    };
    told.duration_s = started.elapsed().as_secs_f64();
    if !args.quiet {
        logs::say(&told);
    }
    if let Some(report) = report {
        report.write(&told)?;
    }
    Ok(ExitCode::from(ended.code()))
}

/// Opens the store that a specification describes.
pub(crate) fn open_store(spec: &str) -> Result<Arc<dyn Store>, Failure> {
    userswap_stores::spec::open(spec, userswap_uffd::page_size()).map_err(|error| store_failure(&error))
}

/// Why there is no store.
pub(crate) fn store_failure(error: &userswap_stores::spec::SpecError) -> Failure {
    let status = match error {
        userswap_stores::spec::SpecError::Open { .. } => Status::Failed,
        _ => Status::Usage,
    };
    Failure::new(status, format!("--store: {}", chain(error)))
}

/// How often what the command started is looked through for what runs unmanaged.
const LOOK: Duration = Duration::from_millis(500);

/// Served by this process.
fn served_here(args: &Run, signals: &Signals, program: &Program) -> Result<(Ended, Report), Failure> {
    let spec = args.store.as_deref().unwrap_or(STORE);
    let store = open_store(spec).map_err(|error| error.with(Status::Ours))?;
    let disk = userswap_stores::spec::parse(spec).ok().as_ref().and_then(policy::disk);
    let settings = args.policy.as_deref().map(policy::read).transpose();
    let settings = settings.map_err(|error| error.with(Status::Ours))?.unwrap_or_default();
    let (_scratch, object) = put_object()?;
    let address = own_address();
    let limited = args.limit.or(args.total).is_some_and(|limit| limit.0 > 0);
    let name = OsString::from(format!("userswap-{}", std::process::id()));
    let throttle = limited.then(|| Throttle::create(&name)).flatten();
    let door = throttle.as_ref().and_then(|throttle| throttle.door().ok());
    let limits = Limits {
        resident: args.limit.map(|limit| limit.0),
        total: args.total.map(|limit| limit.0),
        client: None,
    };
    // All that can fail before the command is there does; after that, nothing of ours ends it.
    let control = args.control.as_deref();
    let options = Options { limits, control, throttle, disk, settings, ..Options::default() };
    let service = serve(args, store, &address, options)?;
    let beside = Beside { object: &object, address: OsStr::new(&address), patience: patience(args), door };
    let mut command = start(&args.command, program, beside, signals)?;
    service.count(command.pid());
    if !args.no_sandbox {
        // Not before: the command has all that this process had.
        let confined = sandbox::drop_capabilities().and_then(|()| sandbox::filter(spec, true));
        // The command runs by now, and needs to be served.
        if let Err(failure) = confined {
            let _ = failure.report();
        }
    }
    let mut descendants = watch(&command, program);
    while command.ended().is_none() {
        command.attend(signals, LOOK);
        let clients = service.server().clients();
        let pids: Vec<u32> = clients.iter().map(|client| client.pid).collect();
        descendants.look(&pids, pids.contains(&0));
    }
    let left = service.server().clients().len();
    let told = Some(format!("bringing back the memory of {left} processes that go on"));
    let shown = (left > 0).then(|| progress::Shown::start(move || told.clone()));
    service.drain().map_err(|error| ours("bringing back the memory of processes that go on", &error))?;
    drop(shown);
    let report = Report::new(Some(service.totals()), descendants.unmanaged());
    Ok((command.ended().unwrap_or(Ended::Exited(0)), report))
}

/// Starts to serve, by threads that have given up what they don't need.
fn serve(args: &Run, store: Arc<dyn Store>, address: &str, options: Options<'_>) -> Result<Service, Failure> {
    let started = || {
        if !args.no_sandbox {
            sandbox::drop_capabilities().map_err(|error| error.with(Status::Ours))?;
        }
        let server = Server::builder(store)
            .unmodified(true)
            .stage_times(args.stage_times)
            .listen(address)
            .start()
            .map_err(|error| ours("starting to serve", &error))?;
        Service::start(server, options).map_err(|error| Failure::from(error).with(Status::Ours))
    };
    // Threads have the capabilities of the one that starts them.
    let served = std::thread::scope(|scope| scope.spawn(started).join());
    served.unwrap_or_else(|_| Err(Failure::new(Status::Ours, "starting to serve")))
}

fn patience(args: &Run) -> Duration {
    Duration::from_secs(args.patience.into())
}

/// Served by a daemon that is there already.
fn served_elsewhere(
    args: &Run,
    signals: &Signals,
    program: &Program,
    path: &Path,
) -> Result<(Ended, Report), Failure> {
    let is_abstract = path.as_os_str().as_encoded_bytes().starts_with(b"@");
    let path = if is_abstract { Ok(path.to_path_buf()) } else { std::path::absolute(path) };
    let path = path.map_err(|error| ours("--daemon", &error))?;
    userswap_ipc::Connection::connect(&path).map_err(|error| ours("--daemon", &error))?;
    let (_scratch, object) = put_object()?;
    let beside = Beside { object: &object, address: path.as_os_str(), patience: patience(args), door: None };
    let mut command = start(&args.command, program, beside, signals)?;
    let mut peak = 0;
    while command.ended().is_none() {
        peak = peak.max(proportional_bytes(command.pid()).unwrap_or(0));
        command.attend(signals, LOOK);
    }
    let unmanaged = watch(&command, program).unmanaged();
    let mut report = Report::new(None, unmanaged);
    report.peak_pss_anon_bytes = Some(peak);
    Ok((command.ended().unwrap_or(Ended::Exited(0)), report))
}

/// Starts a command beside which the shared object is loaded.
pub(crate) fn start(
    words: &[OsString],
    program: &Program,
    beside: Beside<'_>,
    signals: &Signals,
) -> Result<Command, Failure> {
    Command::start(program, words, beside, signals).map_err(|error| {
        let status = if error.code() == 127 { Status::NotFound } else { Status::NotExecutable };
        Failure::new(status, chain(&error))
    })
}

/// Notes a program that can't be followed before anything else is known of it.
fn watch(command: &Command, program: &Program) -> Descendants {
    let mut descendants = Descendants::of(command.pid());
    if let Some(reason) = program.kind.obstacle() {
        descendants.note_program(command.pid(), &program.path, reason);
    }
    descendants
}

/// Finds a command's program.
pub(crate) fn find(words: &[OsString]) -> Result<Program, Failure> {
    let name: &OsStr = words.first().map(OsString::as_os_str).unwrap_or_default();
    Program::find(name, std::env::var_os("PATH").as_deref()).map_err(|error| {
        let status = match error {
            NotRunnable::NotFound(_) => Status::NotFound,
            NotRunnable::NotExecutable(_) => Status::NotExecutable,
        };
        Failure::new(status, error.to_string())
    })
}

/// Where to listen for one command and what it starts. In no directory: a program that changes its root directory still finds it.
pub(crate) fn own_address() -> String {
    format!("@userswap-{}-{:016x}", std::process::id(), RandomState::new().hash_one(0))
}

/// Writes the shared object where the command and what it starts find it, in a directory that goes with the first.
pub(crate) fn put_object() -> Result<(Scratch, PathBuf), Failure> {
    let scratch =
        Scratch::create().map_err(|error| ours("making a directory for temporary files", &error))?;
    let object = userswap_preload::SHARED_OBJECT.ok_or_else(|| {
        Failure::new(
            Status::Ours,
            "programs can't be run on this architecture: there is nothing to load beside them",
        )
    })?;
    let path =
        scratch.put("userswap.so", object).map_err(|error| ours("writing the shared object", &error))?;
    Ok((scratch, path))
}

/// A failure of userswap itself, before or beside a command.
pub(crate) fn ours(doing: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of(doing, error).with(Status::Ours)
}

/// Where the report goes: opened first, so that it is known before the command runs whether it can be written.
struct ReportFile {
    file: std::fs::File,
    path: PathBuf,
}

impl ReportFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = std::fs::File::create(path)
            .map_err(|error| ours(&format!("writing the report {}", path.display()), &error))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    fn write(self, report: &Report) -> Result<(), Failure> {
        let mut json = serde_json::to_vec_pretty(report).map_err(|error| ours("writing JSON", &error))?;
        json.push(b'\n');
        std::io::Write::write_all(&mut &self.file, &json)
            .map_err(|error| ours(&format!("writing the report {}", self.path.display()), &error))
    }
}
