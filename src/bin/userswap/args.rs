//! What can be asked for.

use crate::bytes::Bytes;
use crate::logs::{Format, Level};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps the cold memory of running programs compressed, out of their way, and brings each page back the moment it is touched.
#[derive(Debug, Parser)]
#[command(name = "userswap", version, after_help = EXAMPLES, after_long_help = LONG_EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) logs: Logs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  userswap run --limit 64M -- python3 analyse.py   one program in 64 MiB
  userswap doctor                                  whether this machine can do it";

const LONG_EXAMPLES: &str = "Examples:
  userswap doctor
      Whether this kernel and this user can do it, and what to change if not.

  userswap run --limit 64M -- python3 analyse.py data.csv
      One program, and what it starts, in 64 MiB. Its status is userswap's.

  userswap daemon --listen /run/userswap.sock --control /run/userswap.ctl --limit 2G
  userswap run --daemon /run/userswap.sock -- ./server
      Many programs under one limit.

  userswap ctl --control /run/userswap.ctl status
      Who is served, what is out, how well it compresses.

  userswap store check plugin:./mine.so
      Whether a store keeps the laws that all stores keep.

Sizes are bytes, or end in K, M, G or T (powers of 1024).

Exit status (of `run`, see its own help): 0 done, 1 failed, 2 bad arguments, store or configuration, 3 not permitted, 4 socket in use,
5 no daemon answers, 6 no such client, 7 this machine lacks what userswap needs (doctor).";

/// How much is told while it works.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Logs {
    /// How the log on standard error is written.
    #[arg(long, value_enum, global = true, value_name = "FORMAT")]
    pub(crate) log: Option<Format>,
    /// How much is logged [default: warn for run, info for daemon]
    #[arg(long, value_enum, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<Level>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in less memory
    Run(Run),
    /// Serve many programs under one limit
    Daemon(Daemon),
    /// Ask a running daemon, or tell it what to do
    Ctl(Ctl),
    /// Try a store: whether it keeps its promises, and what it costs
    Store(StoreArgs),
    /// Run a command and write down which of its memory it touches
    Record(Record),
    /// Say how often a policy would have been wrong about what a command touched
    Replay(Replay),
    /// Say what this kernel and this user can do, and how to mend what is missing
    Doctor(Doctor),
    /// Print which layout of what a daemon leaves this program takes up
    #[command(hide = true)]
    Layout,
    /// Write the manual pages to a directory
    Man {
        /// Where to; it must exist.
        directory: PathBuf,
    },
    /// Print what completes the arguments in a shell
    Completions {
        /// Which one.
        shell: clap_complete::Shell,
    },
}

