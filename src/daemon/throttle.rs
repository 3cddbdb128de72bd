//! A brake on growth that moving out can't keep up with: `memory.high` of a control group of version 2.
//!
//! It is let alone until clients are over their limit by a good part, and taken off when they are back under it. While it is on, the
//! kernel has whoever takes more memory wait; nothing fails. What version 1 has (a wall, or a wall with the killer switched off) makes system
//! calls fail that would have succeeded, so it is not used.

use parking_lot::Mutex;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A control group of our own, removed when dropped.
#[derive(Debug)]
pub struct Throttle {
    group: PathBuf,
    parent: PathBuf,
    braking: Mutex<bool>,
}

/// The limit's part that is borne before the brake goes on.
const BORNE: u64 = 16;

impl Throttle {
    /// Makes a group called `name` where this process may: below its own group, or beside it. `None` where there is no
    /// version 2 hierarchy with the memory controller, or none that may be written.
    pub fn create(name: &OsStr) -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = own_group(&groups, &mounts)?;
        let beside = own.parent().map(Path::to_path_buf);
        std::iter::once(own).chain(beside).find_map(|parent| Self::below(&parent, name))
    }

    fn below(parent: &Path, name: &OsStr) -> Option<Self> {
        let group = parent.join(name);
        std::fs::create_dir(&group).ok()?;
        let made = Self { group, parent: parent.to_path_buf(), braking: Mutex::new(false) };
        // Without the controller the files aren't there, and dropping it takes the group away again.
        made.write("memory.high", "max").is_ok().then_some(made)
    }

    /// The file to write `0` to, to become a member.
    ///
    /// # Errors
    /// Why it can't be opened.
    pub fn door(&self) -> io::Result<OwnedFd> {
        Ok(std::fs::OpenOptions::new().write(true).open(self.group.join("cgroup.procs"))?.into())
    }

    /// Puts the brake on or takes it off, for members that are `over` bytes over their limit.
    pub(super) fn hold(&self, limit: Option<u64>, over: u64) {
        let mut braking = self.braking.lock();
        let wanted = brake(limit, over, *braking);
        if wanted == *braking {
            return;
        }
        // No more than now.
        let high = if wanted { self.read("memory.current") } else { Ok("max".to_owned()) };
        match high.and_then(|high| self.write("memory.high", high.trim())) {
            Ok(()) => *braking = wanted,
            Err(error) => tracing::debug!(%error, "holding growth back"),
        }
    }

    fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.group.join(file))
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        // Not made if it isn't there: that would be a file, and not the kernel's.
        let mut opened = std::fs::OpenOptions::new().write(true).open(self.group.join(file))?;
        io::Write::write_all(&mut opened, value.as_bytes())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if std::fs::remove_dir(&self.group).is_ok() {
            return;
        }
        // Members that outlived the command go where they would have been.
        let door = self.parent.join("cgroup.procs");
        for member in self.read("cgroup.procs").unwrap_or_default().lines() {
            let _ = std::fs::write(&door, member);
        }
        if let Err(error) = std::fs::remove_dir(&self.group) {
            tracing::warn!(group = %self.group.display(), %error, "a control group is left behind");
        }
    }
}

/// Whether the brake is to be on.
fn brake(limit: Option<u64>, over: u64, braking: bool) -> bool {
    match limit {
        Some(limit) if limit > 0 => over > if braking { 0 } else { limit / BORNE },
        _ => false,
    }
}

/// Where this process's group of version 2 is in the file system.
fn own_group(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4)).flatten()
    })?;
    Some(Path::new(mount).join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brake_is_slow_to_go_on_and_stays_until_the_limit_is_kept() {
        let limit = Some(160);
        assert!(!brake(limit, 10, false));
        assert!(brake(limit, 11, false));
        assert!(brake(limit, 1, true));
        assert!(!brake(limit, 0, true));
        assert!(!brake(None, u64::MAX, true) && !brake(Some(0), 1, false));
    }

    #[test]
    fn the_own_group_is_found_by_its_mount() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/a\n0::/user.slice/one.scope\n";
        assert_eq!(
            own_group(groups, mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified/user.slice/one.scope"))
        );
        assert_eq!(own_group("4:memory:/a\n", mounts), None);
        assert_eq!(own_group(groups, "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }

    #[test]
    fn it_writes_what_the_group_has_now_and_then_takes_it_off() {
        let parent = std::env::temp_dir().join(format!("userswap-throttle-{}", std::process::id()));
        let group = parent.join("group");
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("memory.high"), "max").unwrap();
        std::fs::write(group.join("memory.current"), "12345\n").unwrap();
        let high = || std::fs::read_to_string(group.join("memory.high")).unwrap();
        let throttle = Throttle { group: group.clone(), parent: parent.clone(), braking: Mutex::new(false) };
        throttle.hold(Some(1600), 50);
        assert_eq!(high(), "max");
        throttle.hold(Some(1600), 200);
        assert_eq!(high(), "12345");
        std::fs::write(group.join("memory.high"), "").unwrap();
        throttle.hold(Some(1600), 0);
        assert_eq!(high(), "max");
        std::mem::forget(throttle);
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
