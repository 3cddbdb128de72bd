//! What machine the figures are of.

use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine. What can't be found out is empty.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu_model: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    /// Whether anonymous memory gets huge pages unasked. Measured memory gets none.
    pub(crate) transparent_huge_pages: String,
    /// The load at the start: what else the machine had to do.
    pub(crate) load_average: String,
    /// In UTC.
    pub(crate) date: String,
    pub(crate) userswap_version: &'static str,
}

impl Machine {
    /// This one, now.
    #[allow(clippy::disallowed_methods, reason = "the date, to be read by people")]
    pub(crate) fn look() -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let meminfo = read("/proc/meminfo");
        Self {
            kernel: format!("{} {} {}", text(uname.sysname()), text(uname.release()), text(uname.machine())),
            cpu_model: field(&cpuinfo, "model name").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: field(&meminfo, "MemTotal")
                .split(' ')
                .next()
                .and_then(|kib| kib.parse().ok())
                .map_or(0, |kib: u64| kib * 1024),
            transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").trim().to_owned(),
            load_average: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            date: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or_else(|_| String::new(), |d| date(d.as_secs())),
            userswap_version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// `key : value` in a file of such lines.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key);
    found.map_or("", |(_, value)| value.trim())
}

/// `2026-01-31T12:34:56Z` of seconds since 1970. Days are counted in years that begin with March, so that a leap day is the
/// last day of its year.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let day = day - (153 * shifted + 2) / 5 + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(date(1_772_323_200), "2026-03-01T00:00:00Z");
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::look();
        assert!(machine.kernel.starts_with("Linux "));
        assert!(machine.memory_bytes > 0 && machine.cpus > 0);
        assert_eq!(field("a : 1\nmodel name\t: An EPYC\n", "model name"), "An EPYC");
    }
}
