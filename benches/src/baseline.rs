//! An earlier report to compare with: by ratios to zram, for absolute times depend on what else the machine did.

use crate::error::Error;
use crate::report::{Record, Report};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The earlier report, as far as it is compared.
#[derive(Debug, Deserialize)]
pub(crate) struct Baseline {
    records: Vec<Earlier>,
}

#[derive(Debug, Deserialize)]
struct Earlier {
    memory: String,
    store: String,
    pattern: String,
    threads: usize,
    pinned: bool,
    /// Reports of before there were any have none.
    #[serde(default)]
    writes: u8,
    #[serde(flatten)]
    figures: BTreeMap<String, serde_json::Value>,
    ranges: BTreeMap<String, [f64; 2]>,
}

/// One ratio, then and now.
#[derive(Debug, PartialEq)]
pub(crate) struct Change {
    /// What was measured.
    pub(crate) case: String,
    /// The ratio's name.
    pub(crate) name: &'static str,
    pub(crate) before: f64,
    pub(crate) now: f64,
    pub(crate) verdict: Verdict,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better,
    Same,
    Worse,
}

/// Less than this is no change, whatever the rounds' spread.
const NOISE: f64 = 0.05;

impl Baseline {
    /// Reads a report.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::Input(format!("{}: no report of this benchmark: {error}", path.display()))
        })
    }

    /// Every ratio that both reports have.
    pub(crate) fn changes(&self, report: &Report) -> Vec<Change> {
        report.records.iter().flat_map(|record| self.changes_of(record)).collect()
    }

    fn changes_of(&self, record: &Record) -> Vec<Change> {
        let Some(earlier) = self.records.iter().find(|earlier| earlier.is_same_case(record)) else {
            return Vec::new();
        };
        [record.pattern.ratio(), "ratio_move_out", "ratio_memory"]
            .into_iter()
            .filter_map(|name| {
                let before = earlier.figures.get(name)?.as_f64()?;
                let (now, was) = (record.figure(name)?, earlier.ranges.get(name)?);
                let is = record.range(name)?;
                Some(Change {
                    case: case(record),
                    name,
                    before,
                    now,
                    verdict: verdict(before, *was, now, is),
                })
            })
            .collect()
    }
}

impl Earlier {
    fn is_same_case(&self, record: &Record) -> bool {
        let is_same_memory = (self.memory.as_str(), &self.store) == (record.memory, &record.store);
        let case = (self.pattern.as_str(), self.threads, self.pinned, self.writes);
        is_same_memory && case == (record.pattern.name(), record.threads, record.pinned, record.writes)
    }
}

fn case(record: &Record) -> String {
    let pinned = if record.pinned { ", pinned" } else { "" };
    let writes = if record.writes > 0 { format!(", {}% writes", record.writes) } else { String::new() };
    format!(
        "{} {} {}, {} threads{pinned}{writes}",
        record.memory,
        record.store,
        record.pattern.name(),
        record.threads
    )
}

/// Something changed if each median lies outside of what the other's rounds came to.
fn verdict(before: f64, was: [f64; 2], now: f64, is: [f64; 2]) -> Verdict {
    if now > before * (1.0 + NOISE) && now > was[1] && before < is[0] {
        Verdict::Worse
    } else if now < before * (1.0 - NOISE) && now < was[0] && before > is[1] {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

/// As lines, those that changed first.
pub(crate) fn render(changes: &[Change]) -> String {
    let mut lines = Vec::new();
    for (verdict, word) in
        [(Verdict::Worse, "worse"), (Verdict::Better, "better"), (Verdict::Same, "the same")]
    {
        for change in changes.iter().filter(|change| change.verdict == verdict) {
            let Change { case, name, before, now, .. } = change;
            lines.push(format!("{word}: {case}: {name} {before:.2} before, {now:.2} now\n"));
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_outside_of_both_spreads_changed() {
        let of = |before, was, now, is| verdict(before, was, now, is);
        assert_eq!(of(1.0, [0.9, 1.1], 1.5, [1.4, 1.6]), Verdict::Worse);
        assert_eq!(of(1.0, [0.9, 1.6], 1.5, [1.4, 1.6]), Verdict::Same);
        assert_eq!(of(1.0, [0.9, 1.1], 1.5, [0.9, 1.6]), Verdict::Same);
        assert_eq!(of(1.0, [1.0, 1.0], 1.04, [1.04, 1.04]), Verdict::Same);
        assert_eq!(of(1.0, [0.9, 1.1], 0.5, [0.4, 0.6]), Verdict::Better);
    }

    #[test]
    fn what_is_no_report_is_said_to_be_none() {
        let path = std::env::temp_dir().join(format!("userswap-bench-baseline-{}", std::process::id()));
        std::fs::write(&path, "{}").unwrap();
        let error = Baseline::read(&path).unwrap_err().chain();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("no report of this benchmark"), "{error}");
    }
}
