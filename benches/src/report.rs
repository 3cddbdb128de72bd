//! The report: one record a memory, store and case, from the samples of all rounds.

use crate::args::{Memory, Plan};
use crate::error::Error;
use crate::image::Image;
use crate::machine::Machine;
use crate::pattern::Pattern;
use crate::rounds::{Case, Entrant, Sample};
use crate::stats::Spread;
use crate::subject::StageTimes;
use crate::zram::Settings;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that was found out. `schema_version` changes when a field changes its meaning or goes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema_version: u32,
    pub(crate) machine: Machine,
    /// The kernel's swap it is compared with.
    pub(crate) zram: Option<Settings>,
    pub(crate) image: ImageFacts,
    pub(crate) rounds: usize,
    pub(crate) records: Vec<Record>,
    /// How long the stages of faults took, of those who measured it.
    pub(crate) stages: Vec<StageRecord>,
    /// What could not be measured, and why.
    pub(crate) left_out: Vec<String>,
}

/// The image that was used.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ImageFacts {
    pub(crate) origin: String,
    pub(crate) pages: usize,
    pub(crate) same_filled_pages_left_out: usize,
    pub(crate) page_bytes: usize,
    /// How many regions of a client's it lies in.
    pub(crate) client_regions: usize,
}

/// One memory and store in one case. Figures are medians over the rounds; `ranges` has the least and the greatest of each.
/// Ratios are taken within a round. What needs somebody who wasn't measured is `None`; so are percentiles of faults where there were none.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) memory: &'static str,
    pub(crate) store: String,
    pub(crate) pattern: Pattern,
    pub(crate) threads: usize,
    pub(crate) pinned: bool,
    /// Touches that write, of a hundred.
    pub(crate) writes: u8,
    pub(crate) rounds: usize,
    pub(crate) touches: usize,
    #[serde(flatten)]
    pub(crate) figures: BTreeMap<&'static str, Option<f64>>,
    pub(crate) ranges: BTreeMap<&'static str, [f64; 2]>,
    /// Waits of touches that faulted: values below which 0, 1, 2 … hundredths lie.
    pub(crate) cdf_ns: Vec<f64>,
    /// The same of zram; empty without it.
    pub(crate) zram_cdf_ns: Vec<f64>,
    /// Touches in each fortieth of the time, in the round of the middle wall time, and how long such a part is.
    pub(crate) timeline: Timeline,
    /// The same of zram.
    pub(crate) zram_timeline: Timeline,
}

/// Touches over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Timeline {
    pub(crate) slice_ns: f64,
    pub(crate) touches: Vec<f64>,
}

/// The stages of one memory and store, over all cases and rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageRecord {
    pub(crate) memory: &'static str,
    pub(crate) store: String,
    pub(crate) stages: StageTimes,
}

const SCHEMA_VERSION: u32 = 2;

impl Report {
    pub(crate) fn new(
        plan: &Plan,
        image: &Image,
        machine: Machine,
        zram: Option<Settings>,
        samples: &[Sample],
        stages: Vec<(Entrant, StageTimes)>,
        left_out: Vec<String>,
    ) -> Self {
        let stages = stages
            .into_iter()
            .map(|(Entrant { memory, store }, stages)| StageRecord { memory: memory.name(), store, stages })
            .collect();
        Self {
            schema_version: SCHEMA_VERSION,
            machine,
            zram,
            image: ImageFacts {
                origin: image.origin().to_owned(),
                pages: image.pages(),
                same_filled_pages_left_out: image.same_filled(),
                page_bytes: userswap_uffd::page_size(),
                client_regions: plan.regions,
            },
            rounds: plan.rounds,
            records: records(samples),
            stages,
            left_out,
        }
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))
    }
}

fn records(samples: &[Sample]) -> Vec<Record> {
    let mut keys: Vec<(&Entrant, &Case)> = Vec::new();
    for sample in samples {
        if let Some(entrant) = &sample.entrant
            && !keys.contains(&(entrant, &sample.case))
        {
            keys.push((entrant, &sample.case));
        }
    }
    keys.sort_by_key(|(entrant, case)| {
        (case.pinned, entrant.memory, &entrant.store, case.pattern, case.writes, case.threads)
    });
    keys.into_iter().map(|(entrant, case)| record(samples, entrant, case)).collect()
}

