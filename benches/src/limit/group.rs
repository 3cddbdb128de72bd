//! A memory cgroup, of version 1 or 2, with a limit.

use crate::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Taken away when dropped. One that a killed benchmark left behind is taken away by the next.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

const NAME: &str = "userswap-bench-";

impl Group {
    /// Makes one whose members may have so many bytes in memory together, and any amount of swap.
    pub(crate) fn create(limit: u64) -> Result<Self, Error> {
        let mounts =
            std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("reading the mounts"))?;
        let (root, file) = hierarchy(&mounts)
            .ok_or_else(|| Error::Input("there is no hierarchy with the memory controller".into()))?;
        for left in std::fs::read_dir(&root).into_iter().flatten().flatten() {
            if left.file_name().to_string_lossy().starts_with(NAME) {
                // Refused for one in use.
                let _ = std::fs::remove_dir(left.path());
            }
        }
        let group = root.join(format!("{NAME}{}", std::process::id()));
        std::fs::create_dir(&group).map_err(Error::io(format!("making {}", group.display())))?;
        let made = Self(group);
        let file = made.0.join(file);
        std::fs::write(&file, limit.to_string())
            .map_err(Error::io(format!("writing {limit} to {}", file.display())))?;
        Ok(made)
    }

    /// The file to write a process's number to, to make it a member.
    pub(crate) fn door(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last member may still be on its way out.
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = std::fs::remove_dir(&self.0) {
            if Instant::now() > deadline {
                eprintln!("{} could not be taken away: {error}", self.0.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where groups with the memory controller are made, and the file that has the limit of one.
fn hierarchy(mounts: &str) -> Option<(PathBuf, &'static str)> {
    let found = |wanted: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            wanted(kind, options).then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
        })
    };
    let has_memory = |options: &str| options.split(',').any(|option| option == "memory");
    if let Some(root) = found(&|kind, options| kind == "cgroup" && has_memory(options)) {
        return Some((root, "memory.limit_in_bytes"));
    }
    let root = found(&|kind, _| kind == "cgroup2")?;
    is_delegated(&root).then_some((root, "memory.max"))
}

fn is_delegated(root: &Path) -> bool {
    std::fs::read_to_string(root.join("cgroup.subtree_control"))
        .is_ok_and(|controllers| controllers.split_ascii_whitespace().any(|name| name == "memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_is_found_by_its_controller() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 23 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = hierarchy(mounts);
        assert_eq!(found, Some((PathBuf::from("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")));
        assert_eq!(hierarchy("30 23 0:26 / /nowhere rw - cgroup2 cgroup2 rw\n"), None);
        assert_eq!(hierarchy("30 23 0:26 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
