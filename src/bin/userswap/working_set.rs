//! `userswap ctl working-set`

use crate::args::{Ctl, WorkingSetOrder};
use crate::bytes::Bytes;
use crate::failure::{Failure, Status};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use userswap::daemon::control::{Brought, InMemory, MOST_RUNS, Operator, Request};
use userswap_policy::working_set::WorkingSet;

/// A larger file is none.
const LARGEST: u64 = 64 << 20;

/// What `save` came to.
#[derive(Serialize)]
struct Saved {
    /// Bytes of the pages.
    saved_bytes: u64,
}

/// Carries it out, and says what came of it.
pub(crate) fn order(args: &Ctl, path: &Path, order: &WorkingSetOrder) -> Result<ExitCode, Failure> {
    match order {
        WorkingSetOrder::Save { pid, file } => {
            let InMemory { page_bytes, runs } =
                Operator::connect(path)?.ask(Request::WorkingSet { pid: *pid })?;
            let set = WorkingSet::new(page_bytes, runs);
            std::fs::write(file, set.to_text())
                .map_err(|error| Failure::of(&format!("writing {}", file.display()), &error))?;
            let saved = Saved { saved_bytes: set.pages() * page_bytes };
            say(
                args,
                &saved,
                &format!("{} are in memory, in {} runs", Bytes(saved.saved_bytes), set.runs().len()),
            )
        }
        WorkingSetOrder::Load { pid, file } => {
            let set = read(file)?;
            if set.page_bytes() != userswap_uffd::page_bytes() {
                let message = format!(
                    "{}: its pages have {} bytes, those here others",
                    file.display(),
                    set.page_bytes()
                );
                return Err(Failure::new(Status::Usage, message));
            }
            let mut operator = Operator::connect(path)?;
            let mut sum = Brought::default();
            // One request at least: whether there is such a client is to be said in any case.
            let none: &[_] = &[];
            let requests = set.runs().chunks(MOST_RUNS).chain(set.runs().is_empty().then_some(none));
            for runs in requests {
                let brought: Brought = operator.ask(Request::Bring { pid: *pid, runs: runs.to_vec() })?;
                sum.brought_bytes += brought.brought_bytes;
            }
            say(args, &sum, &format!("{} brought in", Bytes(sum.brought_bytes)))
        }
    }
}

fn read(file: &Path) -> Result<WorkingSet, Failure> {
    let reading = |error| Failure::of(&format!("reading {}", file.display()), &error);
    let mut text = String::new();
    let read =
        File::open(file).map_err(reading)?.take(LARGEST + 1).read_to_string(&mut text).map_err(reading)?;
    if read as u64 > LARGEST {
        return Err(Failure::new(
            Status::Usage,
            format!("{} is too large to be a working set", file.display()),
        ));
    }
    WorkingSet::from_text(&text)
        .map_err(|error| Failure::new(Status::Usage, format!("{}: {error}", file.display())))
}

fn say(args: &Ctl, answer: &impl Serialize, words: &str) -> Result<ExitCode, Failure> {
    if args.json {
        let json = serde_json::to_string(answer).map_err(|error| Failure::of("writing JSON", &error))?;
        println!("{json}");
    } else {
        println!("{words}");
    }
    Ok(ExitCode::SUCCESS)
}
