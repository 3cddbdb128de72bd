//! What happens, told on standard error for people or for machines.

use clap::ValueEnum;
use serde::Deserialize;
use std::io::{IsTerminal, Write};
use tracing_subscriber::filter::LevelFilter;

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A line of text each.
    Text,
    /// A line of JSON each.
    Json,
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// What was lost, or can't be done.
    Error,
    /// What isn't as it should be.
    Warn,
    /// Who comes and goes.
    Info,
    /// What is done and why.
    Debug,
    /// Everything.
    Trace,
}

/// Starts telling. What other threads say from now on is told too.
pub(crate) fn start(format: Format, level: Level) {
    let level = match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let logs = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // Where standard error takes nothing, because the disk is full, say, nothing can be told of that either; it would be a panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Somebody who has started already is content.
    let _ = match format {
        Format::Text => logs.with_target(false).try_init(),
        Format::Json => logs.json().flatten_event(true).try_init(),
    };
}

/// Says something to whoever started the program. It isn't worth dying of that nobody can be told.
pub(crate) fn say(sentence: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "userswap: {sentence}");
}
