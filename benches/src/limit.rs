//! A whole program in less memory than it has: under `userswap run --limit`, and in a memory cgroup that swaps to zram.

pub(crate) mod group;
mod sampler;
pub(crate) mod trial;

use crate::args::LimitRun;
use crate::error::Error;
use crate::html;
use crate::machine::Machine;
use crate::plot::{Axis, Chart, Line, Scale};
use crate::stats::Spread;
use crate::zram::{Settings, Zram};
use group::Group;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use trial::{Trial, Under};

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    machine: Machine,
    zram: Option<Settings>,
    limit_bytes: u64,
    heap_mib: u64,
    order: &'static str,
    walks: u32,
    rounds: Vec<Round>,
    /// Wall time under `userswap run`, × that in the cgroup of the same round.
    ratio: Option<Spread>,
    /// Samples at or under the limit, of those after the settling time, under `userswap run`; the worst round.
    samples_within: Option<f64>,
    left_out: Vec<String>,
}

/// The same work by everybody, one after the other.
#[derive(Debug, Serialize)]
struct Round {
    alone: Trial,
    userswap: Trial,
    cgroup: Option<Trial>,
    /// How often the kernel's killer ended the program in the cgroup before it came to an end.
    cgroup_killed: u32,
}

const SCHEMA_VERSION: u32 = 1;

/// How often the program is tried again that the kernel kills for want of memory.
const TRIES: u32 = 5;

/// Swap for the heap and what else the program has.
const SWAP_FACTOR: u64 = 4;

/// Runs it.
pub(crate) fn run(args: &LimitRun) -> Result<(), Error> {
    let userswap = find_userswap(args.userswap.as_deref())?;
    let script = Script::write()?;
    let words = [
        python()?,
        script.0.display().to_string(),
        args.heap_mib().to_string(),
        args.order.name().into(),
        args.walks.to_string(),
    ];
    let mut left_out = Vec::new();
    let zram = match (!args.no_zram).then(|| Zram::start((args.heap_mib() * SWAP_FACTOR) << 20)) {
        Some(Ok(zram)) => Some(zram),
        Some(Err(error)) => {
            left_out.push(format!("zram: {}", error.chain()));
            None
        }
        None => {
            left_out.push("zram: not asked for".into());
            None
        }
    };
    let group = match zram.as_ref().map(|_| Group::create(args.limit())) {
        Some(Ok(group)) => Some(group),
        Some(Err(error)) => {
            left_out.push(format!("cgroup: {}", error.chain()));
            None
        }
        None => None,
    };
    let mut rounds = Vec::new();
    for number in 0..args.rounds.get() {
        let round = round(number, args.limit(), &userswap, group.as_ref(), &words)?;
        eprintln!("{}", round.line(args.limit()));
        rounds.push(round);
    }
    let report = Report {
        schema_version: SCHEMA_VERSION,
        machine: Machine::look(),
        zram: zram.as_ref().map(|zram| zram.settings().clone()),
        limit_bytes: args.limit(),
        heap_mib: args.heap_mib(),
        order: args.order.name(),
        walks: args.walks,
        ratio: Spread::of(rounds.iter().filter_map(Round::ratio)),
        samples_within: rounds
            .iter()
            .filter_map(|round| round.userswap.within(args.limit()))
            .reduce(f64::min),
        rounds,
        left_out,
    };
    report.print();
    if let Some(path) = &args.html {
        std::fs::write(path, html::page("A program under a limit", &report.charts()))
            .map_err(Error::io(format!("writing {}", path.display())))?;
    }
    match &args.json {
        Some(path) => std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .map_err(Error::io(format!("writing {}", path.display()))),
        None => Ok(()),
    }
}

