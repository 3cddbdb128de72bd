//! `userswap record`

use crate::args::{Logs, Record};
use crate::config::STORE;
use crate::failure::Failure;
use crate::logs::{self, Format, Level};
use crate::run::{find, open_store, ours, own_address, put_object, start};
use std::ffi::OsStr;
use std::process::ExitCode;
use std::time::Duration;
use userswap::Server;
use userswap::daemon::{Options, Recorder, Service};
use userswap::run::command::Beside;
use userswap::run::{Ended, Signals};

/// How long the command may wait should this process be killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the command, and writes what it touched.
pub(crate) fn record(args: &Record, logs: Logs) -> Result<ExitCode, Failure> {
    logs::start(logs.log.unwrap_or(Format::Text), logs.log_level.unwrap_or(Level::Warn));
    let signals = Signals::take().map_err(|error| ours("taking signals", &error))?;
    let program = find(&args.command)?;
    let writing = format!("writing the trace {}", args.output.display());
    // Opened first, so that it is known before the command runs whether it can be written.
    let file = std::fs::File::create(&args.output).map_err(|error| ours(&writing, &error))?;
    let (_scratch, object) = put_object()?;
    let address = own_address();
    let server = Server::builder(open_store(STORE)?)
        .unmodified(true)
        .listen(&address)
        // What came along with another page would seem not to have been touched.
        .around(1)
        .start()
        .map_err(|error| ours("starting to serve", &error))?;
    let service = Service::start(server, Options::default())?;
    let beside = Beside { object: &object, address: OsStr::new(&address), patience: PATIENCE, door: None };
    let mut command = start(&args.command, &program, beside, &signals)?;
    let window = Duration::from_millis(args.window.max(1));
    let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    let mut recorder = Recorder::new(words.join(" "), window);
    while command.ended().is_none() {
        command.attend(&signals, window);
        recorder.end_window(service.server());
    }
    service.drain().map_err(|error| ours("bringing back the memory of processes that go on", &error))?;
    let overflown = recorder.overflown();
    let trace = recorder.into_trace();
    let bytes = trace.to_bytes();
    std::io::Write::write_all(&mut &file, &bytes).map_err(|error| ours(&writing, &error))?;
    if !args.quiet {
        logs::say(&format_args!(
            "{} pages touched, {} of them different, in {} windows of {:.0} ms; {} KiB",
            trace.pages().len(),
            trace.footprint(),
            trace.windows(),
            trace.lasted().as_secs_f64() * 1e3 / trace.windows().max(1) as f64,
            bytes.len().div_ceil(1024)
        ));
        if trace.pages().is_empty() {
            logs::say(
                &"it ended before anything could be moved out and touched again: make the window shorter",
            );
        }
        if overflown > 0 {
            logs::say(&format_args!("of {overflown} windows not all is in order: make the window shorter"));
        }
    }
    Ok(ExitCode::from(command.ended().unwrap_or(Ended::Exited(0)).code()))
}
