//! Whole-system tests against the real kernel, one module a behaviour.

#![allow(clippy::unwrap_used)]

mod child;
mod client;
mod examples;
mod gate;
mod program;
mod region;
mod sim;
