//! The program `userswap`: arguments and printing over the library.
#![forbid(unsafe_code)]

mod args;
mod config;
mod ctl;
mod daemon;
mod doctor;
mod failure;
mod logs;
mod manual;
mod policy;
mod record;
mod replay;
mod run;
mod sandbox;
mod store;
mod working_set;

use args::{Args, Command};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;
use userswap::daemon::units as bytes;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return failure::usage(&error),
    };
    let done = match args.command {
        Command::Run(run) => run::run(&run, args.logs),
        Command::Daemon(daemon) => daemon::daemon(&daemon, args.logs),
        Command::Record(record) => record::record(&record, args.logs),
        Command::Replay(replay) => replay::replay(&replay),
        Command::Ctl(ctl) => ctl::ctl(&ctl),
        Command::Store(store) => store::store(&store),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Layout => {
            println!("{}", userswap_engine::ledger::LAYOUT);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { directory } => manual::man(&directory),
        Command::Completions { shell } => manual::completions(shell),
    };
    done.unwrap_or_else(|failure: Failure| failure.report())
}
