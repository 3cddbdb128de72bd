//! The report as one page with its charts in it: nothing is loaded from anywhere.

use crate::args::Memory;
use crate::plot::{Axis, Bars, Chart, Line, Scale, escaped, number};
use crate::report::{Record, Report, Timeline};
use crate::stats::PARTS;
use crate::table;
use std::fmt::Write as _;

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::new();
    let machine = &report.machine;
    let _ = write!(
        page,
        "<p>{} · {} · {} CPUs · {} MiB · load {} · {}<br>image: {} · {} pages, \
         {} same-filled left out · {} rounds · {}</p>",
        escaped(&machine.kernel),
        escaped(&machine.cpu_model),
        machine.cpus,
        machine.memory_bytes >> 20,
        escaped(&machine.load_average),
        escaped(&machine.date),
        escaped(&report.image.origin),
        report.image.pages,
        report.image.same_filled_pages_left_out,
        report.rounds,
        report
            .zram
            .as_ref()
            .map_or("zram left out".into(), |zram| format!("zram: {}", escaped(&zram.algorithm)))
    );
    for line in &report.left_out {
        let _ = write!(page, "<p class=left>left out: {}</p>", escaped(line));
    }
    let _ = write!(page, "<pre>{}</pre>", escaped(&table::render(report)));
    if let Some(stages) = stages(report) {
        page.push_str(&figure(&stages, STAGES));
    }
    for group in cases(report) {
        let Some(first) = group.first() else { continue };
        let _ = write!(page, "<h2>{}</h2>", escaped(&case(first)));
        page.push_str(&figure(&distribution(&group), DISTRIBUTION));
        page.push_str(&figure(&over_time(&group), OVER_TIME));
    }
    self::page("Faults on pages that were moved out", &page)
}

/// A page with a heading.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!("{HEAD}<h1>{}</h1>{body}</main>\n", escaped(title))
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>userswap-bench</title><style>\
body{font:15px/1.5 sans-serif;color:#222;background:#fff;margin:2em}main{max-width:1200px}\
pre{font-size:11px;overflow-x:auto;background:#f6f6f6;padding:1em}figure{margin:1em 0}figcaption{color:#555;max-width:760px}\
.left{color:#a33;margin:0}svg{max-width:100%;height:auto}</style><main>";

const DISTRIBUTION: &str = "Waits of the touches that led to a fault: the share of them that took at most so long. Medians of each step over \
the rounds. zram is dashed.";
const OVER_TIME: &str = "Pages touched a second over the pass, in the round of the middle duration.";
const STAGES: &str = "The median of each stage as it is served, over all cases and rounds. The way to the handler and the thread's waking are not \
in it, but while a handler wakes a thread on its own CPU that runs first: its time up to its next fault counts as waking. A fault of a run of neighbours loads and installs all of them.";

/// A drawing and what is to be known of it.
pub(crate) fn figure(svg: &str, caption: &str) -> String {
    format!("<figure>{svg}<figcaption>{}</figcaption></figure>", escaped(caption))
}

/// Records of the same pattern, threads, placement and writes; of plain memory none, whose touches are too short to draw.
fn cases(report: &Report) -> Vec<Vec<&Record>> {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in report.records.iter().filter(|record| record.memory != Memory::Plain.name()) {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| case(first) == case(record))) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    groups
}

fn case(record: &Record) -> String {
    let threads =
        if record.threads == 1 { "one thread".into() } else { format!("{} threads", record.threads) };
    let writes = if record.writes > 0 { format!(", {}% writes", record.writes) } else { String::new() };
    format!("{}, {threads}{}{writes}", record.pattern.name(), if record.pinned { ", pinned" } else { "" })
}

fn name(record: &Record) -> String {
    format!("{} {}", record.memory, record.store)
}

fn distribution(group: &[&Record]) -> String {
    let line = |name: String, cdf: &[f64], dashed| {
        let share = |(part, ns): (usize, &f64)| (*ns / 1000.0, part as f64 / PARTS as f64 * 100.0);
        // The very longest wait is one event, and would squeeze all others.
        Line { name, points: cdf.iter().enumerate().take(PARTS).map(share).collect(), dashed }
    };
    let mut lines: Vec<Line> = group
        .iter()
        .map(|record| {
            let p50 = record.figure("p50_ns").unwrap_or(0.0) / 1000.0;
            line(format!("{} (median {} µs)", name(record), number(p50)), &record.cdf_ns, false)
        })
        .collect();
    if let Some(record) = group.iter().find(|record| !record.zram_cdf_ns.is_empty()) {
        let p50 = record.figure("zram_p50_ns").unwrap_or(0.0) / 1000.0;
        lines.push(line(format!("zram (median {} µs)", number(p50)), &record.zram_cdf_ns, true));
    }
    Chart {
        title: "How long threads wait",
        x: Axis { label: "µs", scale: Scale::Log },
        y: Axis { label: "% of faulting touches", scale: Scale::Linear },
        lines,
        mark: None,
    }
    .svg()
}

fn over_time(group: &[&Record]) -> String {
    let line = |name: String, timeline: &Timeline, dashed| {
        let at = |(slice, touches): (usize, &f64)| {
            ((slice as f64 + 0.5) * timeline.slice_ns / 1e6, touches * 1e9 / timeline.slice_ns.max(1.0))
        };
        Line { name, points: timeline.touches.iter().enumerate().map(at).collect(), dashed }
    };
    let mut lines: Vec<Line> =
        group.iter().map(|record| line(name(record), &record.timeline, false)).collect();
    if let Some(record) = group.iter().find(|record| !record.zram_timeline.touches.is_empty()) {
        lines.push(line("zram".into(), &record.zram_timeline, true));
    }
    Chart {
        title: "Throughput over time",
        x: Axis { label: "ms", scale: Scale::Linear },
        y: Axis { label: "pages a second", scale: Scale::Linear },
        lines,
        mark: None,
    }
    .svg()
}

/// `None` where nobody measured any.
fn stages(report: &Report) -> Option<String> {
    let first = report.stages.first()?;
    let parts = first.stages.iter().map(|(name, _)| name.clone()).collect();
    let row = |times: &[(String, crate::subject::StageTime)]| {
        times.iter().map(|(_, time)| time.p50_ns as f64 / 1000.0).collect()
    };
    let rows = report
        .stages
        .iter()
        .map(|record| (format!("{} {}", record.memory, record.store), row(&record.stages)))
        .collect();
    Some(Bars { title: "Where the time of a fault goes", label: "µs", parts, rows }.svg())
}
