//! The program as it is run.
#![allow(clippy::unwrap_used, reason = "tests stop on errors")]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A file of its own for each test; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("userswap-bench-test-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_userswap-bench"))
}

/// An image of pages that are all different.
fn image(pages: u32) -> Scratch {
    let file = Scratch::new(&format!("{pages}.image"));
    let bytes: Vec<u8> = (0..pages)
        .flat_map(|page| (0..512u32).flat_map(move |word| (u64::from(page * 31 + word % 40)).to_le_bytes()))
        .collect();
    std::fs::write(&file.0, bytes).unwrap();
    file
}

fn measure(image: &Path, json: &Path, more: &[&str]) -> Output {
    let mut bench = bench();
    let rounds: &[&str] = if more.contains(&"--rounds") { &[] } else { &["--rounds", "1"] };
    bench.arg("--image").arg(image).arg("--json").arg(json).args(rounds).args(more);
    bench.output().unwrap()
}

/// Whether there can be regions here at all.
fn userfaultfd(name: &str) -> bool {
    let there =
        userswap_uffd::Uffd::open(userswap_uffd::Features::empty(), userswap_uffd::OpenMode::UserModeOnly);
    if let Err(error) = &there {
        eprintln!("SKIPPED {name}: {error}");
    }
    there.is_ok()
}