fn record(samples: &[Sample], entrant: &Entrant, case: &Case) -> Record {
    let find = |round, of: Option<&Entrant>, case: &Case| {
        samples
            .iter()
            .find(|sample| sample.round == round && sample.entrant.as_ref() == of && sample.case == *case)
    };
    let own: Vec<&Sample> =
        samples.iter().filter(|s| s.entrant.as_ref() == Some(entrant) && s.case == *case).collect();
    let zrams: Vec<&Sample> = samples.iter().filter(|s| s.entrant.is_none() && s.case == *case).collect();
    // They aren't compared with each other.
    let others = OTHERS.iter().filter(|_| OTHERS.iter().all(|other| other.memory != entrant.memory));
    let of_memory = |memory: Memory, round: usize| {
        samples.iter().find(|sample| {
            sample.round == round
                && sample.case == *case
                && sample.entrant.as_ref().is_some_and(|entrant| entrant.memory == memory)
        })
    };
    let single = Case { threads: 1, ..case.clone() };
    let mut record = Record {
        memory: entrant.memory.name(),
        store: entrant.store.clone(),
        pattern: case.pattern,
        threads: case.threads,
        pinned: case.pinned,
        writes: case.writes,
        rounds: own.len(),
        touches: own.first().map_or(0, |sample| sample.pass.touches),
        figures: BTreeMap::new(),
        ranges: BTreeMap::new(),
        cdf_ns: cdf(&own),
        zram_cdf_ns: cdf(&zrams),
        timeline: timeline(&own),
        zram_timeline: timeline(&zrams),
    };
    let zram = |own: &Sample| find(own.round, None, case);
    for &(name, figure) in FIGURES {
        record.add(name, own.iter().map(|sample| figure(sample)));
        if let Some(name) = ZRAM.iter().find_map(|(of, zram)| (*of == name).then_some(*zram)) {
            record.add(name, own.iter().map(|sample| zram(sample).and_then(figure)));
        }
        if let Some(name) = RATIOS.iter().find_map(|(of, ratio)| (*of == name).then_some(*ratio)) {
            record.add(name, own.iter().map(|sample| Some(figure(sample)? / zram(sample).and_then(figure)?)));
        }
    }
    for other in others {
        let theirs = |own: &Sample| of_memory(other.memory, own.round);
        for &(figure, name, ratio) in other.figures {
            record.add(name, own.iter().map(|own| theirs(own).and_then(figure)));
            record.add(ratio, own.iter().map(|own| Some(figure(own)? / theirs(own).and_then(figure)?)));
        }
    }
    let scaling = |of: Option<&Entrant>, round| {
        let one = find(round, of, &single)?.pass.throughput();
        Some(find(round, of, case)?.pass.throughput() / one)
    };
    record.add("scaling", own.iter().map(|sample| scaling(Some(entrant), sample.round)));
    record.add("zram_scaling", own.iter().map(|sample| scaling(None, sample.round)));
    record
}

/// Each step of the distribution: its median over the rounds.
fn cdf(samples: &[&Sample]) -> Vec<f64> {
    let steps = samples.first().map_or(0, |sample| sample.pass.cdf_ns.len());
    (0..steps)
        .filter_map(|step| Spread::of(samples.iter().map(|sample| sample.pass.cdf_ns[step])))
        .map(|spread| round(spread.median))
        .collect()
}

/// Of the round that took neither long nor short.
fn timeline(samples: &[&Sample]) -> Timeline {
    let mut samples = samples.to_vec();
    samples.sort_by(|one, other| one.pass.wall_ns.total_cmp(&other.pass.wall_ns));
    samples.get(samples.len() / 2).map_or_else(Timeline::default, |sample| Timeline {
        slice_ns: round(sample.pass.wall_ns / sample.pass.timeline.len().max(1) as f64),
        touches: sample.pass.timeline.clone(),
    })
}

/// A figure of one sample.
type Figure = fn(&Sample) -> Option<f64>;

const FIGURES: &[(&str, Figure)] = &[
    ("p50_ns", p50),
    ("p99_ns", |sample| faulted(sample, sample.pass.p99_ns)),
    ("p999_ns", |sample| faulted(sample, sample.pass.p999_ns)),
    ("mean_ns", mean),
    ("block_ns", |sample| Some(sample.pass.block_ns)),
    ("throughput_pages_per_s", |sample| Some(sample.pass.throughput())),
    ("faults_per_page", |sample| Some(sample.pass.faults as f64 / sample.pass.touches.max(1) as f64)),
    ("move_out_ns_per_page", |sample| {
        (sample.moved.pages > 0).then(|| sample.moved.ns / sample.moved.pages as f64)
    }),
    ("store_memory_bytes_per_page", |sample| {
        Some(sample.moved.memory_bytes? as f64 / sample.moved.pages.max(1) as f64)
    }),
];

fn p50(sample: &Sample) -> Option<f64> {
    faulted(sample, sample.pass.p50_ns)
}

fn mean(sample: &Sample) -> Option<f64> {
    Some(sample.pass.mean_ns)
}

/// Of touches that faulted, if there were any.
fn faulted(sample: &Sample, value: f64) -> Option<f64> {
    (sample.pass.faults > 0).then_some(value)
}

/// Somebody else than zram to compare with.
struct Other {
    memory: Memory,
    /// What is compared, what the other's is called, and one's own by it.
    figures: &'static [(Figure, &'static str, &'static str)],
}

const OTHERS: &[Other] = &[
    Other {
        memory: Memory::PlainHandler,
        figures: &[
            (p50, "plain_handler_p50_ns", "ratio_plain_handler_p50"),
            (mean, "plain_handler_mean_ns", "ratio_plain_handler_mean"),
        ],
    },
    Other { memory: Memory::Plain, figures: &[(mean, "plain_mean_ns", "ratio_plain_mean")] },
];

