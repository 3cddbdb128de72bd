//! A program with a region larger than memory, and the same program with ordinary memory in a memory cgroup that swaps to zram.
//!
//! The program is the example `join`, which says itself how long its joins took.

use crate::args::EmbedRun;
use crate::error::Error;
use crate::limit::group::Group;
use crate::limit::trial::{Trial, Under};
use crate::machine::Machine;
use crate::stats::Spread;
use crate::zram::{Settings, Zram};
use serde::Serialize;
use std::path::PathBuf;

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    machine: Machine,
    zram: Option<Settings>,
    memory: String,
    store: String,
    size_mb: u32,
    limit_bytes: u64,
    joins: u32,
    rounds: Vec<Round>,
    /// Seconds in the cgroup with the advice of one thread that did best, × those in the region, of the same round: more than 1 if the region is faster.
    times_faster: Option<Spread>,
    /// The same by the cgroup with a second thread that swaps out.
    times_faster_than_two_threads: Option<Spread>,
    left_out: Vec<String>,
}

/// Seconds of the same joins by everybody.
#[derive(Debug, Serialize)]
struct Round {
    /// In as much ordinary memory as it takes.
    alone: f64,
    region: f64,
    /// In the cgroup, by what the kernel was told ([`ADVICE`]).
    cgroup: Vec<f64>,
}

const SCHEMA_VERSION: u32 = 1;

/// What the kernel is told of ordinary memory, each in a run of its own. With `passed` a second thread has it swap out what was gone through, which is what
/// a region does by itself.
const ADVICE: [&str; 4] = ["nothing", "order,drop", "order,soon,drop", "order,soon,passed,drop"];

/// So many of them are what one thread tells.
const ONE_THREAD: usize = 3;

/// What a region is told.
const OF_REGION: &str = "order,passed,drop";

/// The cgroup's members may have this much more than the region's limit: for the program itself, its stack and heap, which no region's limit counts.
const BESIDE: u64 = 6 << 20;

/// Swap for all of the memory, and for what else may be there.
const SWAP_FACTOR: u64 = 2;

/// Runs it.
pub(crate) fn run(args: &EmbedRun) -> Result<(), Error> {
    let program = find(args)?;
    let bytes = u64::from(args.size()) * 1_000_000;
    let limit = bytes / 4;
    let mut left_out = Vec::new();
    let zram = if args.no_zram {
        left_out.push("zram: not asked for".into());
        None
    } else {
        Zram::start(bytes * SWAP_FACTOR)
            .inspect_err(|error| left_out.push(format!("zram: {}", error.chain())))
            .ok()
    };
    let group = zram.as_ref().and_then(|_| {
        Group::create(limit + BESIDE)
            .inspect_err(|error| left_out.push(format!("cgroup: {}", error.chain())))
            .ok()
    });
    let program = Program { args, words: vec![program.display().to_string()] };
    // Once unmeasured: files are in the kernel's memory then.
    program.join("plain", "nothing", &Under::Nothing)?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds.get() {
        let round = program.round(number, group.as_ref())?;
        eprintln!("{}", round.line());
        rounds.push(round);
    }
    let report = Report {
        schema_version: SCHEMA_VERSION,
        machine: Machine::look(),
        zram: zram.as_ref().map(|zram| zram.settings().clone()),
        memory: args.memory.clone(),
        store: args.store.clone(),
        size_mb: args.size(),
        limit_bytes: limit,
        joins: args.joins,
        times_faster: Spread::of(rounds.iter().filter_map(Round::times_faster)),
        times_faster_than_two_threads: Spread::of(
            rounds.iter().filter_map(|round| Some(round.cgroup.get(ONE_THREAD)? / round.region)),
        ),
        rounds,
        left_out,
    };
    report.print();
    match &args.json {
        Some(path) => std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .map_err(Error::io(format!("writing {}", path.display()))),
        None => Ok(()),
    }
}

/// How the program is started.
struct Program<'a> {
    args: &'a EmbedRun,
    words: Vec<String>,
}

/// What the program said.
#[derive(Debug, PartialEq)]
struct Said {
    seconds: f64,
    /// What has to be the same wherever it runs.
    answer: String,
}

impl Program<'_> {
    /// Each in turn, another one first each time.
    fn round(&self, number: usize, group: Option<&Group>) -> Result<Round, Error> {
        let alone = self.join("plain", "nothing", &Under::Nothing)?;
        let of_region = || self.join(&self.args.memory, OF_REGION, &Under::Nothing);
        let of_kernel = || -> Result<Vec<Said>, Error> {
            let Some(group) = group else { return Ok(Vec::new()) };
            ADVICE.iter().map(|advice| self.join("plain", advice, &Under::Group(group))).collect()
        };
        let (region, cgroup) = if number.is_multiple_of(2) {
            let region = of_region()?;
            (region, of_kernel()?)
        } else {
            let cgroup = of_kernel()?;
            (of_region()?, cgroup)
        };
        for other in std::iter::once(&region).chain(&cgroup) {
            other.must_be_as(&alone)?;
        }
        let cgroup = cgroup.iter().map(|said| said.seconds).collect();
        Ok(Round { alone: alone.seconds, region: region.seconds, cgroup })
    }

    fn join(&self, memory: &str, advice: &str, under: &Under<'_>) -> Result<Said, Error> {
        let mut words = self.words.clone();
        let options = [
            ("--size", self.args.size().to_string()),
            ("--joins", self.args.joins.to_string()),
            ("--store", self.args.store.clone()),
            ("--memory", memory.to_owned()),
            ("--advice", advice.to_owned()),
        ];
        words.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        words.extend(self.args.directories.iter().map(|path| path.display().to_string()));
        let trial = Trial::run(under, &words)?;
        said(&String::from_utf8_lossy(&trial.answer))
            .ok_or_else(|| Error::Input(format!("{} didn't say how long it took", words[0])))
    }
}

