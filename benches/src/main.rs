//! `userswap-bench`: how long a thread waits for a page that was moved out, beside the kernel's own swap on zram.
//!
//! The [`rounds`] put every memory and store to the same work in turn, on the same [`image`]. Each is a [`subject`]: a process of
//! its own that holds the image, so that nothing of one is in another's way. The [`report`] has the figures.
#![deny(unsafe_code)]

mod args;
mod capture;
mod child;
mod client;
mod cost;
mod error;
mod image;
mod image_source;
mod kernel;
mod limit;
mod local;
mod machine;
mod pattern;
mod report;
mod rounds;
mod stats;
mod subject;
mod table;
mod touch;
mod zram;

use args::{Args, Command};
use clap::Parser;
use error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        None => run(&args.run),
        Some(Command::Image { kind, output, size, seed }) => image_source::make(kind, size, seed, &output),
        Some(Command::Limit(args)) => limit::run(&args),
        Some(Command::Cost(args)) => cost::run(&args),
        Some(Command::Capture { pid, output, max }) => capture::capture_to(pid, &output, max).map(|_| ()),
        Some(Command::Child { role }) => child::serve(&role),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("userswap-bench: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// The benchmark.
fn run(args: &args::Run) -> Result<(), Error> {
    let plan = args.plan()?;
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
    Ok(())
}
