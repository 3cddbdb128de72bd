//! Each target of fuzzing, with what is kept of its corpus and a few thousand mutations.

use std::path::Path;
use userswap_tests::fuzz::{TARGETS, mutate::mutated};
use userswap_tests::random::Random;

#[test]
fn targets_of_fuzzing_take_their_corpora_and_mutations() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus");
    for target in TARGETS {
        let mut corpus = (target.seeds)();
        for file in std::fs::read_dir(corpora.join(target.name)).into_iter().flatten() {
            corpus.push(std::fs::read(file.unwrap().path()).unwrap());
        }
        corpus.iter().for_each(|input| (target.run)(input));
        let mut random = Random::new(4711);
        for _ in 0..if target.name == "arena" { 300 } else { 3000 } {
            (target.run)(&mutated(&mut random, &corpus));
        }
    }
}

/// Each has its file for libFuzzer.
#[test]
fn every_target_of_fuzzing_is_there_for_libfuzzer() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(fuzz.join(format!("fuzz_targets/{}.rs", target.name)).exists(), "{}", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
