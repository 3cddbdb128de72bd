//! What can be asked for.

use crate::error::Error;
use crate::image_source::Kind;
use crate::pattern::Pattern;
use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Measures how long threads wait for pages that were moved out, beside the kernel's own swap on zram with lz4, in turn on
/// the same memory image.
///
/// Needs a userfaultfd that may take faults inside system calls, or those of user code at least. Comparing with zram needs root;
/// without, that side is left out and the report says so. A zram device of its own is made for the run and taken away again.
#[derive(Debug, Parser)]
#[command(name = "userswap-bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) run: Run,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Other things to do than to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fill a real process's memory with made-up data and write its image to a file.
    Image {
        /// What process.
        kind: Kind,
        /// Where to.
        #[arg(short, long)]
        output: PathBuf,
        /// How much memory it takes before its image is taken.
        #[arg(long, default_value = "128M", value_parser = parse_size)]
        size: u64,
        /// What the data is made up from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measure a whole program in less memory than it has: under `userswap run --limit`, and in a memory cgroup that swaps to zram, in turn.
    Limit(LimitRun),
    /// Measure a program that joins tables in a region which pages itself, and in ordinary memory in a memory cgroup that swaps to zram, in turn.
    Embed(EmbedRun),
    /// Measure what `userswap run` costs a command that nothing is moved of: by itself and under it, in turn.
    Cost(CostRun),
    /// Measure what a page takes in stores, in objects of several pages and on zram, and what it costs to have one back, on memory images.
    Density(DensityRun),
    /// Draw what a script of `benches/` has measured over time: a chart for each unit, which is what the name of a column ends with.
    Plot {
        /// The script's output: a line of names, then lines of numbers, the first of each the time. What isn't a number is left out.
        csv: PathBuf,
        /// The page to write.
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Write the private anonymous memory of a living process to a file, its largest mappings first.
    Capture {
        /// Its number.
        pid: u32,
        /// Where to.
        #[arg(short, long)]
        output: PathBuf,
        /// At most so much.
        #[arg(long, value_parser = parse_size)]
        max: Option<u64>,
    },
    /// A measured process; started by the benchmark itself.
    #[command(hide = true)]
    Child {
        /// What it is to be.
        role: String,
    },
}

/// What program to run in how much memory.
#[derive(Debug, clap::Args)]
pub(crate) struct LimitRun {
    /// A small heap and limit: a minute at most a round.
    #[arg(long)]
    quick: bool,
    /// MiB of objects that the program makes; 300 unless it is to be quick.
    #[arg(long)]
    heap: Option<u64>,
    /// What it may have in memory; 64M unless it is to be quick.
    #[arg(long, value_parser = parse_size)]
    limit: Option<u64>,
    /// How it goes through them.
    #[arg(long, value_enum, default_value = "walk")]
    pub(crate) order: Order,
    /// How often it does.
    #[arg(long, default_value = "5")]
    pub(crate) walks: u32,
    /// How often everything is measured.
    #[arg(long, default_value = "3")]
    pub(crate) rounds: NonZeroUsize,
    /// Leave the kernel's swap out.
    #[arg(long)]
    pub(crate) no_zram: bool,
    /// The program `userswap`; unless it is named, the one beside this.
    #[arg(long)]
    pub(crate) userswap: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Where to draw what was in memory over time, as a page.
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
}

/// How the join is run.
#[derive(Debug, clap::Args)]
pub(crate) struct EmbedRun {
    /// Small tables: half a minute at most.
    #[arg(long)]
    quick: bool,
    /// MB of tables and partitions, four times the limit [default: 256, 64 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(48..=3000))]
    size: Option<u32>,
    /// How often the tables are joined.
    #[arg(long, default_value = "4")]
    pub(crate) joins: u32,
    /// Whose faults are measured: `inline` or `local`.
    #[arg(long, default_value = "inline", value_parser = ["inline", "local"])]
    pub(crate) memory: String,
    /// Where the region's pages go.
    #[arg(long, default_value = "ram:lz4")]
    pub(crate) store: String,
    /// How often everything is measured.
    #[arg(long, default_value = "5")]
    pub(crate) rounds: NonZeroUsize,
    /// Leave the kernel's swap out.
    #[arg(long)]
    pub(crate) no_zram: bool,
    /// The example `join`; unless it is named, `examples/join` beside this program.
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Where the program takes text from; wherever this machine has some, unless told.
    pub(crate) directories: Vec<PathBuf>,
}

impl EmbedRun {
    /// In MB.
    pub(crate) fn size(&self) -> u32 {
        self.size.unwrap_or(if self.quick { 64 } else { 256 })
    }
}

/// Which command to run by itself and under `userswap run`.
#[derive(Debug, clap::Args)]
pub(crate) struct CostRun {
    /// How often everything is measured.
    #[arg(long, default_value = "7")]
    pub(crate) rounds: NonZeroUsize,
    /// The program `userswap`; unless it is named, the one beside this.
    #[arg(long)]
    pub(crate) userswap: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// The command, one that may be run again and again.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// Which stores on which images.
#[derive(Debug, clap::Args)]
pub(crate) struct DensityRun {
    /// Images, as `image` and `capture` write them.
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
    /// Stores that answer at once; times are compared with those of ram:lz4.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "ram:lz4,ram:zstd?dict=off&dense=off,ram:zstd?dense=off,ram:zstd"
    )]
    pub(crate) stores: Vec<String>,
    /// At most so much of each image.
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    pub(crate) size: u64,
    /// How often pages are had back.
    #[arg(long, default_value = "8")]
    pub(crate) rounds: NonZeroUsize,
    /// Where to write the curves.
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
}

