//! Whole-system tests against the real kernel, one module a behaviour.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod budget;
mod child;
mod client;
mod clients;
mod defects;
mod examples;
mod forks;
mod fuzz;
mod gate;
mod handlers;
mod inline;
mod late;
mod outcomes;
mod own;
mod path;
mod policy;
mod prefetch;
mod program;
mod ranges;
mod region;
mod sim;
mod specification;
