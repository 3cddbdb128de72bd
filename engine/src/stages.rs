//! Where the time of a fault goes, stage by stage. Only looked at where it is asked for: each stage costs a look at the clock.

use crate::histogram::Histogram;
use std::time::Instant;

/// A stage of serving a fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Its message was read and lies in a handler's hands, behind others or in another handler's box.
    Queued,
    /// The page is looked up and what to do is decided.
    Lookup,
    /// Its bytes, and those of the neighbours that come along, are fetched and decoded.
    Load,
    /// They are put in place and that is recorded.
    Install,
    /// The thread is woken, and what the pages had in the store is given up.
    Wake,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Lookup, Self::Load, Self::Install, Self::Wake];

    /// As it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Lookup => "lookup",
            Self::Load => "load",
            Self::Install => "install",
            Self::Wake => "wake",
        }
    }
}

/// How long each stage took, over many faults. A fault that goes through a stage twice counts twice.
#[derive(Clone, Debug, Default)]
pub struct Stages([Histogram; Stage::ALL.len()]);

impl Stages {
    /// The times of one stage.
    pub fn of(&self, stage: Stage) -> &Histogram {
        &self.0[stage as usize]
    }

    /// Adds what `other` counted.
    pub fn add(&self, other: &Self) {
        for (own, others) in self.0.iter().zip(&other.0) {
            own.add(others);
        }
    }
}

/// Measures one fault on its way; nothing, where nobody wants to know.
pub(crate) struct Stopwatch<'a> {
    running: Option<(&'a Stages, Instant)>,
}

impl<'a> Stopwatch<'a> {
    /// Runs from now on; the fault was `read_at` some time.
    pub(crate) fn start(stages: Option<&'a Stages>, read_at: Option<Instant>) -> Self {
        let running = stages.map(|stages| {
            let now = Instant::now();
            if let Some(read_at) = read_at {
                stages.of(Stage::Queued).record(now - read_at);
            }
            (stages, now)
        });
        Self { running }
    }

    /// What has passed since the last lap, or the start, was this stage.
    pub(crate) fn lap(&mut self, stage: Stage) {
        if let Some((stages, since)) = &mut self.running {
            let now = Instant::now();
            stages.of(stage).record(now - *since);
            *since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_are_counted_under_their_stage() {
        let stages = Stages::default();
        let mut watch = Stopwatch::start(Some(&stages), Some(Instant::now()));
        watch.lap(Stage::Lookup);
        watch.lap(Stage::Load);
        watch.lap(Stage::Load);
        let counts = Stage::ALL.map(|stage| stages.of(stage).count());
        assert_eq!(counts, [1, 1, 2, 0, 0]);
        let sums = Stages::default();
        sums.add(&stages);
        sums.add(&stages);
        assert_eq!(sums.of(Stage::Load).count(), 4);
    }

    #[test]
    fn nobody_asks_and_nothing_is_counted() {
        let mut watch = Stopwatch::start(None, Some(Instant::now()));
        watch.lap(Stage::Wake);
        assert!(watch.running.is_none());
    }
}