#[test]
fn every_case_is_in_the_report() {
    if !userfaultfd("every_case_is_in_the_report") {
        return;
    }
    let (image, json) = (image(600), Scratch::new("cases.json"));
    let output = measure(&image.0, &json.0, &["--no-zram", "--both-placements"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    assert_eq!(report["schema_version"], 2);
    assert_eq!(report["image"]["pages"], 600);
    let left_out: Vec<&str> =
        report["left_out"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(left_out, ["zram: not asked for"]);
    let records = report["records"].as_array().unwrap();
    // Three memories with two stores each, a plain handler, plain memory; two patterns, numbers of threads, placements.
    assert_eq!(records.len(), 64);
    for record in records {
        assert!(record["mean_ns"].as_f64().unwrap() > 0.0, "{record}");
        if record["memory"] == "plain" {
            assert!(record["move_out_ns_per_page"].is_null(), "{record}");
            continue;
        }
        assert!(record["p50_ns"].as_f64().unwrap() > 0.0, "{record}");
        let compared = |ratio: &str| record[ratio].as_f64().is_some_and(|ratio| ratio > 0.0);
        let is_ours = record["memory"] != "plain-handler";
        assert_eq!(compared("ratio_plain_handler_mean"), is_ours, "{record}");
        assert_eq!(compared("ratio_plain_mean"), is_ours, "{record}");
        assert!(record["move_out_ns_per_page"].as_f64().unwrap() > 0.0, "{record}");
        assert!(record["store_memory_bytes_per_page"].as_f64().unwrap() > 0.0, "{record}");
        assert!(record["zram_p50_ns"].is_null() && record["ratio_p50"].is_null(), "{record}");
        let touches = if record["pattern"] == "random" { 300 } else { 600 };
        assert_eq!(record["touches"], touches, "{record}");
    }
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("left out: zram: not asked for"), "{table}");
}

/// Every entrant brings written pages back as they were written, or the benchmark fails.
#[test]
fn a_share_of_touches_writes() {
    if !userfaultfd("a_share_of_touches_writes") {
        return;
    }
    let (image, json) = (image(400), Scratch::new("writes.json"));
    let output = measure(&image.0, &json.0, &["--store", "ram:lz4", "--writes", "0,40", "--rounds", "2"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    let records = report["records"].as_array().unwrap();
    // Five memories; two patterns, numbers of threads and shares.
    assert_eq!(records.len(), 40, "{}", report["left_out"]);
    assert_eq!(records.iter().filter(|record| record["writes"] == 40).count(), 20);
    assert!(String::from_utf8(output.stdout).unwrap().contains("2 40% writes"));
}

#[test]
fn a_clients_memory_may_lie_in_many_regions() {
    if !userfaultfd("a_clients_memory_may_lie_in_many_regions") {
        return;
    }
    let (image, json) = (image(400), Scratch::new("regions.json"));
    let more = ["--store", "ram:lz4", "--memory", "client,inline", "--regions", "40", "--no-zram"];
    let output = measure(&image.0, &json.0, &more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    assert_eq!(report["image"]["client_regions"], 40);
    let records = report["records"].as_array().unwrap();
    // Two patterns and numbers of threads; all of it goes out and comes back as it was, or it would be left out.
    assert_eq!(records.len(), 4, "{}", report["left_out"]);
    assert!(records.iter().all(|record| record["memory"] == "client"));
    assert!(report["left_out"].to_string().contains("is one region by itself"), "{}", report["left_out"]);
}

#[test]
fn nonsense_is_refused() {
    let json = Scratch::new("nonsense.json");
    let filled = Scratch::new("filled.image");
    std::fs::write(&filled.0, vec![7u8; 1 << 16]).unwrap();
    let output = measure(&filled.0, &json.0, &[]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no page in it"), "{output:?}");
    let output = measure(Path::new("/nonexistent"), &json.0, &["--store", "ram:nothing"]);
    assert!(!output.status.success());
    assert!(!json.0.exists());
}

#[test]
fn zram_is_put_back_also_when_the_benchmark_is_killed() {
    let image = image(2000);
    let mut running = bench()
        .arg("--image")
        .arg(&image.0)
        .args(["--rounds", "1000", "--memory", "local", "--store", "ram:lz4"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let mut zram = None;
    for line in lines.map_while(Result::ok) {
        if let Some(device) = line.strip_prefix("beside: /dev/") {
            zram = device.split(',').next().map(str::to_owned);
        } else if line.starts_with("round 1 of") {
            break;
        }
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let Some(device) = zram else {
        eprintln!("SKIPPED zram_is_put_back_also_when_the_benchmark_is_killed: no zram to be had here");
        return;
    };
    assert!(wait_until(Duration::from_secs(60), || is_unused(&device)), "{device} is still in use");
}

/// Whether a zram device is gone, or has nothing to do.
fn is_unused(device: &str) -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let size = std::fs::read_to_string(format!("/sys/block/{device}/disksize"));
    !swaps.contains(&format!("/dev/{device} ")) && size.is_ok_and(|size| size.trim() == "0")
        || !exists(device)
}

fn exists(device: &str) -> bool {
    Path::new("/sys/block").join(device).exists()
}

fn wait_until(patience: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    done()
}

#[test]
fn a_program_in_less_memory_gives_the_same_answer() {
    const NAME: &str = "a_program_in_less_memory_gives_the_same_answer";
    let userswap = PathBuf::from(env!("CARGO_BIN_EXE_userswap-bench")).with_file_name("userswap");
    if !userswap.is_file() || Command::new("python3").arg("-V").output().is_err() {
        eprintln!("SKIPPED {NAME}: there is no userswap beside the benchmark, or no python3");
        return;
    }
    if !userfaultfd(NAME) {
        return;
    }
    let json = Scratch::new("limit.json");
    let mut bench = bench();
    bench.args(["limit", "--no-zram", "--rounds", "1", "--heap", "12", "--limit", "12M", "--walks", "1"]);
    let output = bench.arg("--json").arg(&json.0).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    assert_eq!(report["rounds"].as_array().unwrap().len(), 1);
    assert!(report["rounds"][0]["userswap"]["seconds"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["rounds"][0]["cgroup"].is_null() && report["ratio"].is_null(), "{report}");
    assert_eq!(report["left_out"][0], "zram: not asked for");
}

#[test]
fn a_page_with_charts_and_an_earlier_report() {
    if !userfaultfd("a_page_with_charts_and_an_earlier_report") {
        return;
    }
    let (image, json, html) = (image(500), Scratch::new("earlier.json"), Scratch::new("report.html"));
    let page = html.0.to_str().unwrap();
    let more = ["--no-zram", "--threads", "1", "--store", "ram:lz4", "--stages", "--html", page];
    let output = measure(&image.0, &json.0, &more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&html.0).unwrap();
    // Stages, and two charts for each of two patterns; nothing from elsewhere.
    assert_eq!(text.matches("<svg ").count(), 5);
    assert!(!text.contains("NaN") && !text.contains("inf,") && text.matches("http").count() == 5, "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    let install = &report["stages"][0]["stages"][3];
    assert!(install[0] == "install" && install[1]["count"].as_u64().unwrap() > 0, "{install}");

    // Without zram there are no ratios, so nothing can have become worse.
    let earlier =
        ["--no-zram", "--threads", "1", "--store", "ram:lz4", "--baseline", json.0.to_str().unwrap()];
    let again = Scratch::new("again.json");
    assert_eq!(measure(&image.0, &again.0, &earlier).status.code(), Some(0));
    let nowhere = measure(&image.0, &again.0, &["--baseline", "/nowhere/report.json"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("reading /nowhere/report.json"));
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn bytes_against_time_are_a_curve_for_each_image() {
    let (image, html) = (image(200), Scratch::new("curves.html"));
    let mut bench = bench();
    bench.arg("density").arg(&image.0).args(["--rounds", "1", "--stores", "ram:lz4,ram:zstd", "--html"]);
    let output = bench.arg(&html.0).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for name in ["ram:lz4 ", "ram:zstd ", "lz4 objects, 16 KiB ", "zstd −1 objects, 32 KiB "] {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert_eq!(std::fs::read_to_string(&html.0).unwrap().matches("<svg").count(), 1);
}
