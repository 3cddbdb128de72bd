//! Harness, simulator and whole-system tests of userswap.

pub mod own;
pub mod pages;
pub mod plain;
pub mod random;
pub mod script;
pub mod sim;
pub mod watch;
