//! When what a store keeps pages in goes wrong under a program: what can be kept is kept, and of the rest each page that is touched ends who touches it.

use crate::support::{Place, Talk, json, until, with_filler};
use std::process::Command;

/// Fills 32 MiB under a limit of 12, from and to this store, until so many bytes are out.
fn started(place: &Place, filler: &str, store: &str, least: u64) -> Talk {
    let control = place.at("control");
    let mut command = place.userswap(&["run", "-q", "--limit", "12M", "--store", store]);
    command.args(["--control", &control, "--report", &place.at("report"), "--", filler, "32"]);
    let mut run = Talk::start(&mut command);
    run.expect("ready");
    until("enough of it is out", || {
        let output = place.output(&["ctl", "--control", &control, "--json", "clients"]);
        let clients: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        clients[0]["moved_out_bytes"].as_u64().filter(|bytes| *bytes >= least)
    });
    run
}

fn number(place: &Place, key: &str) -> u64 {
    let report = json(&place.path("report"));
    report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"))
}

/// At most four segments of a mebibyte are in memory still; the others are gone.
#[test]
fn a_file_that_is_cut_short_ends_who_touches_what_was_in_it() {
    let Some((place, filler)) = with_filler("a_file_that_is_cut_short_ends_who_touches_what_was_in_it")
    else {
        return;
    };
    let store = place.at("store");
    let mut run =
        started(&place, &filler, &format!("file:{store}?size=256M&reserve=0&compress=off"), 12 << 20);
    std::fs::OpenOptions::new().write(true).open(&store).unwrap().set_len(4096).unwrap();
    assert!(run.says("check").is_none(), "it went on with pages that are gone");
    // SIGBUS, as a shell says it.
    assert_eq!(run.end().code(), Some(128 + 7));
    assert!(number(&place, "poisoned_pages") > 0);
    place.assert_clean();
}

/// The store refuses, the pages stay, and the limit is not kept.
#[test]
fn a_store_that_is_full_leaves_the_rest_in_memory() {
    let Some((place, filler)) = with_filler("a_store_that_is_full_leaves_the_rest_in_memory") else { return };
    assert_right(&place, &filler, &format!("file:{}?size=4M&reserve=0&compress=off", place.at("")));
}

/// The same by a disk of its own, which is smaller than it says.
#[test]
fn a_disk_that_is_full_leaves_the_rest_in_memory() {
    let test = "a_disk_that_is_full_leaves_the_rest_in_memory";
    let Some((place, filler)) = with_filler(test) else { return };
    let Some(disk) = Disk::mount(&place) else {
        println!("SKIPPED {test}: a small disk can't be mounted");
        return;
    };
    assert_right(&place, &filler, &format!("file:{}?size=256M&reserve=0&compress=off", disk.0));
}

#[track_caller]
fn assert_right(place: &Place, filler: &str, store: &str) {
    let mut run = started(place, filler, store, 1 << 20);
    for word in ["check", "churn", "check", "fork", "check"] {
        run.ask(word);
    }
    assert!(run.end().success());
    assert_eq!(number(place, "poisoned_pages"), 0);
    assert!(number(place, "pages_out") > 0);
    place.assert_clean();
}

/// A disk in memory, of 4 MiB; gone when dropped.
struct Disk(String);

impl Disk {
    fn mount(place: &Place) -> Option<Self> {
        let at = place.at("disk");
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4M", "userswap", &at]).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever had a file there may be on its way out still.
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}
