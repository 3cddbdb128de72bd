//! Real programs that know nothing of userswap, one module a program: they have to do under `userswap run` what they do without it.

#![allow(clippy::unwrap_used)]

mod checker;
mod compiler;
mod java;
mod limited;
mod node;
mod pipeline;
mod python;
mod redis;
mod remapped;
mod sqlite;
mod stores;
mod suite;
mod threads;
mod watch;

#[path = "../program/filler.rs"]
#[allow(dead_code, reason = "of the tests of the program")]
mod filler;
#[path = "../program/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the program, which use the rest")]
mod support;

#[path = "../src/watch.rs"]
#[allow(dead_code, unreachable_pub, reason = "of the whole-system tests: a library, which uses the rest")]
mod waiting;
