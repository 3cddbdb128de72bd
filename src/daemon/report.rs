//! What is told of a server's work: sums, and what its store held.

use super::server::Server;
use super::warden::Record;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use userswap_engine::core::{Counts, Transition};
use userswap_engine::{Histogram, Stage, Stages};
use userswap_store::Stats;
use userswap_uffd::page_size;

/// Sums over all clients, past ones included. What the store held is told of the moment at which it held most.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Pages moved out of clients' memory.
    pub pages_out: u64,
    /// Pages put back.
    pub pages_in: u64,
    /// Of these, pages that came along with one that was asked for.
    #[serde(default)]
    pub pages_along: u64,
    /// What is known of pages that came along with streams, in order or at even distances: these were used.
    #[serde(default)]
    pub along_used: u64,
    /// Their stream ended before them.
    #[serde(default)]
    pub along_unused: u64,
    /// Faults that came in.
    pub faults: u64,
    /// How long the faults that a page was put in place for were in a handler's hands, in nanoseconds.
    pub fault_ns: FaultTimes,
    /// How long each stage of a fault took, by its name, if that is measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stage_ns: BTreeMap<String, FaultTimes>,
    /// Bytes the stored pages had.
    pub raw_bytes: u64,
    /// Bytes of the stored objects, with their headers.
    pub stored_bytes: u64,
    /// All memory the store held from the operating system.
    pub store_memory_bytes: u64,
    /// Raw bytes for a byte of that, same-filled pages left out.
    pub ratio: f64,
    /// Pages that were one word repeated, and took no object.
    pub same_filled_pages: u64,
    /// What the store counts beside that, now, by the store's own names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub store_figures: BTreeMap<String, u64>,
    /// Pages lost.
    pub poisoned_pages: u64,
    /// The most all clients had in memory in a sample, by their shares.
    pub peak_pss_anon_bytes: u64,
    /// How well the limit was held.
    pub limit: Held,
}

/// Times of faults, in nanoseconds; all but the longest to within 1/16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultTimes {
    /// Half of them took at most so long.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

/// How well a limit was held, in samples taken every 100 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Samples.
    pub samples: u64,
    /// Of these, over the limit.
    pub samples_over: u64,
    /// The most that was over it, in bytes.
    pub worst_over_bytes: u64,
}

/// What the store holds now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// What it calls itself.
    pub name: String,
    /// Pages.
    pub pages: u64,
    /// Bytes these had.
    pub raw_bytes: u64,
    /// Bytes of the objects.
    pub stored_bytes: u64,
    /// All memory it holds.
    pub memory_bytes: u64,
    /// Pages that are one word repeated.
    pub same_filled_pages: u64,
    /// Pages that are kept as they came.
    pub incompressible_pages: u64,
    /// Bytes it takes of a file or a device.
    #[serde(default)]
    pub device_bytes: u64,
    /// Raw bytes for a byte of memory, same-filled pages left out.
    pub ratio: f64,
    /// What it counts beside that, by its own names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, u64>,
}

impl Totals {
    /// The sums of a server so far.
    pub fn of(server: &Server, record: &Record) -> Self {
        let total = server.total();
        let Stats { raw_bytes, stored_bytes, memory_bytes, same_filled_pages, .. } = record.fullest;
        Self {
            pages_out: total.counts.get(Transition::Moved),
            pages_in: total.counts.get(Transition::Installed),
            pages_along: total.counts.get(Transition::FetchAround)
                + total.counts.get(Transition::RecallAround),
            along_used: total.counts.get(Transition::AlongUsed),
            along_unused: total.counts.get(Transition::AlongUnused),
            faults: faults(&total.counts),
            fault_ns: FaultTimes::of(&total.service),
            stage_ns: total.stages.iter().flat_map(by_name).collect(),
            raw_bytes,
            stored_bytes,
            store_memory_bytes: memory_bytes,
            ratio: record.fullest.ratio(page_size()),
            same_filled_pages,
            store_figures: figures(server),
            poisoned_pages: total.poisoned_pages,
            peak_pss_anon_bytes: record.peak_bytes,
            limit: Held {
                samples: record.samples,
                samples_over: record.samples_over,
                worst_over_bytes: record.worst_over_bytes,
            },
        }
    }
}

impl FaultTimes {
    fn of(times: &Histogram) -> Self {
        Self {
            p50: times.quantile(500),
            p99: times.quantile(990),
            p999: times.quantile(999),
            max: times.longest(),
        }
    }
}

fn by_name(stages: &Stages) -> impl Iterator<Item = (String, FaultTimes)> {
    Stage::ALL.into_iter().map(|stage| (stage.name().to_owned(), FaultTimes::of(stages.of(stage))))
}

impl StoreStatus {
    /// What a server's store holds now.
    pub fn of(server: &Server) -> Self {
        let store = server.engine().store();
        let stats = store.stats();
        Self {
            name: store.capabilities().name.to_string(),
            pages: stats.pages,
            raw_bytes: stats.raw_bytes,
            stored_bytes: stats.stored_bytes,
            memory_bytes: stats.memory_bytes,
            same_filled_pages: stats.same_filled_pages,
            incompressible_pages: stats.incompressible_pages,
            device_bytes: stats.device_bytes,
            ratio: stats.ratio(page_size()),
            figures: figures(server),
        }
    }
}

fn figures(server: &Server) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    server.engine().store().figures(&mut |name, figure| {
        all.insert(name.to_owned(), figure);
    });
    all
}

/// Faults that were read. One that was parked is decided again when it is taken up, and counts once.
fn faults(counts: &Counts) -> u64 {
    let decided: u64 = [
        Transition::FirstTouch,
        Transition::TouchRemoved,
        Transition::TouchResident,
        Transition::FaultOnMoving,
        Transition::DuplicateFault,
        Transition::FaultOnPoison,
        Transition::FaultOutside,
        Transition::Recall,
        Transition::Fetch,
    ]
    .map(|transition| counts.get(transition))
    .iter()
    .sum();
    decided.saturating_sub(counts.get(Transition::Retried))
}
