//! What came out, as a table and as JSON.

use super::pages::Pages;
use super::turns::{Round, Turns};
use serde_json::{Value, json};
use std::fmt;
use std::time::{Duration, Instant};
use userswap_store::{Maintained, Store};

/// All that is measured.
pub(super) struct Figures {
    store: String,
    name: String,
    page_size: usize,
    pages: usize,
    left_out: usize,
    rounds: u32,
    clock_ns: u64,
    pub(super) put: Beside,
    pub(super) get: Beside,
    pub(super) free: Times,
    /// Pages that weren't taken.
    pub(super) full: u64,
    /// Pages that didn't come back as they were.
    pub(super) wrong: u64,
    pub(super) held: Held,
    /// After background work.
    pub(super) held_after: Held,
    maintain_ns: u64,
    moved_bytes: u64,
}

/// Times of a call, and of what it is compared with.
#[derive(Default)]
pub(super) struct Beside {
    store: Times,
    lz4: Times,
    copy: Times,
    /// The store's median by lz4's, of each round.
    by_lz4: Vec<f64>,
    by_copy: Vec<f64>,
}

/// Nanoseconds a page, of all rounds.
#[derive(Default)]
pub(super) struct Times(Vec<u64>);

/// What the store holds when everything is in it, a page.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    pages: u64,
    stored: f64,
    memory: f64,
    device: f64,
    ratio: f64,
    /// lz4's bytes alone.
    lz4: f64,
}

impl Figures {
    pub(super) fn new(spec: &str, store: &dyn Store, pages: &Pages, rounds: u32) -> Self {
        Self {
            store: spec.to_owned(),
            name: store.capabilities().name.to_string(),
            page_size: pages.page_size,
            pages: pages.len(),
            left_out: pages.left_out,
            rounds,
            clock_ns: clock(),
            put: Beside::default(),
            get: Beside::default(),
            free: Times::default(),
            full: 0,
            wrong: 0,
            held: Held::default(),
            held_after: Held::default(),
            maintain_ns: 0,
            moved_bytes: 0,
        }
    }

    pub(super) fn maintained(&mut self, took: Duration, done: Maintained) {
        self.maintain_ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.moved_bytes = self.moved_bytes.saturating_add(done.moved_bytes);
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "store": self.store,
            "name": self.name,
            "page_size": self.page_size,
            "pages": self.pages,
            "same_filled_left_out": self.left_out,
            "rounds": self.rounds,
            "clock_ns": self.clock_ns,
            "put_ns": self.put.as_json(),
            "get_ns": self.get.as_json(),
            "free_ns": self.free.as_json(),
            "full": self.full,
            "wrong": self.wrong,
            "held": self.held.as_json(),
            "held_after_maintenance": self.held_after.as_json(),
            "maintain_ns_a_round": self.maintain_ns / u64::from(self.rounds),
            "moved_bytes_a_round": self.moved_bytes / u64::from(self.rounds),
        })
    }
}

/// What a reading of the clock takes: twice that is in every figure.
fn clock() -> u64 {
    let mut times: Vec<u64> = (0..1001)
        .map(|_| {
            let started = Instant::now();
            u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect();
    times.sort_unstable();
    times[500]
}

impl Beside {
    pub(super) fn end_round(&mut self, turns: Turns) {
        let [store, lz4, copy] = turns.times.map(|round| Times(round.0));
        let [ours, its, plain] = [&store, &lz4, &copy].map(|times| times.quantile(50));
        self.by_lz4.push(ours as f64 / its.max(1) as f64);
        self.by_copy.push(ours as f64 / plain.max(1) as f64);
        self.store.0.extend(store.0);
        self.lz4.0.extend(lz4.0);
        self.copy.0.extend(copy.0);
    }

    fn as_json(&self) -> Value {
        json!({
            "store": self.store.as_json(),
            "lz4": self.lz4.as_json(),
            "copy": self.copy.as_json(),
            "by_lz4": Spread::of(&self.by_lz4).as_json(),
            "by_copy": Spread::of(&self.by_copy).as_json(),
        })
    }
}

impl Times {
    pub(super) fn merge(&mut self, round: Round) {
        self.0.extend(round.0);
    }

    /// The time that so many percent don't exceed.
    fn quantile(&self, percent: usize) -> u64 {
        let mut times = self.0.clone();
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        if times.is_empty() { 0 } else { *times.select_nth_unstable(at).1 }
    }

    fn mean(&self) -> u64 {
        self.0.iter().sum::<u64>() / self.0.len().max(1) as u64
    }

    fn as_json(&self) -> Value {
        json!({ "p50": self.quantile(50), "p99": self.quantile(99), "mean": self.mean() })
    }
}

/// Of a figure between rounds.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(rounds: &[f64]) -> Self {
        let mut rounds = rounds.to_vec();
        rounds.sort_unstable_by(f64::total_cmp);
        let at = |place: usize| rounds.get(place).copied().unwrap_or(0.0);
        Self { least: at(0), median: at(rounds.len() / 2), most: at(rounds.len().saturating_sub(1)) }
    }

    fn as_json(&self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }
}

