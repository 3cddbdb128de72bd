//! The program `userswap` as its users meet it, one module a behaviour.

#![allow(clippy::unwrap_used)]

fn main() {}
