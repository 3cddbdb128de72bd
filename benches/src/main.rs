//! `userswap-bench`: how long a thread waits for a page that was moved out, beside the kernel's own swap on zram.
//!
//! The [`rounds`] put every memory and store to the same work in turn, on the same [`image`]. Each is a [`subject`]: a process of
//! its own that holds the image, so that nothing of one is in another's way. The [`report`] has the figures.
#![deny(unsafe_code)]

mod args;
mod baseline;
mod capture;
mod child;
mod client;
mod cost;
mod density;
mod embed;
mod error;
mod html;
mod image;
mod image_source;
mod kernel;
mod limit;
mod local;
mod machine;
mod pattern;
mod plain;
mod plain_handler;
mod plot;
mod plot_csv;
mod report;
mod rounds;
mod stats;
mod subject;
mod table;
mod touch;
mod zram;

use args::{Args, Command};
use baseline::{Baseline, Verdict};
use clap::Parser;
use error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        None => return run(&args.run).unwrap_or_else(|error| failed(&error)),
        Some(Command::Image { kind, output, size, seed }) => image_source::make(kind, size, seed, &output),
        Some(Command::Limit(args)) => limit::run(&args),
        Some(Command::Cost(args)) => cost::run(&args),
        Some(Command::Density(args)) => density::run(&args),
        Some(Command::Embed(args)) => embed::run(&args),
        Some(Command::Plot { csv, output }) => plot_csv::draw(&csv, &output),
        Some(Command::Capture { pid, output, max }) => capture::capture_to(pid, &output, max).map(|_| ()),
        Some(Command::Child { role }) => child::serve(&role),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("userswap-bench: {}", error.chain());
    ExitCode::FAILURE
}

/// Something became slower than in the report that was to be compared with.
const WORSE: u8 = 2;

/// The benchmark.
fn run(args: &args::Run) -> Result<ExitCode, Error> {
    let plan = args.plan()?;
    // Before anything is measured for nothing.
    let baseline = args.baseline.as_deref().map(Baseline::read).transpose()?;
    let image = image_source::for_run(&plan)?;
    eprintln!(
        "image: {}, {} pages ({} same-filled pages left out)",
        image.origin(),
        image.pages(),
        image.same_filled()
    );
    let report = rounds::run(&plan, &image)?;
    print!("{}", table::render(&report));
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::render(&report))
            .map_err(Error::io(format!("writing {}", path.display())))?;
    }
    let changes = baseline.map_or_else(Vec::new, |baseline| baseline.changes(&report));
    print!("{}", baseline::render(&changes));
    let worse = changes.iter().any(|change| change.verdict == Verdict::Worse);
    Ok(if worse { ExitCode::from(WORSE) } else { ExitCode::SUCCESS })
}