/// Each in turn, another one first each time.
fn round(
    number: usize,
    limit: u64,
    userswap: &str,
    group: Option<&Group>,
    words: &[String],
) -> Result<Round, Error> {
    let alone = Trial::run(&Under::Nothing, words)?;
    let mut killed = 0;
    let in_group = |killed: &mut u32| -> Result<Option<Trial>, Error> {
        let Some(group) = group else { return Ok(None) };
        for _ in 0..TRIES {
            match Trial::run(&Under::Group(group), words) {
                Err(Error::Killed) => *killed += 1,
                done => return done.map(Some),
            }
        }
        Ok(None)
    };
    let first = if number % 2 == 1 { in_group(&mut killed)? } else { None };
    let limited = Trial::run(&Under::Userswap { program: userswap, limit }, words)?;
    let cgroup = if number % 2 == 1 { first } else { in_group(&mut killed)? };
    for other in std::iter::once(&limited).chain(&cgroup) {
        if other.answer != alone.answer {
            return Err(Error::Input("the program gave another answer than by itself".into()));
        }
    }
    Ok(Round { alone, userswap: limited, cgroup, cgroup_killed: killed })
}

impl Round {
    fn ratio(&self) -> Option<f64> {
        self.cgroup.as_ref().map(|cgroup| self.userswap.seconds / cgroup.seconds)
    }

    fn line(&self, limit: u64) -> String {
        let cgroup = self.cgroup.as_ref().map_or("-".into(), |trial| format!("{:.1} s", trial.seconds));
        format!(
            "alone {:.1} s, userswap {:.1} s, cgroup {cgroup} (killed {} times before){}{}",
            self.alone.seconds,
            self.userswap.seconds,
            self.cgroup_killed,
            self.ratio().map_or(String::new(), |ratio| format!(", ratio {ratio:.2}")),
            self.userswap.within(limit).map_or(String::new(), |share| format!(
                ", within the limit in {:.1}% of samples",
                share * 100.0
            ))
        )
    }
}

impl Report {
    /// One a round: what was in memory over time.
    fn charts(&self) -> String {
        let line = |name: &str, trial: &Trial, dashed| Line {
            name: format!("{name} ({:.1} s)", trial.seconds),
            points: trial.samples.iter().map(|at| (at.seconds, at.bytes as f64 / (1 << 20) as f64)).collect(),
            dashed,
        };
        let chart = |(number, round): (usize, &Round)| {
            let mut lines = vec![line("userswap run", &round.userswap, false)];
            lines.extend(round.cgroup.as_ref().map(|trial| line("memory cgroup on zram", trial, true)));
            lines.push(line("by itself", &round.alone, true));
            let chart = Chart {
                title: &format!("Round {}", number + 1),
                x: Axis { label: "s", scale: Scale::Linear },
                y: Axis { label: "MiB in memory", scale: Scale::Linear },
                lines,
                mark: Some(((self.limit_bytes >> 20) as f64, "limit")),
            };
            html::figure(&chart.svg(), "Anonymous memory of the program, sampled ten times a second.")
        };
        self.rounds.iter().enumerate().map(chart).collect()
    }

    fn print(&self) {
        println!(
            "{} MiB of objects, {}, {} times, in {} MiB; {} rounds",
            self.heap_mib,
            self.order,
            self.walks,
            self.limit_bytes >> 20,
            self.rounds.len()
        );
        if let Some(ratio) = self.ratio {
            println!("wall time × cgroup on zram: {:.2} ({:.2}-{:.2})", ratio.median, ratio.min, ratio.max);
        }
        if let Some(share) = self.samples_within {
            println!("samples at or under the limit, worst round: {:.1}%", share * 100.0);
        }
        for reason in &self.left_out {
            println!("left out: {reason}");
        }
    }
}

/// The program, in a file of its own until this is dropped.
struct Script(PathBuf);

impl Script {
    fn write() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("userswap-bench-heap-{}.py", std::process::id()));
        std::fs::write(&path, include_str!("../programs/heap.py"))
            .map_err(Error::io(format!("writing {}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The program behind `python3`, which may be a script that looks for it.
fn python() -> Result<String, Error> {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .map_err(Error::io("running python3"))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if path.is_empty() { Err(Error::Input("there is no python3 to run".into())) } else { Ok(path) }
}

/// The program `userswap`: the one named, or the one built beside this, or whichever is found.
pub(crate) fn find_userswap(named: Option<&Path>) -> Result<String, Error> {
    if let Some(path) = named {
        return Ok(path.display().to_string());
    }
    let beside =
        std::env::current_exe().map_err(Error::io("finding this program"))?.with_file_name("userswap");
    Ok(if beside.is_file() { beside.display().to_string() } else { "userswap".into() })
}
