//! `soak --userswap PROGRAM [--minutes N] [--seed N] [--csv FILE]`: mixed programs under daemons that are treated badly; ends with 1 when a byte was wrong,
//! something hung, or memory or descriptors grew.

#[path = "../soak.rs"]
#[allow(unreachable_pub, reason = "a module of two programs")]
mod work;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::process::ExitCode;
use std::time::Duration;
use work::{Plan, Soaked, Standing, soak_in};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|word| *word != name).nth(1);
    let Some(userswap) = value("--userswap") else {
        eprintln!("usage: soak --userswap PROGRAM [--minutes N] [--seed N] [--csv FILE]");
        return ExitCode::from(2);
    };
    let number = |name, otherwise| value(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let time = Duration::from_secs(60 * number("--minutes", 3));
    let root = std::env::temp_dir();
    let plan = Plan { userswap: userswap.into(), directory: root.clone(), time, seed: number("--seed", 1) };
    let table = match value("--csv").map(File::create).transpose() {
        Ok(table) => RefCell::new(table),
        Err(error) => {
            eprintln!("soak: --csv: {error}");
            return ExitCode::from(2);
        }
    };
    let say = |standing: &Standing| {
        println!("{standing}");
        if let Some(table) = &mut *table.borrow_mut() {
            let columns = table.stream_position().is_ok_and(|at| at == 0).then(|| standing.columns() + "\n");
            if let Err(error) = writeln!(table, "{}{}", columns.unwrap_or_default(), standing.row()) {
                eprintln!("soak: --csv: {error}");
            }
        }
    };
    match soak_in(&root, plan, say) {
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
