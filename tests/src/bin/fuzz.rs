//! `fuzz [TARGET [SECONDS [SEED]]]`: runs mutations of the corpus through one target, or each of them, for so long. An input that is wrong is in the panic's
//! message, as hexadecimal digits; as a file in `fuzz/corpus/TARGET` it stays with the tests. `fuzz --seeds DIRECTORY` writes what corpora begin with.

use std::path::Path;
use std::time::{Duration, Instant};
use userswap_tests::fuzz::{TARGETS, mutate::mutated};
use userswap_tests::random::Random;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, directory] = arguments.as_slice()
        && first == "--seeds"
    {
        return write_seeds(Path::new(directory));
    }
    let name = arguments.first().map(String::as_str);
    let number =
        |at: usize, otherwise| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (time, seed) = (Duration::from_secs(number(1, 60)), number(2, 1));
    for target in TARGETS.iter().filter(|target| name.is_none_or(|name| name == target.name)) {
        let corpus = (target.seeds)();
        let mut random = Random::new(seed);
        let (begun, mut runs) = (Instant::now(), 0_u64);
        while begun.elapsed() < time {
            let input = mutated(&mut random, &corpus);
            let Err(_) = std::panic::catch_unwind(|| (target.run)(&input)) else {
                runs += 1;
                continue;
            };
            let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{}: after {runs} runs: {digits}", target.name);
            std::process::exit(1);
        }
        println!("{}: {runs} runs in {} s, nothing found", target.name, begun.elapsed().as_secs());
    }
}

fn write_seeds(directory: &Path) {
    for target in TARGETS {
        let directory = directory.join(target.name);
        std::fs::create_dir_all(&directory).expect("a directory for the corpus");
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed).expect("a file of the corpus");
        }
    }
}