impl LimitRun {
    pub(crate) fn heap_mib(&self) -> u64 {
        self.heap.unwrap_or(if self.quick { 60 } else { 300 })
    }

    /// In bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.unwrap_or(if self.quick { 20 << 20 } else { 64 << 20 })
    }
}

/// How a program goes through its heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Order {
    /// In the order it was made.
    Walk,
    /// A tenth of it, anywhere.
    Random,
    /// Half as often as there are objects, mostly the same.
    Some,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::Random => "random",
            Self::Some => "some",
        }
    }
}

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// A small image: at most a minute in all.
    #[arg(long)]
    quick: bool,
    /// How often everything is measured; figures are medians over the rounds.
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,
    /// The memory image; without one, one is made from a Python process, or from made-up text where there is no python3.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How the memory is reached.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Memory::ALL)]
    memory: Vec<Memory>,
    /// Where pages go.
    #[arg(long, value_delimiter = ',', default_values_t = ["ram:lz4".to_owned(), "ram:zstd".to_owned()])]
    store: Vec<String>,
    /// The order of touches.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Pattern::Random, Pattern::Sequential])]
    pattern: Vec<Pattern>,
    /// Touching threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// How much of the image is used at most [default: 64M, 16M with --quick]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// In how many regions a client's memory lies.
    #[arg(long, default_value = "1")]
    regions: NonZeroUsize,
    /// Random touches a pass [default: half the pages]
    #[arg(long)]
    touches: Option<usize>,
    /// Of a hundred touches of a thread, how many write to their page; several, separated by commas, are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [0], value_parser = clap::value_parser!(u8).range(0..=100))]
    writes: Vec<u8>,
    /// Keep each touching thread on one CPU.
    #[arg(long)]
    pin: bool,
    /// Measure both with threads kept on one CPU and with threads that the scheduler moves as it likes.
    #[arg(long, conflicts_with = "pin")]
    both_placements: bool,
    /// Leave the kernel's swap out.
    #[arg(long)]
    no_zram: bool,
    /// Seed of the random touches, and of the image if one is made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure the stages of faults, too, where handler threads serve them; costs some looks at the clock a fault.
    #[arg(long)]
    stages: bool,
    /// Where to write the report as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Where to write it as a page with charts.
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
    /// An earlier report (JSON) to compare with: what became slower beside zram is told, and the exit status is 2.
    #[arg(long)]
    pub(crate) baseline: Option<PathBuf>,
}

