//! The report as a table to read.

use crate::report::{Record, Report};
use std::fmt::Write as _;

/// The whole report, in lines for a wide screen.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        text,
        "{} · {} · {} CPUs · {} MiB · load {} · {}",
        machine.kernel,
        machine.cpu_model,
        machine.cpus,
        machine.memory_bytes >> 20,
        machine.load_average,
        machine.date
    );
    let zram = report.zram.as_ref().map_or("zram left out".into(), |zram| {
        format!("zram: {}, page-cluster {}", zram.algorithm, zram.page_cluster)
    });
    let image = &report.image;
    let _ = writeln!(
        text,
        "image: {} · {} pages, {} same-filled left out · {} rounds · {zram}\n",
        image.origin, image.pages, image.same_filled_pages_left_out, report.rounds
    );
    touches(report, &mut text);
    others(report, &mut text);
    move_outs(report, &mut text);
    for line in &report.left_out {
        let _ = writeln!(text, "left out: {line}");
    }
    text
}

fn touches(report: &Report, text: &mut String) {
    let mut table = Table::new(&[
        "memory",
        "store",
        "pattern",
        "threads",
        "p50 ns",
        "p99 ns",
        "p99.9 ns",
        "mean ns",
        "zram p50",
        "zram mean",
        "× zram",
        "least–most",
        "block ×",
        "faults/page",
        "pages/s",
        "scaling",
        "zram's",
    ]);
    for record in &report.records {
        // With neighbours brought in, most touches of a sequential pass wait for nothing: only the mean says something.
        let ratio = record.pattern.ratio();
        table.row(vec![
            record.memory.into(),
            record.store.clone(),
            record.pattern.name().into(),
            record.touchers(),
            whole(record.figure("p50_ns")),
            whole(record.figure("p99_ns")),
            whole(record.figure("p999_ns")),
            whole(record.figure("mean_ns")),
            whole(record.figure("zram_p50_ns")),
            whole(record.figure("zram_mean_ns")),
            hundredths(record.figure(ratio)),
            spread(record.range(ratio)),
            hundredths(record.figure("ratio_block")),
            hundredths(record.figure("faults_per_page")),
            whole(record.figure("throughput_pages_per_s")),
            hundredths(record.figure("scaling")),
            hundredths(record.figure("zram_scaling")),
        ]);
    }
    table.render(text);
    let _ = writeln!(
        text,
        "p50, p99, p99.9: of touches that faulted. mean: of all touches. × zram: by p50 for random touches, by the mean for sequential ones; \
         block ×: by the middle block of 128 touches.\n\
         scaling: pages a second by those of one thread.\n"
    );
}

/// Beside what most programs have, and beside memory that stays. Nothing if neither was measured.
fn others(report: &Report, text: &mut String) {
    let mut table = Table::new(&[
        "memory",
        "store",
        "pattern",
        "threads",
        "ns",
        "plain handler",
        "× faster",
        "least–most",
        "plain memory",
    ]);
    let compared = |record: &&Record| {
        record.figure("plain_handler_mean_ns").or(record.figure("plain_mean_ns")).is_some()
    };
    let records: Vec<&Record> = report.records.iter().filter(compared).collect();
    if records.is_empty() {
        return;
    }
    for record in records {
        let is_p50 = record.pattern.ratio() == "ratio_p50";
        let (own, handler, ratio) = if is_p50 {
            ("p50_ns", "plain_handler_p50_ns", "ratio_plain_handler_p50")
        } else {
            ("mean_ns", "plain_handler_mean_ns", "ratio_plain_handler_mean")
        };
        table.row(vec![
            record.memory.into(),
            record.store.clone(),
            record.pattern.name().into(),
            record.touchers(),
            whole(record.figure(own)),
            whole(record.figure(handler)),
            hundredths(record.figure(ratio).map(|ratio| 1.0 / ratio)),
            spread(record.range(ratio).map(|[least, most]| [1.0 / most, 1.0 / least])),
            whole(record.figure("plain_mean_ns")),
        ]);
    }
    table.render(text);
    let _ = writeln!(
        text,
        "ns: as × zram, the p50 for random touches and the mean for others. plain handler: one thread, one page a fault, lz4. \
         plain memory: the mean of touches of pages that never left.\n"
    );
}

/// Moving out is the same whatever touches follow: the median of all cases' medians.
fn move_outs(report: &Report, text: &mut String) {
    let mut table =
        Table::new(&["memory", "store", "out ns/page", "zram", "× zram", "bytes/page", "zram", "× zram"]);
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for record in &report.records {
        let who = (record.memory, record.store.as_str());
        if seen.contains(&who) {
            continue;
        }
        seen.push(who);
        let of = |name: &str| median(report, who, name);
        table.row(vec![
            who.0.into(),
            who.1.into(),
            whole(of("move_out_ns_per_page")),
            whole(of("zram_move_out_ns_per_page")),
            hundredths(of("ratio_move_out")),
            whole(of("store_memory_bytes_per_page")),
            whole(of("zram_memory_bytes_per_page")),
            hundredths(of("ratio_memory")),
        ]);
    }
    table.render(text);
    text.push('\n');
}

fn median(report: &Report, who: (&str, &str), name: &str) -> Option<f64> {
    let of = |record: &&Record| (record.memory, record.store.as_str()) == who;
    let values = report.records.iter().filter(of).filter_map(|record| record.figure(name));
    crate::stats::Spread::of(values).map(|spread| spread.median)
}

fn whole(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.0}"))
}

fn hundredths(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.2}"))
}

fn spread(range: Option<[f64; 2]>) -> String {
    range.map_or("–".into(), |[least, most]| format!("{least:.2}–{most:.2}"))
}

/// Columns as wide as what is in them; the first ones, which are words, to the left.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn render(&self, text: &mut String) {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let is_word = column < 2 || self.rows[0][column] == "pattern";
                let _ =
                    if is_word { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["who", "where", "ns"]);
        table.row(vec!["a".into(), "somewhere".into(), "1".into()]);
        table.row(vec!["bcde".into(), "x".into(), "12345".into()]);
        let mut text = String::new();
        table.render(&mut text);
        assert_eq!(text, "who   where         ns\na     somewhere      1\nbcde  x          12345\n");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!(
            (whole(None), hundredths(Some(1.234)), spread(None)),
            ("–".into(), "1.23".into(), "–".into())
        );
    }
}
