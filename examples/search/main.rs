//! A search engine over a few hundred MB of real text, in memory that a swap daemon moves out while questions are answered.
//!
//! ```text
//! cargo run --release --example search -- --with-daemon
//! ```
//! starts a daemon and the search engine, two processes, and shows four things one after the other: all of it in memory; held to
//! a quarter; moved out over and over, as fast as it goes; brought back. Every answer is checked against what was computed
//! when the text was loaded. Without `--with-daemon` it is the search engine alone, for a daemon at `--socket`.

mod client;
#[path = "../corpus/mod.rs"]
mod corpus;
mod daemon;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use userswap::Contract;

/// Answers questions about the text of this machine's files, from memory that may be anywhere.
#[derive(Parser)]
struct Options {
    /// Start a daemon too, and show what it does.
    #[arg(long, conflicts_with = "socket")]
    with_daemon: bool,
    /// The daemon to take part with.
    #[arg(long, required_unless_present = "with_daemon")]
    socket: Option<PathBuf>,
    /// What to speak with the daemon: the mirrored four methods, or those and the extensions.
    #[arg(long, value_enum, default_value_t = Spoken::Extended)]
    contract: Spoken,
    /// Text to load, in MB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1500))]
    size: u32,
    /// How long to go on (with a daemon: for each of the things shown); 0 is until standard input ends.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// With a daemon: how long to move out over and over; as long as the rest unless told.
    #[arg(long)]
    churn: Option<u64>,
    /// Threads that ask.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Microseconds that each of them rests after a question; 0 is full speed.
    #[arg(long, default_value_t = 200)]
    rest: u64,
    /// What the questions are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The daemon's store.
    #[arg(long, default_value = "ram:zstd")]
    store: String,
    /// Where to take text from; wherever this machine has some, unless told.
    directories: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Spoken {
    Strict,
    Extended,
}

impl Options {
    fn text_bytes(&self) -> usize {
        self.size as usize * 1_000_000
    }

    fn contract(&self) -> Contract {
        match self.contract {
            Spoken::Strict => Contract::Strict,
            Spoken::Extended => Contract::Extended,
        }
    }

    fn contract_name(&self) -> &'static str {
        match self.contract {
            Spoken::Strict => "strict",
            Spoken::Extended => "extended",
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = match &options.socket {
        Some(socket) => client::run(&options, socket),
        None => daemon::run(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("search: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// An error with its reasons.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(source) = reason {
        text = format!("{text}: {source}");
        reason = source.source();
    }
    text
}
