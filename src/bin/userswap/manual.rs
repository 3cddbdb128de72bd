//! `userswap man` and `userswap completions`: made from the definition of the arguments, so that they can't differ from the help.

use crate::args::Args;
use crate::failure::Failure;
use clap::CommandFactory;
use std::path::Path;
use std::process::ExitCode;

/// Writes a page for the program and one for each of its commands.
pub(crate) fn man(directory: &Path) -> Result<ExitCode, Failure> {
    clap_mangen::generate_to(Args::command(), directory)
        .map_err(|error| Failure::of(&format!("writing manual pages to {}", directory.display()), &error))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a shell's completions.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "userswap", &mut script);
    match std::io::Write::write_all(&mut std::io::stdout(), &script) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::of("printing completions", &error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
