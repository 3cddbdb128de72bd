//! A compiler: what it makes is the same to the byte.

use crate::limited::{Trial, source};
use crate::watch::is_long;

#[test]
fn the_same_object_is_made() {
    let Some(trial) = Trial::new("the_same_object_is_made", &["gcc"]) else { return };
    for (text, options) in
        [("threads.c", &["-O2"][..]), ("threads.c", &["-O3", "-g"]), ("threads.c", &["-O0"])]
    {
        let make = |to: &str, limited: bool| {
            let (input, to) = (source(text), trial.place.at(to));
            let mut words = vec!["gcc", "-c", "-pthread"];
            words.extend(options);
            words.extend([&*input, "-o", &to]);
            let output = if limited { trial.limited("6M", &words).0 } else { trial.alone(&words) };
            assert!(output.status.success(), "{output:?}");
            std::fs::read(to).unwrap()
        };
        let (one, other) = (make("one.o", false), make("other.o", true));
        assert!(one == other, "{text} {options:?}: objects of {} and {} bytes", one.len(), other.len());
        let report = trial.report();
        assert_eq!(report.number("poisoned_pages"), 0, "{}", report.0);
    }
    trial.place.assert_clean();
}

#[test]
fn the_same_library_is_made() {
    let test = "the_same_library_is_made";
    if let Some(trial) = Trial::new(test, &["rustc"]) {
        library(&trial);
    }
}

pub(crate) fn library(trial: &Trial) {
    // The toolchain's own program, and not one that looks for it.
    let found = trial.alone(&["rustc", "--print", "sysroot"]);
    let rustc = format!("{}/bin/rustc", String::from_utf8_lossy(&found.stdout).trim_end());
    let input = trial.place.at("input.rs");
    std::fs::write(&input, program(if is_long() { 2000 } else { 120 })).unwrap();
    let make = |to: &str, limited: bool| {
        let to = trial.place.at(to);
        let words = [&rustc, "--crate-type=lib", "--crate-name=input", "-Copt-level=1", "-Ccodegen-units=1"];
        let words: Vec<&str> = words.into_iter().chain(["--emit=obj", "-o", &to, &input]).collect();
        let output = if limited { trial.limited("64M", &words).0 } else { trial.alone(&words) };
        assert!(output.status.success(), "{output:?}");
        std::fs::read(to).unwrap()
    };
    let (one, other) = (make("one.o", false), make("other.o", true));
    assert!(one == other, "objects of {} and {} bytes", one.len(), other.len());
    trial.report().assert_sound();
    trial.place.assert_clean();
}

/// Functions and traits enough for a compiler to have work.
fn program(parts: u32) -> String {
    let mut text = String::from("use std::collections::BTreeMap;\n");
    for part in 0..parts {
        text += &format!(
            "#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
             pub struct Part{part} {{ pub name: String, pub list: Vec<Option<u{bits}>>, pub map: BTreeMap<String, [u64; {part} + 1]> }}
             impl Part{part} {{
                 pub fn sum(&self) -> u64 {{
                     self.list.iter().flatten().map(|n| u64::from(*n) * {part}).sum::<u64>()
                         + self.map.values().flat_map(|words| words.iter().rev()).fold({part}_u64, |all, word| all.rotate_left(3) ^ word)
                 }}
             }}\n",
            bits = [8, 16, 32, 64][part as usize % 4],
        );
    }
    text
}