impl Held {
    pub(super) fn of(store: &dyn Store, lz4_bytes: u64, lz4_pages: usize) -> Self {
        let stats = store.stats();
        let page_size = store.capabilities().page_size;
        let each = |bytes: u64| bytes as f64 / stats.pages.max(1) as f64;
        let held = stats.held_bytes().max(1);
        Self {
            pages: stats.pages,
            stored: each(stats.stored_bytes),
            memory: each(stats.memory_bytes),
            device: each(stats.device_bytes),
            ratio: (stats.pages * page_size as u64) as f64 / held as f64,
            lz4: lz4_bytes as f64 / lz4_pages.max(1) as f64,
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "pages": self.pages,
            "stored_bytes_a_page": self.stored,
            "memory_bytes_a_page": self.memory,
            "device_bytes_a_page": self.device,
            "ratio": self.ratio,
            "lz4_bytes_a_page": self.lz4,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, pages, left_out, rounds, page_size, clock_ns, .. } = self;
        writeln!(
            f,
            "{store}: {pages} pages of {page_size} bytes in {rounds} rounds, {left_out} same-filled left out"
        )?;
        writeln!(
            f,
            "ns a page, {clock_ns} of them the clock's; × of medians, with the least and the most of a round\n"
        )?;
        writeln!(f, "{:<10} {:>9} {:>9} {:>9}   {:<22} × copying", "", "p50", "p99", "mean", "× lz4")?;
        for (name, beside, bare) in [("put", &self.put, "compress"), ("get", &self.get, "decompress")] {
            let (by_lz4, by_copy) = (Spread::of(&beside.by_lz4), Spread::of(&beside.by_copy));
            writeln!(f, "{}   {:<22} {by_copy}", row(name, &beside.store), by_lz4.to_string())?;
            writeln!(f, "{}", row(&format!("  {bare}"), &beside.lz4))?;
            writeln!(f, "{}", row("  copy", &beside.copy))?;
        }
        writeln!(f, "{}\n", row("free", &self.free))?;
        writeln!(f, "held        {}", self.held)?;
        let ms = self.maintain_ns / u64::from(self.rounds) / 1_000_000;
        writeln!(f, "maintained  {}, after {ms} ms", self.held_after)?;
        writeln!(f, "lz4 alone   {:.0} bytes a page", self.held.lz4)?;
        if self.full > 0 {
            writeln!(f, "FULL        {} pages of all rounds weren't taken", self.full)?;
        }
        if self.wrong > 0 {
            writeln!(f, "WRONG       {} pages of all rounds didn't come back as they were", self.wrong)?;
        }
        Ok(())
    }
}

fn row(name: &str, times: &Times) -> String {
    format!("{name:<12} {:>7} {:>9} {:>9}", times.quantile(50), times.quantile(99), times.mean())
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stored, memory, device, ratio, .. } = self;
        write!(f, "{stored:.0} bytes stored a page, {memory:.0} of memory")?;
        if *device > 0.0 {
            write!(f, " and {device:.0} of a device")?;
        }
        write!(f, " held, {ratio:.2} to 1")
    }
}
