//! What a policy wants to know beside the sizes of processes: how long threads waited, what came back, how scarce memory is, what is free on a disk.

use super::server::Server;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use userswap_engine::{Change, Space, Stalled};
use userswap_policy::chromium::Area;
use userswap_policy::{Activity, Claim, Policy, Wants};
use userswap_uffd::page_bytes;

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sights {
    /// Whose waiting for memory counts: a file as `/proc/pressure/memory`, or a control group's `memory.pressure`.
    pub pressure: Option<PathBuf>,
    /// A path on the disk that pages go to, if they do.
    pub disk: Option<PathBuf>,
    /// What processes of a name may have beside others; of all names that count, the first fifteen bytes do, as in `/proc/PID/comm`.
    pub claims: HashMap<String, Claim>,
}

impl Sights {
    /// What a process may have.
    pub(super) fn claim(&self, pid: u32) -> Claim {
        if self.claims.is_empty() {
            return Claim::default();
        }
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim_ascii_end();
        let named = self.claims.iter().find(|(known, _)| known.bytes().take(COMM).eq(name.iter().copied()));
        named.map(|(_, claim)| *claim).unwrap_or_default()
    }
}

/// Bytes of a process's name that the kernel keeps.
const COMM: usize = 15;

/// What was seen, so that what is new can be told.
#[derive(Default)]
pub(super) struct Eyes {
    stalled: HashMap<u32, Stalled>,
    waited: Option<(Instant, Duration)>,
    read_at: Option<Instant>,
    free: Option<u64>,
    /// Exchanged with those of address spaces.
    changes: Vec<Change>,
}

/// Files are read no oftener.
const READ: Duration = Duration::from_secs(1);

impl Eyes {
    /// What processes did since the last time; nothing, of who is seen for the first time.
    pub(super) fn activity(&mut self, server: &Server) -> HashMap<u32, Activity> {
        let mut seen = HashMap::new();
        let activity = each(server)
            .map(|(pid, space)| {
                let now = space.stalls().now();
                let (stall, pages) = now.since(self.stalled.get(&pid).unwrap_or(&now));
                seen.insert(pid, now);
                (pid, Activity { stall, promoted: pages * page_bytes() })
            })
            .collect();
        self.stalled = seen;
        activity
    }

    /// What is done from now on is nobody's business, until somebody wants to know again.
    pub(super) fn forget_activity(&mut self) {
        self.stalled.clear();
    }

    /// Tells a policy what became of ranges. Of who `is_busy` it is told later: what an order moved has to be known before that some of it came back.
    pub(super) fn ranges(
        &mut self,
        server: &Server,
        policy: &mut dyn Policy,
        at: Duration,
        is_busy: impl Fn(u32) -> bool,
    ) {
        let area = |from: u64, to: u64| Area { start: from, bytes: to.saturating_sub(from) };
        for (pid, space) in each(server).filter(|(pid, _)| !is_busy(*pid)) {
            if !space.take_changes(&mut self.changes) {
                // An account of what isn't known any more would never be settled.
                policy.gone(pid, area(0, u64::MAX));
                continue;
            }
            for change in &self.changes {
                match *change {
                    Change::Came(from, to) => policy.came_back(pid, area(from, to), at),
                    Change::Gone(from, to) => policy.gone(pid, area(from, to)),
                }
            }
        }
    }

    /// The share of time in which somebody waited for memory, and what is free on the disk, as far as that is wanted.
    pub(super) fn machine(&mut self, sights: &Sights, wants: Wants) -> (Option<f64>, Option<u64>) {
        if !wants.pressure && !wants.disk || self.read_at.is_some_and(|at| at.elapsed() < READ) {
            return (None, self.free.filter(|_| wants.disk));
        }
        let now = Instant::now();
        self.read_at = Some(now);
        self.free = sights.disk.as_deref().filter(|_| wants.disk).and_then(free_bytes);
        let waited = sights.pressure.as_deref().filter(|_| wants.pressure).and_then(|path| waited(path).ok());
        let share = waited.zip(self.waited).map(|(waited, (then, before))| {
            let passed = now.duration_since(then).as_secs_f64();
            (waited.saturating_sub(before).as_secs_f64() / passed.max(1e-3)).min(1.0)
        });
        self.waited = waited.map(|waited| (now, waited));
        (share, self.free)
    }
}

/// The clients that have said who they are.
fn each(server: &Server) -> impl Iterator<Item = (u32, Arc<Space>)> {
    server.inner.entries().into_iter().map(|entry| (entry.pid, Arc::clone(&entry.space)))
}

/// How long somebody waited for memory, of all time.
fn waited(path: &Path) -> io::Result<Duration> {
    total(&std::fs::read_to_string(path)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn total(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_those_who_waited_is_read() {
        let text = "some avg10=0.12 avg60=0.00 avg300=0.00 total=372286800\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(total(text), Some(Duration::from_micros(372_286_800)));
        assert_eq!((total(""), total("some total=x")), (None, None));
    }

    #[test]
    fn a_process_is_known_by_what_the_kernel_keeps_of_its_name() {
        let pid = std::process::id();
        let own = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned();
        let claim = Claim { weight: 3, minimum: 5 };
        let sights = |name: String| Sights { claims: HashMap::from([(name, claim)]), ..Sights::default() };
        assert_eq!(sights(own.clone()).claim(pid), claim);
        assert_eq!(sights(format!("{own}!")).claim(pid) == claim, own.len() == COMM);
        assert_eq!(sights("another".to_owned()).claim(pid), Claim::default());
    }

    #[test]
    fn nothing_is_read_that_nobody_wants() {
        let sights = Sights {
            pressure: Some("/nowhere".into()),
            disk: Some(std::env::temp_dir()),
            ..Sights::default()
        };
        let mut eyes = Eyes::default();
        assert_eq!(eyes.machine(&sights, Wants::default()), (None, None));
        let (share, free) = eyes.machine(&sights, Wants { disk: true, pressure: true, ..Wants::default() });
        assert!(share.is_none() && free.is_some());
    }
}
