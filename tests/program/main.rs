//! The program `userswap` as its users meet it, one module a behaviour.

#![allow(clippy::unwrap_used)]

mod confined;
mod daemon;
mod deaths;
mod dumps;
mod edges;
mod filler;
mod idle;
mod lives;
mod managed;
mod manual;
mod orders;
mod orphans;
mod patient;
mod policies;
mod refusals;
mod run;
mod served;
mod signals;
mod soak;
mod stores;
mod support;
mod traces;
mod trials;
mod troubles;