/// How memory is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Memory {
    /// A region of the own process whose faults the faulting threads serve themselves.
    Inline,
    /// A region of the own process that pages itself.
    Local,
    /// A process whose memory a daemon, another process, moves out and brings back.
    Client,
    /// What most programs with a userfaultfd have: one thread that answers one fault with one page, from memory compressed with lz4.
    PlainHandler,
    /// Ordinary memory that nobody moves out.
    Plain,
}

impl Memory {
    const ALL: [Self; 5] = [Self::Inline, Self::Local, Self::Client, Self::PlainHandler, Self::Plain];

    /// As in arguments and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Local => "local",
            Self::Client => "client",
            Self::PlainHandler => "plain-handler",
            Self::Plain => "plain",
        }
    }

    /// Where its pages go, of those who can't be told by `--store`.
    pub(crate) fn own_store(self) -> Option<&'static str> {
        match self {
            Self::Inline | Self::Local | Self::Client => None,
            Self::PlainHandler => Some("lz4"),
            Self::Plain => Some("-"),
        }
    }
}

/// What is to be done, in full.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) image: Option<PathBuf>,
    pub(crate) memories: Vec<Memory>,
    pub(crate) stores: Vec<String>,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) threads: Vec<usize>,
    /// In bytes.
    pub(crate) size: u64,
    /// A client's.
    pub(crate) regions: usize,
    /// Random touches a pass; half the pages if `None`.
    pub(crate) touches: Option<usize>,
    /// Shares of touches that write, in hundredths.
    pub(crate) writes: Vec<u8>,
    /// Threads kept on a CPU each, or not.
    pub(crate) placements: Vec<bool>,
    pub(crate) zram: bool,
    /// Whether stages are measured.
    pub(crate) stages: bool,
    pub(crate) seed: u64,
}

impl Run {
    /// Everything decided that was left open.
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        if self.threads.contains(&0) {
            return Err(Error::Input("--threads: at least one".into()));
        }
        for store in &self.store {
            userswap_stores::spec::parse(store)?;
        }
        Ok(Plan {
            rounds: self.rounds.get(),
            image: self.image.clone(),
            memories: distinct(&self.memory),
            stores: distinct(&self.store),
            patterns: distinct(&self.pattern),
            threads: distinct(&self.threads),
            size: self.size.unwrap_or(if self.quick { 16 << 20 } else { 64 << 20 }),
            regions: self.regions.get(),
            touches: self.touches,
            writes: distinct(&self.writes),
            placements: if self.both_placements { vec![false, true] } else { vec![self.pin] },
            zram: !self.no_zram,
            stages: self.stages,
            seed: self.seed,
        })
    }
}

fn distinct<T: Ord + Clone>(given: &[T]) -> Vec<T> {
    let mut values = given.to_vec();
    values.sort();
    values.dedup();
    values
}

/// `65536`, `64K`, `64M`, `2G`.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size such as 64M"))?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))?;
    if bytes == 0 { Err("0 is no size to measure".into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("3k"), Ok(3072));
        assert_eq!(parse_size("128M"), Ok(128 << 20));
        for bad in ["", "M", "-1", "0", "0G", "1T", "99999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_open_is_decided() {
        let plan = |line: &str| Args::try_parse_from(line.split(' ')).unwrap().run.plan();
        let quick = plan("bench --quick").unwrap();
        assert_eq!((quick.rounds, quick.size, quick.placements.as_slice()), (5, 16 << 20, &[false][..]));
        let asked = plan("bench --threads 2,1,2 --store ram:lz4 --both-placements --size 1M").unwrap();
        assert_eq!((asked.threads.as_slice(), asked.stores.len()), (&[1, 2][..], 1));
        assert_eq!((asked.size, asked.placements.len()), (1 << 20, 2));
        assert!(plan("bench --store ram:nonsense").is_err());
        assert!(plan("bench --threads 0").is_err());
        assert_eq!((quick.writes, plan("bench --writes 50,0").unwrap().writes), (vec![0], vec![0, 50]));
        assert!(Args::try_parse_from(["bench", "--writes", "101"]).is_err());
        assert!(Args::try_parse_from(["bench", "--pin", "--both-placements"]).is_err());
    }
}
