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
    /// Say what this kernel and this user can do, and how to mend what is missing
    Doctor(Doctor),
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
    /// Listen for `userswap ctl` here.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Have the command served by the daemon that listens here, instead of by this process. The limits and the store are the daemon's.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["limit", "total", "store", "control"])]
    pub(crate) daemon: Option<PathBuf>,
    /// Write what happened to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Say nothing at the end.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

const RUN_STATUS: &str =
    "Exit status: the command's; 128+N if signal N ended it; 125 if userswap failed, 126 if the command \
can't be run, 127 if there is none.

Examples:
  userswap run --limit 64M -- python3 analyse.py data.csv
  userswap run --limit 1G --store 'ram:zstd?level=3' --report run.json -- make -j8
  userswap run --limit 64M -- sh -c 'sort big | uniq -c | sort -n'";

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
    /// The most anonymous memory all programs may have together [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<Bytes>,
    /// The most each of them may have [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) client_limit: Option<Bytes>,
    /// Serve programs of this user too, beside root's and the daemon's own; can be given several times.
    #[arg(long, value_name = "UID")]
    pub(crate) allow: Vec<u32>,
    /// Take settings from this file; arguments come first.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Which messages are spoken with programs [default: extended].
    #[arg(long, value_enum)]
    pub(crate) contract: Option<Contract>,
}

const DAEMON_CONFIG: &str = "The configuration is TOML, its keys those of the arguments:
  listen = \"/run/userswap.sock\"
  control = \"/run/userswap.ctl\"
  store = \"ram:zstd\"
  limit = \"4G\"
  client-limit = \"1G\"
  allow = [1000, 1001]
  contract = \"extended\"
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
    /// Hold all programs together to another limit; 0 is none
    Limit {
        /// The limit.
        size: Bytes,
    },
    /// Bring everything back, let every program go, end the daemon
    Drain,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
