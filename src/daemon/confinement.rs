//! How far a daemon is confined, for its operator.

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// What is in force for a process, as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confinement {
    /// The capabilities it has, by their names in small letters.
    pub capabilities: Vec<String>,
    /// It gains none by executing a program.
    pub no_new_privileges: bool,
    /// It makes no system calls but those in a list.
    pub system_calls_filtered: bool,
}

impl Confinement {
    /// This process's: that of its first thread.
    pub fn of_this_process() -> Self {
        Self::of(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn of(status: &str) -> Self {
        let value = |key| status.lines().find_map(|line| line.strip_prefix(key)).map_or("", str::trim);
        let bits = u64::from_str_radix(value("CapEff:"), 16).unwrap_or(0);
        let names = CapabilitySet::from_bits_truncate(bits).iter_names();
        Self {
            capabilities: names.map(|(name, _)| name.to_ascii_lowercase()).collect(),
            no_new_privileges: value("NoNewPrivs:") == "1",
            system_calls_filtered: value("Seccomp:") == "2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_is_read_from_what_the_kernel_says() {
        let status = "CapInh:\t0000000000000000\nCapEff:\t0000000000080020\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        let confinement = Confinement::of(status);
        assert_eq!(confinement.capabilities, ["kill", "sys_ptrace"]);
        assert!(confinement.no_new_privileges && confinement.system_calls_filtered);
        assert_eq!(Confinement::of(""), Confinement::default());
    }
}
