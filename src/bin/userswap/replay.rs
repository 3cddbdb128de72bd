//! `userswap replay`

use crate::args::{Replay, ReplayPolicy, Share};
use crate::failure::{Failure, Status};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use userswap_policy::replay::{Policy, Score, replay as go_through};
use userswap_policy::trace::Trace;

/// What came of one trace.
#[derive(Debug, Serialize)]
struct Outcome {
    trace: String,
    command: String,
    page_bytes: u64,
    /// Different pages, and those that may be in memory.
    footprint_pages: usize,
    limit_pages: usize,
    windows: usize,
    /// The most pages of one window; with less room than that nothing can be told.
    widest_window_pages: usize,
    touches: u64,
    first_touches: u64,
    misses: Vec<Misses>,
}

#[derive(Debug, Serialize)]
struct Misses {
    policy: &'static str,
    pages: u64,
}

/// Goes through traces and prints what came of it.
pub(crate) fn replay(args: &Replay) -> Result<ExitCode, Failure> {
    for path in &args.traces {
        let outcome = score(path, args)?;
        if args.json {
            let json =
                serde_json::to_string(&outcome).map_err(|error| Failure::of("writing JSON", &error))?;
            println!("{json}");
        } else {
            print(&outcome);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn score(path: &Path, args: &Replay) -> Result<Outcome, Failure> {
    let reading = || format!("reading {}", path.display());
    let bytes = std::fs::read(path).map_err(|error| Failure::of(&reading(), &error))?;
    let trace = Trace::from_bytes(&bytes)
        .map_err(|error| Failure::new(Status::Usage, format!("{}: {error}", path.display())))?;
    let footprint = trace.footprint();
    let limit = match args.limit {
        Share::Size(bytes) => usize::try_from(bytes.0 / trace.page_bytes.max(1)).unwrap_or(usize::MAX),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Share::Percent(percent) => (footprint as f64 * percent / 100.0) as usize,
    };
    let policies = args.policy.map_or(Policy::ALL.to_vec(), |policy| vec![policy.into()]);
    let scores: Vec<(Policy, Score)> =
        policies.into_iter().map(|policy| (policy, go_through(&trace, policy, limit))).collect();
    let any = scores.first().map(|(_, score)| *score).unwrap_or_default();
    Ok(Outcome {
        trace: path.display().to_string(),
        command: trace.command.clone(),
        page_bytes: trace.page_bytes,
        footprint_pages: footprint,
        limit_pages: limit,
        windows: trace.windows(),
        widest_window_pages: trace.widest(),
        touches: any.touches,
        first_touches: any.first,
        misses: scores
            .iter()
            .map(|(policy, score)| Misses { policy: policy.name(), pages: score.misses })
            .collect(),
    })
}

fn print(outcome: &Outcome) {
    println!(
        "{}: {} touches of {} pages in {} windows, room for {} pages",
        outcome.trace, outcome.touches, outcome.footprint_pages, outcome.windows, outcome.limit_pages
    );
    if outcome.limit_pages < outcome.widest_window_pages {
        println!(
            "  the widest window has {} pages: with less room, little can be told",
            outcome.widest_window_pages
        );
    }
    let again = outcome.touches.saturating_sub(outcome.first_touches).max(1);
    for Misses { policy, pages } in &outcome.misses {
        let share = *pages as f64 * 100.0 / again as f64;
        println!(
            "  {policy:<8} {pages:>9} misses, {share:>5.1}% of the touches of pages that had been there"
        );
    }
}

impl From<ReplayPolicy> for Policy {
    fn from(policy: ReplayPolicy) -> Self {
        match policy {
            ReplayPolicy::Default => Self::Default,
            ReplayPolicy::Belady => Self::Belady,
            ReplayPolicy::Lru => Self::Lru,
            ReplayPolicy::Clock => Self::Clock,
            ReplayPolicy::S3Fifo => Self::S3Fifo,
            ReplayPolicy::Sieve => Self::Sieve,
        }
    }
}
