//! Many seeds, on all the processors there are, and what they showed.

use super::{Options, run_seed};
use parking_lot::Mutex;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use userswap_engine::core::{Counts, Transition};

/// What a number of seeds showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// Kernel events in all.
    pub events: u64,
    /// The fewest kernel events of a seed.
    pub fewest_events: u64,
    /// Processes in all.
    pub processes: u64,
    /// Deaths of who served them.
    pub deaths: u64,
    /// Accesses that ended in SIGBUS.
    pub sigbus: u64,
    /// How often each transition was taken.
    pub counts: Counts,
    /// Seeds that went wrong, and how; no more are begun after the first.
    pub wrong: Vec<(u64, String)>,
}

/// Steps shown of a seed that went wrong.
const SHOWN: usize = 60;

impl Report {
    /// The transitions that never happened.
    pub fn never(&self) -> Vec<Transition> {
        self.counts.iter().filter(|(_, count)| *count == 0).map(|(transition, _)| transition).collect()
    }

    /// The failing seeds, each with its last steps and how to run it again.
    pub fn failures(&self, options: Options) -> String {
        let mut text = String::new();
        for (seed, wrong) in &self.wrong {
            let again = run_seed(*seed, Options { trace: SHOWN, ..options });
            for line in &again.trace {
                text.push_str(line);
                text.push('\n');
            }
            let gate = if options.gate { "" } else { " --no-gate" };
            let sentinel = if options.sentinel { "" } else { " --no-sentinel" };
            let defect =
                options.defect.map_or(String::new(), |defect| format!(" --defect {}", defect.name()));
            text.push_str(&format!(
                "seed {seed}: {wrong}\nagain: cargo run -p userswap-tests --bin sim -- --seed {seed} --events {}{gate}{sentinel}{defect} --trace\n",
                options.events
            ));
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds, {} processes, {} kernel events (fewest in a seed {}), {} deaths, {} SIGBUS",
            self.seeds, self.processes, self.events, self.fewest_events, self.deaths, self.sigbus
        )?;
        for (transition, count) in self.counts.iter() {
            writeln!(f, "{count:>12}  {}", transition.name())?;
        }
        Ok(())
    }
}

/// Runs every seed of a range on `jobs` threads, until one goes wrong.
pub fn run_seeds(seeds: Range<u64>, jobs: usize, options: Options) -> Report {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let report = Mutex::new(Report { fewest_events: u64::MAX, ..Report::default() });
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = run_seed(seed, options);
                    let mut report = report.lock();
                    report.seeds += 1;
                    report.events += outcome.events;
                    report.fewest_events = report.fewest_events.min(outcome.events);
                    report.processes += outcome.processes as u64;
                    report.deaths += u64::from(outcome.deaths);
                    report.sigbus += outcome.sigbus;
                    report.counts.add(&outcome.counts);
                    if let Some(wrong) = outcome.wrong {
                        stop.store(true, Ordering::Relaxed);
                        report.wrong.push((seed, wrong));
                    }
                }
            });
        }
    });
    let mut report = report.into_inner();
    report.wrong.sort_unstable();
    report
}

/// Runs every seed of a range on `jobs` threads. Those that go wrong, in order.
pub fn failing_seeds(seeds: Range<u64>, jobs: usize, options: Options) -> Vec<u64> {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if run_seed(seed, options).wrong.is_some() {
                        found.lock().push(seed);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_unstable();
    found
}
