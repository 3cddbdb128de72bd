//! What a process and its descendants have in memory, ten times a second.

use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Takes samples until it is stopped.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

/// The summed `Pss_Anon` at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
}

const INTERVAL: Duration = Duration::from_millis(100);

impl Sampler {
    /// Of `root`'s descendants, and of `root` itself if it `counts`.
    pub(crate) fn start(root: u32, counts: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            let mut samples = Vec::new();
            let mut next = INTERVAL;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(next.saturating_sub(started.elapsed()));
                next += INTERVAL;
                let mut pids = descendants(root);
                if counts {
                    pids.push(root);
                }
                let bytes = pids.iter().filter_map(|pid| pss_anon(*pid)).sum();
                samples.push(Sample { seconds: started.elapsed().as_secs_f64(), bytes });
            }
            samples
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn descendants(root: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut to_do = vec![root];
    while let Some(pid) = to_do.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
                found.push(child);
                to_do.push(child);
            }
        }
    }
    found
}

/// `None` of a process that is gone.
fn pss_anon(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_and_has_memory() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = descendants(std::process::id()).contains(&child.id());
        let memory = pss_anon(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found && memory > Some(0), "{found} {memory:?}");
        assert_eq!(pss_anon(u32::MAX), None);
    }
}
