//! Runs the engine on a simulated machine: `sim --seeds 0..100000`, or one seed with all its steps: `sim --seed 7 --trace`.

use std::ops::Range;
use std::process::ExitCode;
use userswap_tests::sim::{Defect, Options, failing_seeds, run_seed, run_seeds};

const USAGE: &str =
    "usage: sim [--seed N | --seeds A..B] [--events N] [--jobs N] [--no-gate] [--no-sentinel] [--defect NAME] [--trace]

  --seed N        run one seed
  --seeds A..B    run the seeds from A up to, not including, B (0..10000)
  --events N      kernel events before a seed's programs come to an end (500)
  --jobs N        threads (one for each CPU)
  --no-gate       read and apply messages at different times: shows what the gate is for
  --no-sentinel   keep no page registered for life: shows what that is for
  --defect NAME   have the engine make a mistake: shows whether it is found; `all` counts in how many of --seeds each is
  --trace         print every step of --seed";

struct Arguments {
    seeds: Range<u64>,
    options: Options,
    jobs: usize,
    all_defects: bool,
    trace: bool,
}

fn arguments() -> Option<Arguments> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed =
        Arguments { seeds: 0..10_000, options: Options::default(), jobs, all_defects: false, trace: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seed" => {
                let seed: u64 = words.next()?.parse().ok()?;
                parsed.seeds = seed..seed.checked_add(1)?;
            }
            "--seeds" => {
                let value = words.next()?;
                let (from, to) = value.split_once("..")?;
                parsed.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--events" => parsed.options.events = words.next()?.parse().ok()?,
            "--jobs" => parsed.jobs = words.next()?.parse().ok()?,
            "--no-gate" => parsed.options.gate = false,
            "--no-sentinel" => parsed.options.sentinel = false,
            "--defect" => match words.next()?.as_str() {
                "all" => parsed.all_defects = true,
                name => parsed.options.defect = Some(Defect::named(name)?),
            },
            "--trace" => parsed.trace = true,
            _ => return None,
        }
    }
    Some(parsed)
}

fn main() -> ExitCode {
    let Some(Arguments { seeds, options, jobs, all_defects, trace }) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if all_defects {
        return count_defects(&seeds, jobs, options);
    }
    if trace {
        let mut failed = false;
        for seed in seeds {
            let outcome = run_seed(seed, Options { trace: usize::MAX, ..options });
            outcome.trace.iter().for_each(|line| println!("{line}"));
            failed |= outcome.wrong.is_some();
            println!("seed {seed}: {}", outcome.wrong.as_deref().unwrap_or("nothing is wrong"));
        }
        return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let report = run_seeds(seeds, jobs, options);
    print!("{report}");
    if report.wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        eprint!("{}", report.failures(options));
        ExitCode::FAILURE
    }
}

/// Says of each defect which seed finds it first, and how many of all do.
fn count_defects(seeds: &Range<u64>, jobs: usize, options: Options) -> ExitCode {
    let mut all_found = true;
    println!("{:<26} {:>10} {:>16}", "defect", "first seed", "seeds that find it");
    for defect in Defect::ALL {
        let found = failing_seeds(seeds.clone(), jobs, Options { defect: Some(defect), ..options });
        let first = found.first().map_or_else(|| "none".to_owned(), u64::to_string);
        println!("{:<26} {first:>10} {:>11} of {}", defect.name(), found.len(), seeds.end - seeds.start);
        all_found &= !found.is_empty();
    }
    if all_found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
