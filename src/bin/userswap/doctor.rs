//! `userswap doctor`

use crate::args::Doctor;
use crate::failure::{Failure, Status};
use serde_json::{Value, json};
use std::process::ExitCode;
use userswap_uffd::probe::{Answer, Capability, Probe};

/// Says what works here, and what would mend the rest.
pub(crate) fn doctor(args: &Doctor) -> Result<ExitCode, Failure> {
    let probe = userswap_uffd::probe();
    let verdicts = [Verdict::run(&probe), Verdict::embedded(&probe)];
    if args.json {
        println!("{}", as_json(&probe, &verdicts));
    } else {
        print!("{probe}");
        println!();
        for verdict in &verdicts {
            println!("{}", verdict.sentence());
        }
    }
    let fit = verdicts.iter().any(|verdict| verdict.missing.is_empty());
    Ok(ExitCode::from(if fit { 0 } else { Status::Unfit as u8 }))
}

/// Whether one way of using it works.
struct Verdict {
    way: &'static str,
    missing: Vec<Capability>,
    weaker: Vec<Capability>,
}

impl Verdict {
    /// `run` and `daemon`.
    fn run(probe: &Probe) -> Self {
        let needed = [
            Capability::Events,
            Capability::ForkEvents,
            Capability::Move,
            Capability::Pidfd,
            Capability::ReadMemory,
        ];
        let opened = [Capability::Device, Capability::Syscall];
        Self::of(probe, "userswap run and daemon", &needed, &opened)
    }

    /// Regions that a program pages itself.
    fn embedded(probe: &Probe) -> Self {
        let opened = [Capability::Device, Capability::Syscall, Capability::UserModeOnly];
        Self::of(probe, "regions of the own program (library)", &[], &opened)
    }

    /// All of `needed`, and one of `any`.
    fn of(probe: &Probe, way: &'static str, needed: &[Capability], any: &[Capability]) -> Self {
        let lacks = |capability: &Capability| !probe.has(*capability);
        let mut missing: Vec<Capability> = needed.iter().copied().filter(lacks).collect();
        if any.iter().all(lacks) {
            missing.extend(any);
        }
        let better = [Capability::SoundMove, Capability::Poison];
        Self { way, missing, weaker: better.into_iter().filter(lacks).collect() }
    }

    fn sentence(&self) -> String {
        let names = |list: &[Capability]| list.iter().map(|c| c.name()).collect::<Vec<_>>().join(", ");
        match (self.missing.is_empty(), self.weaker.is_empty()) {
            (true, true) => format!("{}: works here", self.way),
            (true, false) => format!("{}: works here, without {}", self.way, names(&self.weaker)),
            (false, _) => format!("{}: doesn't work here, for want of {}", self.way, names(&self.missing)),
        }
    }
}

fn as_json(probe: &Probe, verdicts: &[Verdict]) -> Value {
    let capabilities: Vec<Value> = probe
        .answers()
        .map(|(capability, answer)| match answer {
            Answer::Yes => json!({"name": capability.name(), "there": true}),
            Answer::No { why, remedy } => {
                json!({"name": capability.name(), "there": false, "why": why, "remedy": remedy})
            }
        })
        .collect();
    let ways: Vec<Value> = verdicts
        .iter()
        .map(|verdict| {
            let missing: Vec<&str> = verdict.missing.iter().map(|c| c.name()).collect();
            json!({"way": verdict.way, "works": verdict.missing.is_empty(), "missing": missing})
        })
        .collect();
    json!({"kernel": probe.kernel, "capabilities": capabilities, "ways": ways})
}
