//! What a store that goes wrong does to a page, for every kind and moment, is what docs/outcomes.md says.

use crate::child;
use std::path::Path;
use userswap_tests::watch::Watchdog;

const BEGIN: &str = "<!-- made by the test `the_table_of_outcomes_is_what_happens` -->\n";
const END: &str = "<!-- end -->\n";

/// `USERSWAP_BLESS=1` writes what happens to the page.
#[test]
fn the_table_of_outcomes_is_what_happens() {
    let _watch = Watchdog::new("the_table_of_outcomes_is_what_happens");
    let mut part = child::start("outcomes", &[]);
    let mut table = String::new();
    loop {
        let line = part.hear();
        if line.starts_with("SKIPPED") {
            println!("{line}");
            return;
        }
        assert!(!line.is_empty(), "it ended before its end");
        if line == "done" {
            break;
        }
        table.push_str(&line);
        table.push('\n');
    }
    part.wait();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/outcomes.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("a mark where the table begins");
    let (there, after) = rest.split_once(END).expect("a mark where the table ends");
    if std::env::var_os("USERSWAP_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(there, table, "docs/outcomes.md says otherwise; USERSWAP_BLESS=1 has it say what happens");
}
