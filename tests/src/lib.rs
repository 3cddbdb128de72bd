//! Harness, simulator and whole-system tests of userswap.

// Of 64-bit machines, and of no use to anybody else.
#![allow(clippy::cast_possible_truncation, clippy::should_implement_trait)]

pub mod faults;
pub mod fuzz;
pub mod own;
pub mod pages;
pub mod plain;
pub mod random;
pub mod script;
pub mod sim;
pub mod watch;
