//! Harness, simulator and whole-system tests of userswap.

pub mod plain;
pub mod sim;
