//! The default policy on the traces of real programs in `traces/`.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use userswap_policy::replay::{Policy, replay};
use userswap_policy::trace::Trace;

fn load(name: &str) -> Trace {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces").join(name).with_extension("trace");
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() <= 200 << 10, "{name} has {} bytes", bytes.len());
    Trace::from_bytes(&bytes).unwrap()
}

/// With half of the pages in memory, the default misses at most so many hundredths of what the best of those misses that see every touch.
fn at_half(name: &str, most: u64) {
    let trace = load(name);
    let room = trace.footprint() / 2;
    let misses = |policy| replay(&trace, policy, room).misses;
    let (default, belady) = (misses(Policy::Default), misses(Policy::Belady));
    let best = Policy::SEEING.map(misses).into_iter().min().unwrap();
    println!(
        "{name}: {default} misses, {} hundredths of the best ({best}), Belady {belady}",
        default * 100 / best.max(1)
    );
    assert!(belady <= best && belady <= default);
    assert!(default * 100 <= best * most, "{name}: {default}, and the best misses {best}");
}

#[test]
fn python() {
    at_half("python", 115);
}

#[test]
fn redis_zipf() {
    at_half("redis-zipf", 115);
}

#[test]
fn redis_scan() {
    at_half("redis-scan", 115);
}

#[test]
fn java() {
    at_half("java", 115);
}

/// One that nothing was chosen by.
#[test]
fn sqlite() {
    at_half("sqlite", 115);
}

/// Recorded after everything was chosen.
#[test]
fn perl() {
    at_half("perl", 115);
}

/// Grows all the while and hardly ever needs again what it didn't use lately: who sees what is used misses next to nothing, who doesn't has to find out.
#[test]
fn compiler() {
    at_half("compiler", 440);
}

/// As the compiler, and another that nothing was chosen by.
#[test]
fn node() {
    at_half("node", 350);
}
