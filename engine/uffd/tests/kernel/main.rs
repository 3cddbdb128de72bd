//! The crate against the real kernel: every answer, every event and every surprise it is built upon.
//!
//! Each test runs real threads or processes. What a machine lacks is said by name as `SKIPPED`. Nothing sleeps to let something else
//! happen: tests wait for messages, for the kernel's own count of waiting threads, or for a process to end.

#![expect(clippy::unwrap_used, reason = "a test's helper that fails fails the test")]

mod answers;
mod events;
mod faults;
mod forks;
mod lifetime;
mod memory;
mod moves;
mod others;
mod support;
