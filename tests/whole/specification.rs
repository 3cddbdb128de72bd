//! What SPECIFICATION.md names as enforcing a promise, and SECURITY.md as trying an attack, is there.

use std::collections::HashSet;
use std::path::Path;

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = ["SPECIFICATION.md", "SECURITY.md"];
    let text = pages.map(|page| std::fs::read_to_string(root.join(page)).unwrap()).concat();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.rsplit_once(" | "));
    let named: HashSet<&str> =
        rows.flat_map(|(_, by)| by.split('`').skip(1).step_by(2)).filter(|name| !name.is_empty()).collect();
    assert!(named.len() > 50, "{} names", named.len());
    let mut there = HashSet::new();
    for directory in ["src", "tests", "ipc", "engine", "stores", "policy", "examples"] {
        look(&root.join(directory), &mut there);
    }
    let mut missing: Vec<&&str> = named.iter().filter(|name| !there.contains(**name)).collect();
    missing.sort_unstable();
    assert!(missing.is_empty(), "named in {pages:?} and nowhere else: {missing:?}");
}

/// Names of functions, and of cases in tables.
fn look(directory: &Path, there: &mut HashSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            look(&path, there);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines().map(str::trim_start) {
                let name = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                let case = line.strip_prefix("(\"").and_then(|rest| rest.split('"').next());
                there.extend(name.or(case).map(str::to_owned));
            }
        }
    }
}
