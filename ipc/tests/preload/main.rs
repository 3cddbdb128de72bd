//! Programs that know nothing of it, run under the shared object on the real kernel, with a daemon end small enough to see through.
//! Every byte that was moved out is checked by the program itself.

#![allow(clippy::unwrap_used)]

mod cases;
mod daemon;
mod run;
mod space;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        cases::CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let wanted =
        cases::CASES.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let bench = match run::Bench::new() {
        Ok(bench) => bench,
        Err(reason) => {
            wanted.for_each(|(name, _)| println!("SKIPPED {name}: {reason}"));
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = 0;
    for (name, case) in wanted {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&bench))) {
            Ok(None) => println!("test {name} ... ok"),
            Ok(Some(reason)) => println!("SKIPPED {name}: {reason}"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}
