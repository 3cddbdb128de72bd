//! `soak --userswap PROGRAM [--minutes N] [--seed N]`: mixed programs under daemons that are treated badly; ends with 1 when a byte was wrong, something
//! hung, or memory or descriptors grew.

#[path = "../soak.rs"]
#[allow(unreachable_pub, reason = "a module of two programs")]
mod work;

use std::process::ExitCode;
use std::time::Duration;
use work::{Plan, Soaked, soak_in};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|word| *word != name).nth(1);
    let Some(userswap) = value("--userswap") else {
        eprintln!("usage: soak --userswap PROGRAM [--minutes N] [--seed N]");
        return ExitCode::from(2);
    };
    let number = |name, otherwise| value(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let time = Duration::from_secs(60 * number("--minutes", 3));
    let root = std::env::temp_dir();
    let plan = Plan { userswap: userswap.into(), directory: root.clone(), time, seed: number("--seed", 1) };
    match soak_in(&root, plan, |line| println!("{line}")) {
        Ok(soaked) => {
            let Soaked { rounds, programs, kills, evictions } = soaked;
            println!(
                "nothing wrong in {rounds} rounds of {programs} programs, with {kills} kills and {evictions} evictions"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(1)
        }
    }
}
