//! A short soak; `USERSWAP_LONG=1` makes it three minutes. The program `soak` of `userswap-tests` does the same for as long as it is told.

#[path = "../src/soak.rs"]
#[allow(unreachable_pub, reason = "a module of two programs")]
mod work;

use crate::support::{USERSWAP, can_serve};
use std::time::Duration;
use work::{Plan, Soaked, soak_in};

#[test]
fn mixed_programs_are_right_and_nothing_grows() {
    let test = "mixed_programs_are_right_and_nothing_grows";
    if !can_serve(test) {
        return;
    }
    if !["python3", "awk", "sort"].iter().all(|name| {
        std::process::Command::new("sh")
            .args(["-c", &format!("command -v {name}")])
            .output()
            .is_ok_and(|found| found.status.success())
    }) {
        println!("SKIPPED {test}: python3, awk or sort isn't there");
        return;
    }
    let long = std::env::var_os("USERSWAP_LONG").is_some_and(|value| value == "1");
    let time = Duration::from_secs(if long { 180 } else { 20 });
    let root = std::env::temp_dir();
    let plan = Plan { userswap: USERSWAP.into(), directory: root.clone(), time, seed: 1 };
    let soaked = soak_in(&root, plan, |standing| {
        println!("{standing}");
        let count = |cells: String| cells.split(',').count();
        assert_eq!(count(standing.columns()), count(standing.row()));
    })
    .unwrap();
    let Soaked { rounds, programs, kills, evictions } = soaked;
    println!("{rounds} rounds, {programs} programs, {kills} kills, {evictions} evictions");
    assert!(programs == rounds * 12 && evictions > 0, "{soaked:?}");
}
