//! Real programs under daemons that are treated badly, round after round: their memory is moved out, limits change, workers are killed, a store fails. What the
//! programs say must be what they say by themselves, and after each round the daemons must have no more descriptors and memory than after the first.
//!
//! A module of the program `soak` and of the tests of the program `userswap`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use userswap::daemon::control::{Evicted, Limited, Operator, Request, Status};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program `userswap`.
    pub userswap: PathBuf,
    /// Where everything goes that is made; it must exist.
    pub directory: PathBuf,
    /// How long; the round that is under way is gone through to its end.
    pub time: Duration,
    /// What chance begins with.
    pub seed: u64,
}

/// Programs whose output follows from what they are, each in a shell.
const PROGRAMS: &[&str] = &[
    "seq 1 80000 | awk '{print ($1 * 7919) % 200003, $1}' | sort -n | cksum",
    "awk 'BEGIN {for (i = 0; i < 120000; i++) a[i] = i * 31 % 1009; for (k = 0; k < 3; k++) for (i in a) s += a[i] * (k + 1); print s}'",
    "python3 -c 'd = {i: str(i * 7) for i in range(80000)}; print(sum(len(v) + int(v) % 11 for k in range(3) for v in d.values()))'",
    "python3 -c 'import os, sys
x = [bytes([i % 251]) * 100 for i in range(50000)]
for n in range(4):
    if os.fork() == 0: os._exit(sum(map(len, x)) != 5000000)
    if os.wait()[1]: sys.exit(9)
print(sum(b[n] for n, b in zip(range(100), x)))'",
];

/// What a soak came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Soaked {
    /// Rounds.
    pub rounds: u64,
    /// Programs that ran to their end.
    pub programs: u64,
    /// Workers that were killed.
    pub kills: u64,
    /// What was moved out by order.
    pub evictions: u64,
}

/// How it stands after a round.
#[derive(Clone, Debug)]
pub struct Standing {
    after: Duration,
    soaked: Soaked,
    at_rest: Vec<(&'static str, AtRest)>,
}

impl Standing {
    /// The columns of a table of these, separated by commas.
    pub fn columns(&self) -> String {
        let of =
            |what: &str| self.at_rest.iter().map(|(name, _)| format!("{name}_{what},")).collect::<String>();
        format!("second,{}{}programs,kills,evictions", of("descriptors"), of("mib"))
    }