/// Runs a command, and what it starts in turn, and keeps what they have in memory under a limit: what is over it waits
/// compressed, and comes back when it is touched. The command needs no change and knows nothing of it.
///
/// Programs that are statically linked, or run with more rights than their caller, run as they always do; the report says so.
#[derive(Debug, clap::Args)]
#[command(after_help = RUN_STATUS)]
pub(crate) struct Run {
    /// The most anonymous memory the command and what it starts may have together [default: no limit].
    ///
    /// Measured as the sum of Pss_Anon in /proc/PID/smaps_rollup.
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Bytes>,
    /// The most for that and for the store together [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) total: Option<Bytes>,
    /// Where pages go [default: ram:lz4].
    #[arg(long, value_name = "SPEC")]
    pub(crate) store: Option<String>,
    /// What goes out and when: off, limit, chromium, proactive, or a policy file [default: limit].
    #[arg(long, value_name = "PRESET|FILE")]
    pub(crate) policy: Option<String>,
    /// Listen for `userswap ctl` here.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Have the command served by the daemon that listens here, instead of by this process. The limits and the store are the daemon's.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["limit", "total", "store", "policy", "control"])]
    pub(crate) daemon: Option<PathBuf>,
    /// How many seconds the command may wait for memory that nobody can bring back, should whoever serves it be killed. Then it is ended. 0 is for ever.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE)]
    pub(crate) patience: u32,
    /// Write what happened to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Measure how long each stage of a fault takes, for the report and `ctl status`; costs a few looks at the clock a fault.
    #[arg(long, conflicts_with = "daemon")]
    pub(crate) stage_times: bool,
    /// Keep all privileges and system calls while the command runs.
    #[arg(long, conflicts_with = "daemon")]
    pub(crate) no_sandbox: bool,
    /// Say nothing at the end.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Seconds.
pub(crate) const PATIENCE: u32 = 60;

const RUN_STATUS: &str =
    "Exit status: the command's; 128+N if signal N ended it; 125 if userswap failed, 126 if the command \
can't be run, 127 if there is none.

Examples:
  userswap run --limit 64M -- python3 analyse.py data.csv
  userswap run --limit 1G --store 'ram:zstd?level=3' --report run.json -- make -j8
  userswap run --limit 64M -- sh -c 'sort big | uniq -c | sort -n'";

/// Runs a command and writes down which pages it touches: over and over, all its memory is moved out, and what comes back is told.
///
/// The command runs several times slower than by itself. What is in files it maps, locked, or on its stacks isn't seen.
#[derive(Debug, clap::Args)]
pub(crate) struct Record {
    /// Where the trace goes.
    #[arg(long, short, value_name = "TRACE")]
    pub(crate) output: PathBuf,
    /// How long a window lasts, in ms. A page is told once in a window.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub(crate) window: u64,
    /// Say nothing at the end.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Goes through a trace under a limit with a policy, and counts how often a page was missing when it was touched; beside it, the same for
/// policies that see every touch (LRU, CLOCK, S3-FIFO, SIEVE) or even those to come (Belady's).
#[derive(Debug, clap::Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub(crate) struct Replay {
    /// What `userswap record` wrote; several are scored one after the other.
    #[arg(required = true, value_name = "TRACE")]
    pub(crate) traces: Vec<PathBuf>,
    /// Only this one.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) policy: Option<ReplayPolicy>,
    /// How much may be in memory: a size, or a share of all different pages, such as 50%.
    #[arg(long, value_name = "SIZE", default_value = "50%")]
    pub(crate) limit: Share,
    /// Print it as JSON, a line a trace.
    #[arg(long)]
    pub(crate) json: bool,
}

const REPLAY_EXAMPLES: &str = "Examples:
  userswap record -o heap.trace -- python3 analyse.py data.csv
  userswap replay heap.trace --limit 50%
  userswap replay *.trace --limit 64M --policy default";

/// What a trace can be gone through with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReplayPolicy {
    /// What userswap does, seeing what it would see.
    Default,
    /// Throws out what is touched latest from now on: nothing can do better.
    Belady,
    /// Throws out what was touched longest ago.
    Lru,
    /// Passes over once what was touched since its last turn.
    Clock,
    /// Two queues, and a memory of what went out.
    S3Fifo,
    /// One queue and a hand.
    Sieve,
}

/// A size, or a share of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Share {
    /// So much.
    Size(Bytes),
    /// So many hundredths.
    Percent(f64),
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(number) = text.strip_suffix('%') else { return text.parse().map(Self::Size) };
        match number.parse::<f64>() {
            Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err(format!("'{text}' is no share: write a number and %, such as 50%")),
        }
    }
}