impl Said {
    fn must_be_as(&self, alone: &Self) -> Result<(), Error> {
        // The first line tells of the tables.
        let reason =
            match (self.answer == alone.answer, self.answer.lines().next() == alone.answer.lines().next()) {
                (true, _) => return Ok(()),
                (false, true) => "the program gave another answer than by itself",
                (false, false) => "files changed meanwhile: name directories that nobody writes to",
            };
        Err(Error::Input(reason.into()))
    }
}

/// Takes what the program printed apart: rows and joins, the seconds, and behind them what is different each time.
fn said(text: &str) -> Option<Said> {
    let (answer, rest) = text.split_once("seconds: ")?;
    Some(Said { seconds: rest.lines().next()?.parse().ok()?, answer: answer.to_owned() })
}

impl Round {
    fn times_faster(&self) -> Option<f64> {
        self.cgroup.iter().take(ONE_THREAD).copied().reduce(f64::min).map(|least| least / self.region)
    }

    fn line(&self) -> String {
        let cgroup: Vec<String> = self
            .cgroup
            .iter()
            .zip(ADVICE)
            .map(|(seconds, advice)| format!("{seconds:.2} s ({advice})"))
            .collect();
        let faster =
            self.times_faster().map_or_else(String::new, |times| format!(": {times:.2} times faster"));
        let cgroup = if cgroup.is_empty() { "-".into() } else { cgroup.join(", ") };
        format!("alone {:.2} s, region {:.2} s, cgroup {cgroup}{faster}", self.alone, self.region)
    }
}

impl Report {
    fn print(&self) {
        println!(
            "{} joins in {} MB of which {} MB may be in memory; {} {}; {} rounds",
            self.joins,
            self.size_mb,
            self.limit_bytes / 1_000_000,
            self.memory,
            self.store,
            self.rounds.len()
        );
        let middle = |of: fn(&Round) -> f64| {
            Spread::of(self.rounds.iter().map(of)).map_or(0.0, |spread| spread.median)
        };
        println!("alone {:.2} s, region {:.2} s", middle(|round| round.alone), middle(|round| round.region));
        for (at, advice) in ADVICE.iter().enumerate() {
            if let Some(spread) =
                Spread::of(self.rounds.iter().filter_map(|round| round.cgroup.get(at).copied()))
            {
                println!("cgroup on zram, told {advice}: {:.2} s", spread.median);
            }
        }
        let beside = [
            ("the cgroup at its best", self.times_faster),
            ("the cgroup with a second thread that swaps out", self.times_faster_than_two_threads),
        ];
        for (whom, times) in beside {
            if let Some(times) = times {
                println!("times faster than {whom}: {:.2} ({:.2}-{:.2})", times.median, times.min, times.max);
            }
        }
        for reason in &self.left_out {
            println!("left out: {reason}");
        }
    }
}

fn find(args: &EmbedRun) -> Result<PathBuf, Error> {
    let beside =
        std::env::current_exe().map_err(Error::io("finding this program"))?.with_file_name("examples");
    let program = args.program.clone().unwrap_or_else(|| beside.join("join"));
    if program.is_file() {
        return Ok(program);
    }
    let reason = "cargo build --release --example join";
    Err(Error::Input(format!("{} isn't there: {reason}", program.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seconds_are_no_part_of_the_answer() {
        let said = said("10 and 12 rows\njoin 0: 7 pairs\nseconds: 1.250\nRegionUsage { .. }\n").unwrap();
        assert_eq!(said, Said { seconds: 1.25, answer: "10 and 12 rows\njoin 0: 7 pairs\n".into() });
        assert_eq!(super::said("10 and 12 rows\n"), None);
        let reason = |answer: &str| {
            let other = Said { seconds: 1.0, answer: answer.into() };
            other.must_be_as(&said).err().map(|error| error.chain())
        };
        assert_eq!(reason("10 and 12 rows\njoin 0: 7 pairs\n"), None);
        assert!(reason("10 and 12 rows\njoin 0: 8 pairs\n").unwrap().contains("another answer"));
        assert!(reason("11 and 12 rows\njoin 0: 8 pairs\n").unwrap().contains("files changed"));
    }

    #[test]
    fn the_kernel_at_its_best_with_one_thread_is_compared_with() {
        let round = Round { alone: 1.0, region: 2.0, cgroup: vec![4.0, 3.0, 5.0, 1.0] };
        assert_eq!(round.times_faster(), Some(1.5));
        assert_eq!(Round { cgroup: Vec::new(), ..round }.times_faster(), None);
    }
}