/// The same of zram.
const ZRAM: &[(&str, &str)] = &[
    ("p50_ns", "zram_p50_ns"),
    ("p99_ns", "zram_p99_ns"),
    ("p999_ns", "zram_p999_ns"),
    ("mean_ns", "zram_mean_ns"),
    ("block_ns", "zram_block_ns"),
    ("throughput_pages_per_s", "zram_throughput_pages_per_s"),
    ("move_out_ns_per_page", "zram_move_out_ns_per_page"),
    ("store_memory_bytes_per_page", "zram_memory_bytes_per_page"),
];

/// The one by the other.
const RATIOS: &[(&str, &str)] = &[
    ("p50_ns", "ratio_p50"),
    ("p99_ns", "ratio_p99"),
    ("mean_ns", "ratio_mean"),
    ("block_ns", "ratio_block"),
    ("move_out_ns_per_page", "ratio_move_out"),
    ("store_memory_bytes_per_page", "ratio_memory"),
];

impl Record {
    /// Threads, whether they are kept in their places, and how many of their touches write: short, for a table.
    pub(crate) fn touchers(&self) -> String {
        let writes = if self.writes > 0 { format!(" {}% writes", self.writes) } else { String::new() };
        format!("{}{}{writes}", self.threads, if self.pinned { " pinned" } else { "" })
    }

    fn add(&mut self, name: &'static str, values: impl Iterator<Item = Option<f64>>) {
        let spread = Spread::of(values.flatten());
        self.figures.insert(name, spread.map(|spread| round(spread.median)));
        if let Some(spread) = spread {
            self.ranges.insert(name, [round(spread.min), round(spread.max)]);
        }
    }

    /// A figure, if it was measured.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied().flatten()
    }

    /// Its least and its greatest.
    pub(crate) fn range(&self, name: &str) -> Option<[f64; 2]> {
        self.ranges.get(name).copied()
    }
}

/// To three decimals, which is more than is known.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Pass;
    use crate::subject::MovedOut;

    fn sample(round: usize, store: Option<&str>, threads: usize, ns: u32, wall: f64) -> Sample {
        Sample {
            round,
            entrant: store.map(|store| Entrant { memory: Memory::Local, store: store.into() }),
            case: Case { pattern: Pattern::Random, threads, pinned: false, writes: 0 },
            moved: MovedOut { pages: 10, ns: 1000.0, memory_bytes: Some(5000) },
            pass: Pass::new(&[vec![ns; 100]], 100, wall),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let samples = [
            sample(1, None, 1, 100, 1e6),
            sample(1, Some("s"), 1, 300, 1e6),
            sample(2, None, 1, 1000, 1e6),
            sample(2, Some("s"), 1, 1000, 1e6),
            sample(2, Some("s"), 2, 1000, 5e5),
        ];
        let records = records(&samples);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].figure("ratio_p50"), Some(2.0));
        assert_eq!(records[0].range("ratio_p50"), Some([1.0, 3.0]));
        assert_eq!(records[0].figure("zram_p50_ns"), Some(550.0));
        assert_eq!(records[0].figure("move_out_ns_per_page"), Some(100.0));
        assert_eq!(records[0].figure("store_memory_bytes_per_page"), Some(500.0));
        assert_eq!((records[1].threads, records[1].figure("scaling")), (2, Some(2.0)));
    }

    #[test]
    fn plain_memory_and_a_plain_handler_are_compared_with_in_the_same_round() {
        let of = |memory, sample: Sample| {
            let entrant = Some(Entrant { memory, store: "-".into() });
            Sample { entrant, ..sample }
        };
        let mut still = of(Memory::Plain, sample(1, None, 1, 2, 1e6));
        still.pass.faults = 0;
        still.moved.pages = 0;
        let samples = [
            of(Memory::PlainHandler, sample(1, None, 1, 800, 1e6)),
            of(Memory::PlainHandler, sample(2, None, 1, 9999, 1e6)),
            still,
            sample(1, Some("s"), 1, 100, 1e6),
        ];
        let records = records(&samples);
        let [own, handler, plain] = records.as_slice() else { panic!("{} records", records.len()) };
        assert_eq!(own.figure("plain_handler_p50_ns"), Some(800.0));
        assert_eq!(own.figure("ratio_plain_handler_p50"), Some(0.125));
        assert_eq!(own.figure("ratio_plain_mean"), Some(50.0));
        assert_eq!(handler.figure("ratio_plain_handler_p50"), None);
        assert_eq!((plain.figure("p50_ns"), plain.figure("move_out_ns_per_page")), (None, None));
        assert_eq!(plain.figure("mean_ns"), Some(2.0));
    }

    #[test]
    fn without_zram_its_figures_are_null() {
        let records = records(&[sample(1, Some("s"), 1, 100, 1e6)]);
        assert_eq!(records[0].figure("p50_ns"), Some(100.0));
        assert_eq!(records[0].figure("ratio_p50"), None);
        let json = serde_json::to_value(&records[0]).unwrap();
        assert!(json["ratio_p50"].is_null() && json["p50_ns"].is_f64());
    }
}
