//! What being looked after costs a command that nothing is moved of: by itself and under `userswap run`, in turn.

use crate::args::CostRun;
use crate::error::Error;
use crate::limit::find_userswap;
use crate::stats::Spread;
use serde::Serialize;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What was found out.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    command: Vec<String>,
    rounds: Vec<Round>,
    /// Wall time under `userswap run`, × that of the command by itself in the same round.
    wall: Option<Spread>,
    /// Processor time of both the command and what looks after it, in the same way.
    cpu: Option<Spread>,
}

/// Seconds by itself, and under `userswap run`.
#[derive(Debug, Serialize)]
struct Round {
    alone: Took,
    userswap: Took,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Took {
    wall_s: f64,
    cpu_s: f64,
}

const SCHEMA_VERSION: u32 = 1;

/// Runs it.
pub(crate) fn run(args: &CostRun) -> Result<(), Error> {
    let userswap = find_userswap(args.userswap.as_deref())?;
    let mut looked_after = vec![userswap, "run".into(), "-q".into(), "--".into()];
    looked_after.extend(args.command.iter().cloned());
    let mut rounds = Vec::new();
    // Once unmeasured: files are in the kernel's memory then.
    took(&args.command)?;
    for number in 0..args.rounds.get() {
        let first = if number % 2 == 1 { Some(took(&looked_after)?) } else { None };
        let alone = took(&args.command)?;
        let userswap = match first {
            Some(took) => took,
            None => took(&looked_after)?,
        };
        let round = Round { alone, userswap };
        eprintln!(
            "by itself {:.2} s ({:.2} s of processor), userswap {:.2} s ({:.2} s): {:.3} and {:.3}",
            alone.wall_s,
            alone.cpu_s,
            userswap.wall_s,
            userswap.cpu_s,
            round.wall(),
            round.cpu()
        );
        rounds.push(round);
    }
    let report = Report {
        schema_version: SCHEMA_VERSION,
        command: args.command.clone(),
        wall: Spread::of(rounds.iter().map(Round::wall)),
        cpu: Spread::of(rounds.iter().map(Round::cpu)),
        rounds,
    };
    for (what, spread) in [("wall time", report.wall), ("processor time", report.cpu)] {
        if let Some(spread) = spread {
            println!("{what} × by itself: {:.3} ({:.3}-{:.3})", spread.median, spread.min, spread.max);
        }
    }
    match &args.json {
        Some(path) => std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .map_err(Error::io(format!("writing {}", path.display()))),
        None => Ok(()),
    }
}

/// Runs a command to its good end, with nothing to read and its output away.
fn took(words: &[String]) -> Result<Took, Error> {
    let cpu = children_seconds()?;
    let started = Instant::now();
    let status = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(Error::io("starting the command"))?;
    let wall_s = started.elapsed().as_secs_f64();
    if !status.success() {
        return Err(Error::Program { program: words.join(" "), message: status.to_string() });
    }
    Ok(Took { wall_s, cpu_s: children_seconds()? - cpu })
}

/// Processor time of all children that have ended, theirs included.
fn children_seconds() -> Result<f64, Error> {
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(Error::io("reading /proc/self/stat"))?;
    Ok(children_ticks(&stat) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The 16th and 17th field. The second is a name in brackets, which may have spaces.
fn children_ticks(stat: &str) -> u64 {
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    behind_name.split_ascii_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

impl Round {
    fn wall(&self) -> f64 {
        self.userswap.wall_s / self.alone.wall_s
    }

    fn cpu(&self) -> f64 {
        self.userswap.cpu_s / self.alone.cpu_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_childrens_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 200 0 0 7 8 30 40 20 0 1 0 500 1000 20";
        assert_eq!(children_ticks(stat), 70);
        assert_eq!(children_ticks(""), 0);
    }

    #[test]
    fn a_command_that_fails_is_no_measurement() {
        let words = ["sh", "-c", "exit 3"].map(str::to_owned);
        assert!(matches!(took(&words), Err(Error::Program { .. })));
        let words = ["sh", "-c", "exit 0"].map(str::to_owned);
        assert!(took(&words).is_ok());
    }
}