/// Serves programs until it is told to end (SIGTERM, SIGINT or `userswap ctl drain`). Then it brings back everything that is out, lets
/// every program go, and ends; a program whose memory can't be brought back keeps it from ending.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = DAEMON_CONFIG)]
pub(crate) struct Daemon {
    /// Where programs find it: a path, or @NAME for an abstract address.
    #[arg(long, value_name = "PATH")]
    pub(crate) listen: Option<PathBuf>,
    /// Listen for `userswap ctl` here.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Where pages go [default: ram:lz4].
    #[arg(long, value_name = "SPEC")]
    pub(crate) store: Option<String>,
    /// What goes out and when: off, limit, chromium, proactive, or a policy file [default: limit].
    #[arg(long, value_name = "PRESET|FILE")]
    pub(crate) policy: Option<String>,
    /// The most anonymous memory all programs may have together [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Bytes>,
    /// The most each of them may have [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) client_limit: Option<Bytes>,
    /// Serve programs of this user too, beside root's and the daemon's own; can be given several times.
    #[arg(long, value_name = "UID")]
    pub(crate) allow: Vec<u32>,
    /// How many processes of a user that is allowed may be served at the same time [default: 1024].
    #[arg(long, value_name = "COUNT")]
    pub(crate) clients_per_user: Option<usize>,
    /// Take settings from this file; arguments come first.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How many seconds programs may wait when no worker gets as far as serving, before they are ended [default: 60].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) patience: Option<u32>,
    /// Which messages are spoken with programs [default: extended].
    #[arg(long, value_enum)]
    pub(crate) contract: Option<Contract>,
    /// Keep all privileges and system calls while serving.
    #[arg(long)]
    pub(crate) no_sandbox: bool,
    /// Measure how long each stage of a fault takes, for `ctl status`; costs a few looks at the clock a fault.
    #[arg(long)]
    pub(crate) stage_times: bool,
}

const DAEMON_CONFIG: &str = "The configuration is TOML, its keys those of the arguments:
  listen = \"/run/userswap.sock\"
  control = \"/run/userswap.ctl\"
  store = \"ram:zstd\"
  policy = \"proactive\"
  limit = \"4G\"
  client-limit = \"1G\"
  allow = [1000, 1001]
  clients-per-user = 1024
  contract = \"extended\"
  patience = 60
  sandbox = true
  stage-times = false
  log = \"json\"
  log-level = \"info\"";

/// What is spoken with programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contract {
    /// The four calls of the mirrored contract alone; programs that know nothing of userswap can't be served.
    Strict,
    /// The extensions too.
    Extended,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ctl {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", global = true, required = false)]
    pub(crate) control: Option<PathBuf>,
    /// Print the daemon's answer as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) order: Order,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkingSetOrder {
    /// Write which pages are in memory now
    ///
    /// Under a limit that is what the program was left with; after `evict`, what it has touched since.
    Save {
        /// Its process.
        pid: u32,
        /// Where to write it.
        file: PathBuf,
    },
    /// Bring in those that are out; returns when they are in memory
    ///
    /// Whatever the program waits for meanwhile comes first. Limits hold: with too little room other pages go for them.
    Load {
        /// Its process.
        pid: u32,
        /// What was saved.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Order {
    /// Everything there is to know
    Status,
    /// Who is served
    Clients,
    /// Move a program's memory out; returns when it is out
    Evict {
        /// Its process.
        pid: u32,
        /// How much; everything movable without.
        #[arg(long, value_name = "N")]
        bytes: Option<Bytes>,
    },
    /// Bring all of a program's memory back; returns when it is back
    Restore {
        /// Its process.
        pid: u32,
    },
    /// Keep in a file which pages of a program are in memory, or bring those back early
    ///
    /// Pages are told by their addresses: what was saved is of use to the same process, whatever was moved out of it since, and to another one only if
    /// its memory is laid out the same.
    #[command(subcommand)]
    WorkingSet(WorkingSetOrder),
    /// Hold all programs together to another limit; 0 is none
    Limit {
        /// The limit.
        size: Bytes,
    },
    /// Say which policy is in force, or put another one in force
    ///
    /// What is said is a policy file.
    Policy {
        /// The other one: off, limit, chromium, proactive, or a policy file. A bad one changes nothing.
        #[arg(value_name = "PRESET|FILE")]
        policy: Option<String>,
    },
    /// Tell the policy something of a program, as `frozen=yes`
    Hint {
        /// Its process.
        pid: u32,
        /// What: visible, audible, loading or frozen, and yes or no.
        #[arg(required = true, value_name = "WHAT=yes|no", value_parser = hint)]
        hints: Vec<(Told, bool)>,
    },
    /// Bring everything back, let every program go, end the daemon
    Drain,
}

/// What can be told of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// A person sees it.
    Visible,
    /// It is heard.
    Audible,
    /// It is still loading.
    Loading,
    /// It was frozen.
    Frozen,
}

