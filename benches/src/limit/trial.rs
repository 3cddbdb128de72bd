//! One run of the program.

use super::group::Group;
use super::sampler::{Sample, Sampler};
use crate::error::Error;
use serde::Serialize;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What holds the program to a limit.
pub(crate) enum Under<'a> {
    Nothing,
    Group(&'a Group),
    Userswap { program: &'a str, limit: u64 },
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trial {
    /// From start to end.
    pub(crate) seconds: f64,
    /// The most that was in memory in a sample.
    pub(crate) peak_bytes: u64,
    /// The mean after the settling time.
    pub(crate) mean_bytes: f64,
    pub(crate) samples: Vec<Sample>,
    /// What it printed.
    #[serde(skip)]
    pub(crate) answer: Vec<u8>,
}

/// A limit is to be kept after so many seconds.
const SETTLED: f64 = 5.0;

impl Trial {
    /// Runs `words`.
    pub(crate) fn run(under: &Under<'_>, words: &[String]) -> Result<Self, Error> {
        let mut command = match under {
            Under::Nothing => Command::new(&words[0]),
            Under::Group(group) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(group.door()).arg(&words[0]);
                command
            }
            Under::Userswap { program, limit } => {
                let mut command = Command::new(program);
                command.args(["run", "-q", "--limit", &limit.to_string(), "--"]).arg(&words[0]);
                command
            }
        };
        command.args(&words[1..]).env("PYTHONHASHSEED", "0").stdin(Stdio::null()).stdout(Stdio::piped());
        let started = Instant::now();
        let child = command.spawn().map_err(Error::io("starting the program"))?;
        let sampler = Sampler::start(child.id(), !matches!(under, Under::Userswap { .. }));
        let output = child.wait_with_output();
        let seconds = started.elapsed().as_secs_f64();
        let samples = sampler.stop();
        let output = output.map_err(Error::io("waiting for the program"))?;
        if output.status.signal() == Some(9) && matches!(under, Under::Group(_)) {
            return Err(Error::Killed);
        }
        if !output.status.success() {
            return Err(Error::Program { program: words[0].clone(), message: output.status.to_string() });
        }
        let settled: Vec<u64> = settled(&samples).map(|sample| sample.bytes).collect();
        Ok(Self {
            seconds,
            peak_bytes: samples.iter().map(|sample| sample.bytes).max().unwrap_or(0),
            mean_bytes: settled.iter().sum::<u64>() as f64 / settled.len().max(1) as f64,
            samples,
            answer: output.stdout,
        })
    }

    /// The share of samples at or under a limit, of those after the settling time; `None` of a run too short to have any.
    pub(crate) fn within(&self, limit: u64) -> Option<f64> {
        let count = settled(&self.samples).count();
        let within = settled(&self.samples).filter(|sample| sample.bytes <= limit).count();
        (count > 0).then(|| within as f64 / count as f64)
    }
}

fn settled(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(|sample| sample.seconds >= SETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_samples_after_the_settling_time_count() {
        let samples = [(0.1, 900), (5.0, 60), (5.1, 64), (5.2, 65), (5.3, 64)];
        let samples = samples.map(|(seconds, bytes)| Sample { seconds, bytes }).to_vec();
        let trial = Trial { seconds: 5.3, peak_bytes: 900, mean_bytes: 0.0, samples, answer: Vec::new() };
        assert_eq!(trial.within(64), Some(0.75));
        let short = Trial { samples: Vec::new(), ..trial };
        assert_eq!(short.within(64), None);
    }

    #[test]
    fn a_program_is_run_and_its_answer_kept() {
        let words = ["/bin/sh", "-c", "echo this; exit $0", "0"].map(str::to_owned);
        assert_eq!(Trial::run(&Under::Nothing, &words).unwrap().answer, b"this\n");
        let words = ["/bin/sh", "-c", "exit 3"].map(str::to_owned);
        assert!(matches!(Trial::run(&Under::Nothing, &words), Err(Error::Program { .. })));
    }
}