    /// A row of that table.
    pub fn row(&self) -> String {
        let of = |what: fn(&AtRest) -> f64| {
            self.at_rest.iter().map(|(_, rest)| format!("{:.2},", what(rest))).collect::<String>()
        };
        let Soaked { programs, kills, evictions, .. } = self.soaked;
        format!(
            "{},{}{}{programs},{kills},{evictions}",
            self.after.as_secs(),
            of(|rest| rest.descriptors as f64),
            of(|rest| rest.kib as f64 / 1024.0),
        )
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Soaked { rounds, programs, kills, evictions } = self.soaked;
        let after = self.after.as_secs();
        write!(f, "{after:5} s  round {rounds}  programs {programs}  kills {kills}  evictions {evictions}")?;
        self.at_rest.iter().try_for_each(|(name, rest)| write!(f, "  {name}: {rest}"))
    }
}

/// Soaks, and says after each round how it stands.
///
/// # Errors
/// What went wrong, in a sentence.
pub fn soak(plan: &Plan, say: impl Fn(&Standing)) -> Result<Soaked, String> {
    let alone: Vec<String> =
        PROGRAMS.iter().map(|program| shell(Command::new("sh"), program)).collect::<Result<_, _>>()?;
    // Two whose workers may be killed, and one whose store often fails for a while.
    let tiers = format!(
        "tier?age=1s:ram:lz4?capacity=4M>zram?mem_limit=4M>file:{}?size=1G&reserve=0",
        plan.directory.display()
    );
    let daemons = [
        Daemon::start(plan, "mortal", "ram:lz4")?,
        Daemon::start(plan, "tiered", &tiers)?,
        Daemon::start(plan, "failing", "chaos?put_errors=0.05&latency=200us+ram:lz4")?,
    ];
    let counts = Counts::default();
    let begun = Instant::now();
    let (mut rounds, mut first) = (0, None);
    while rounds == 0 || begun.elapsed() < plan.time {
        round(plan, &daemons, &alone, &counts, plan.seed.wrapping_add(rounds))?;
        rounds += 1;
        let now: Vec<_> = daemons
            .iter()
            .enumerate()
            .map(|(at, daemon)| {
                let most = first.as_ref().map(|first: &Vec<(_, AtRest)>| first[at].1.most());
                Ok((daemon.name, daemon.at_rest(most)?))
            })
            .collect::<Result<_, String>>()?;
        say(&Standing { after: begun.elapsed(), soaked: counts.after(rounds), at_rest: now.clone() });
        for ((name, first), (_, now)) in first.get_or_insert_with(|| now.clone()).iter().zip(&now) {
            if !now.is_within(first.most()) {
                return Err(format!("{name} has more and more: {first}, now {now}"));
            }
        }
    }
    Ok(counts.after(rounds))
}

#[derive(Debug, Default)]
struct Counts {
    programs: AtomicU64,
    kills: AtomicU64,
    evictions: AtomicU64,
}

impl Counts {
    fn after(&self, rounds: u64) -> Soaked {
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Soaked {
            rounds,
            programs: number(&self.programs),
            kills: number(&self.kills),
            evictions: number(&self.evictions),
        }
    }
}

/// All programs under all daemons, two of each daemon at a time.
fn round(
    plan: &Plan,
    daemons: &[Daemon],
    alone: &[String],
    counts: &Counts,
    seed: u64,
) -> Result<(), String> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lanes: Vec<_> = daemons
            .iter()
            .flat_map(|daemon| [(daemon, 0), (daemon, 1)])
            .map(|(daemon, lane)| {
                scope.spawn(move || {
                    for (program, due) in PROGRAMS.iter().zip(alone).skip(lane).step_by(2) {
                        let mut command = Command::new(&plan.userswap);
                        command.args(["run", "-q", "--daemon"]).arg(daemon.path("s")).args(["--", "sh"]);
                        let said = shell(command, program)?;
                        if said != *due {
                            return Err(format!("{program}: {said:?} instead of {due:?}"));
                        }
                        counts.programs.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for daemon in daemons {
            let over = &over;
            // A failing store can't outlive its process.
            let may_kill = daemon.name != "failing";
            scope.spawn(move || mistreat(daemon, may_kill, counts, seed, over));
        }
        let ended: Vec<_> = lanes.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().try_for_each(|lane| lane.map_err(|_| "a lane panicked".to_owned())?)
    })
}

/// Moves out, changes the limit, kills the worker, in no order.
fn mistreat(daemon: &Daemon, may_kill: bool, counts: &Counts, seed: u64, over: &AtomicBool) {
    let mut state = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20 + below(200)));
        // Between two workers nobody answers.
        let Ok(mut operator) = Operator::connect(&daemon.path("c")) else { continue };
        match below(8) {
            0 => {
                let bytes = (8 << 20) << below(4);
                let _ = operator.ask::<Limited>(Request::Limit { bytes });
            }
            1 if may_kill => {
                if let Ok(status) = operator.ask::<Status>(Request::Status)
                    && status.worker_pid != daemon.keeper.id()
                    && signal(status.worker_pid, "KILL")
                {
                    counts.kills.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => {
                let Ok(status) = operator.ask::<Status>(Request::Status) else { continue };
                let pids: Vec<u32> =
                    status.clients.iter().map(|client| client.pid).filter(|pid| *pid != 0).collect();
                if let Some(&pid) =
                    usize::try_from(below(pids.len().max(1) as u64)).ok().and_then(|at| pids.get(at))
                    && operator.ask::<Evicted>(Request::Evict { pid, bytes: None }).is_ok()
                {
                    counts.evictions.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Descriptors more than after the first round that are none too many: less than a client has.
const SLACK: usize = 4;

/// How long a daemon may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    keeper: Child,
    directory: PathBuf,
    name: &'static str,
}

impl Daemon {
    fn start(plan: &Plan, name: &'static str, store: &str) -> Result<Self, String> {
        let at = |what: &str| plan.directory.join(format!("{name}.{what}"));
        let failed = |error: std::io::Error| format!("starting a daemon: {error}");
        let log = std::fs::File::create(at("log")).map_err(failed)?;
        let mut command = Command::new(&plan.userswap);
        command.arg("daemon").arg("--listen").arg(at("s")).arg("--control").arg(at("c"));
        command.args(["--store", store, "--limit", "32M"]).stdin(Stdio::null()).stderr(log);
        let keeper = command.spawn().map_err(failed)?;
        let daemon = Self { keeper, directory: plan.directory.clone(), name };
        daemon.at_rest(None).map(|_| daemon)
    }

    fn path(&self, what: &str) -> PathBuf {
        self.directory.join(format!("{}.{what}", self.name))
    }

    /// What it has once nobody is served any more. Where that is more than `most` it gets time to come down: it lets go of clients, and of those
    /// who gave orders, after they are gone, and a file that is written to may be slow.
    fn at_rest(&self, most: Option<AtRest>) -> Result<AtRest, String> {
        let begun = Instant::now();
        loop {
            let asked = Operator::connect(&self.path("c"))
                .and_then(|mut operator| operator.ask::<Status>(Request::Status));
            if let Ok(status) = &asked
                && status.clients.is_empty()
                && let Some(rest) = AtRest::of(self.keeper.id(), status.worker_pid)
                && (most.is_none_or(|most| rest.is_within(most)) || begun.elapsed() > PATIENCE)
            {
                return Ok(rest);
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} doesn't come to rest: {asked:?}", self.name));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        signal(self.keeper.id(), "TERM");
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end && matches!(self.keeper.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// What keeper and worker have: descriptors (the same ones, if they are two), resident memory together.
#[derive(Clone, Copy, Debug)]
struct AtRest {
    descriptors: usize,
    kib: u64,
}

impl AtRest {
    /// What is none too much later: an allocator keeps some of what it once had.
    fn most(self) -> Self {
        Self { descriptors: self.descriptors + SLACK, kib: self.kib * 2 + (32 << 10) }
    }

    fn is_within(self, most: Self) -> bool {
        self.descriptors <= most.descriptors && self.kib <= most.kib
    }

    fn of(keeper: u32, worker: u32) -> Option<Self> {
        let kib = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{worker}/fd")).ok()?.count();
        let other = if keeper == worker { 0 } else { kib(keeper)? };
        Some(Self { descriptors, kib: kib(worker)? + other })
    }
}

impl std::fmt::Display for AtRest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} descriptors, {} KiB", self.descriptors, self.kib)
    }
}

fn shell(mut command: Command, program: &str) -> Result<String, String> {
    let output = command.args(["-c", program]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {errors}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn signal(pid: u32, name: &str) -> bool {
    let status =
        Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Makes a directory for a soak, runs it there, and takes the directory away if all went well.
///
/// # Errors
/// As [`soak`]; the directory is in the sentence then.
pub fn soak_in(root: &Path, plan: Plan, say: impl Fn(&Standing)) -> Result<Soaked, String> {
    let directory = root.join(format!("userswap-soak-{}", std::process::id()));
    std::fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let plan = Plan { directory: directory.clone(), ..plan };
    let soaked = soak(&plan, say).map_err(|error| format!("{error} (logs in {})", directory.display()))?;
    let _ = std::fs::remove_dir_all(&directory);
    Ok(soaked)
}