fn hint(text: &str) -> Result<(Told, bool), String> {
    let (what, so) = text.split_once('=').unwrap_or((text, ""));
    let what = match what {
        "visible" => Told::Visible,
        "audible" => Told::Audible,
        "loading" => Told::Loading,
        "frozen" => Told::Frozen,
        _ => {
            return Err(format!("'{what}' is nothing that can be told: visible, audible, loading or frozen"));
        }
    };
    match so {
        "yes" => Ok((what, true)),
        "no" => Ok((what, false)),
        _ => Err("write yes or no behind the =".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = STORES)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    pub(crate) trial: Trial,
}

const STORES: &str = "Stores are written as for `run --store`; quote them for the shell:
  ram:lz4?capacity=64M                     compressed memory
  plugin:./mine.so?capacity=1G&key=value   a shared library by the interface of userswap_store.h
  checked+plugin:./mine.so                 with a layer around it
  tier:ram:lz4?capacity=64M>plugin:./mine.so";

#[derive(Debug, Subcommand)]
pub(crate) enum Trial {
    /// Check a store by the laws that all stores keep
    Check(Check),
    /// Measure what a store costs, beside the bare codec
    Bench(Bench),
}

/// Makes the store anew for each law, and sees whether it keeps it: pages of every kind come back as they were, puts are all or nothing, a key gets
/// its own page and no other, accounts end at zero, a full store says so, threads don't mix, and any sequence of calls gives what a map would.
///
/// Laws that a store has no part in are skipped, and the reason is said. Where a law is about a limit the store is limited, unless it is a stack. A named file is written to.
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_STATUS)]
pub(crate) struct Check {
    /// The store.
    #[arg(value_name = "SPEC")]
    pub(crate) store: String,
    /// Check this law alone; can be given several times.
    #[arg(long, value_name = "NAME")]
    pub(crate) law: Vec<String>,
    /// Bytes of a page [default: the machine's].
    #[arg(long, value_name = "SIZE")]
    pub(crate) page_size: Option<Bytes>,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const CHECK_STATUS: &str =
    "Exit status: 0 all laws that apply are kept; 1 one is broken; 2 the store can't be opened, or there is no such law.

Examples:
  userswap store check ram:lz4
  userswap store check 'plugin:./mine.so?key=value' --law model --law threads_do_not_mix
  userswap store check 'file:/var/tmp?reserve=0' --json";

/// Puts the pages of a memory image into the store and gets them back in random order, one at a time, by turns with lz4 alone and with copying alone: each round is of short
/// blocks, in which the three take turns at being first. Every page that comes back is compared with what was put.
///
/// Pages that are one word repeated are left out. An image is any file, taken page by page: a core dump, or what `userswap-bench` captures.
#[derive(Debug, clap::Args)]
#[command(after_help = BENCH_STATUS)]
pub(crate) struct Bench {
    /// The store.
    #[arg(value_name = "SPEC")]
    pub(crate) store: String,
    /// Whose pages are put.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: PathBuf,
    /// How often all of it is done; the figures are of all rounds, the spread is between them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Pages given to the store in one call; a call's time is divided by them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: u32,
    /// At most so much of the image.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) most: Bytes,
    /// Bytes of a page [default: the machine's].
    #[arg(long, value_name = "SIZE")]
    pub(crate) page_size: Option<Bytes>,
    /// Print the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const BENCH_STATUS: &str =
    "Exit status: 0 done; 1 a page didn't come back as it was, or the image can't be read; 2 the store can't be opened.

Examples:
  userswap store bench ram:lz4 --image heap.image
  userswap store bench 'checked+plugin:./mine.so' --image heap.image --rounds 9 --json";

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
