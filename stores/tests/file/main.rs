//! The file store: the laws, what it is for, and what goes wrong with files.
#![cfg(feature = "file")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod killed;
mod kinds;
mod laws;
#[path = "../pages/mod.rs"]
mod pages;
mod support;
mod troubles;
mod unchanged;
