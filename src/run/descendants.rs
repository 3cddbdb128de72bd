//! What a command started, and which of it runs unmanaged.

use super::program::{Kind, kind_of};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A process that runs unmanaged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unmanaged {
    /// Its program, as far as it is known.
    pub program: String,
    /// Why.
    pub reason: String,
    /// How many there were.
    pub processes: u64,
}

/// Watches a command's descendants for some that are no clients.
#[derive(Debug)]
pub struct Descendants {
    root: u32,
    /// Seen once and no client then: it may still be starting.
    doubtful: HashSet<u32>,
    told: HashSet<u32>,
    found: BTreeMap<(PathBuf, &'static str), u64>,
}

/// A process, as far as is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Relative {
    parent: u32,
    is_zombie: bool,
}

impl Descendants {
    /// Of the process `root`, itself included.
    pub fn of(root: u32) -> Self {
        Self { root, doubtful: HashSet::new(), told: HashSet::new(), found: BTreeMap::new() }
    }

    /// Looks at all of them, told who is a client. A process counts as unmanaged that is found to be no client twice.
    ///
    /// `silent` says that there are clients that haven't said who they are, such as a forked child whose parent runs the same
    /// program: such children are left out then.
    pub fn look(&mut self, clients: &[u32], silent: bool) {
        let all = processes();
        let clients: HashSet<u32> = clients.iter().copied().collect();
        let mut doubtful = HashSet::new();
        for pid in below(self.root, &all) {
            if clients.contains(&pid) || self.told.contains(&pid) || all[&pid].is_zombie {
                continue;
            }
            if silent && program_of(pid).is_some_and(|own| program_of(all[&pid].parent) == Some(own)) {
                continue;
            }
            if self.doubtful.contains(&pid) {
                self.note(pid);
            } else {
                doubtful.insert(pid);
            }
        }
        self.doubtful = doubtful;
    }

    /// Enters a program that was known from the start not to be followed.
    pub fn note_program(&mut self, pid: u32, path: &Path, reason: &'static str) {
        if self.told.insert(pid) {
            *self.found.entry((path.to_path_buf(), reason)).or_default() += 1;
        }
    }

    /// Those found so far, by program and reason.
    pub fn unmanaged(&self) -> Vec<Unmanaged> {
        let describe = |((path, reason), processes): (&(PathBuf, &'static str), &u64)| Unmanaged {
            program: path.display().to_string(),
            reason: (*reason).to_owned(),
            processes: *processes,
        };
        self.found.iter().map(describe).collect()
    }

    fn note(&mut self, pid: u32) {
        // Gone meanwhile, or not ours to look at: nothing is known of it.
        let Some(program) = program_of(pid) else { return };
        let kind = kind_of(&program);
        let reason = match kind {
            Kind::Dynamic | Kind::Unknown => {
                "nothing of it called: it may restrict itself, or have left its environment"
            }
            other => other.obstacle().unwrap_or_default(),
        };
        self.note_program(pid, &program, reason);
    }
}

fn program_of(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// All processes that can be seen.
fn processes() -> HashMap<u32, Relative> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, relative(&stat)?))
        })
        .collect()
}

/// The state and the parent, which stand behind the name; that is in parentheses and may have any in it.
fn relative(stat: &str) -> Option<Relative> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let is_zombie = matches!(fields.next()?, "Z" | "X");
    Some(Relative { parent: fields.next()?.parse().ok()?, is_zombie })
}

/// `root` and all below it.
fn below(root: u32, all: &HashMap<u32, Relative>) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, relative) in all {
        children.entry(relative.parent).or_default().push(*pid);
    }
    let mut found: Vec<u32> = all.contains_key(&root).then_some(root).into_iter().collect();
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_and_spaces_dont_confuse() {
        let stat = "42 (a) R 1) (b) S 7 42 42 0 -1";
        assert_eq!(relative(stat), Some(Relative { parent: 7, is_zombie: false }));
        assert_eq!(relative("42 (a) Z 7"), Some(Relative { parent: 7, is_zombie: true }));
        assert_eq!(relative("42"), None);
    }

    #[test]
    fn all_below_are_found() {
        let of = |parent| Relative { parent, is_zombie: false };
        let all = HashMap::from([(1, of(0)), (2, of(1)), (3, of(2)), (4, of(2)), (5, of(1))]);
        let mut found = below(2, &all);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
        assert!(below(9, &all).is_empty());
    }

    #[test]
    fn who_is_no_client_twice_is_unmanaged_once() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut descendants = Descendants::of(child.id());
        descendants.look(&[], false);
        assert_eq!(descendants.unmanaged(), []);
        descendants.look(&[], false);
        descendants.look(&[], false);
        let unmanaged = descendants.unmanaged();
        assert_eq!((unmanaged.len(), unmanaged[0].processes), (1, 1));
        let mut clients = Descendants::of(child.id());
        clients.look(&[child.id()], false);
        clients.look(&[child.id()], false);
        assert_eq!(clients.unmanaged(), []);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
