//! A join of two tables, four times as large with what it makes as the memory it may have: which lines of this machine's text files are in others of them, too?
//!
//! ```text
//! cargo run --release --example join                        # in a region that pages itself
//! cargo run --release --example join -- --memory plain      # in ordinary memory; for a memory cgroup
//! ```
//!
//! It is what databases call a Grace hash join: both tables are gone through once and their rows scattered over partitions by the hash of their key, so
//! that rows which belong together lie together; then each partition, which is small, is joined by itself. Everything is read and written in order, and what
//! is done with is dropped: that is how to use memory that leaves.

#[path = "../corpus/files.rs"]
mod files;
mod join;
mod memory;
mod tables;

use clap::{Parser, ValueEnum};
use join::{Key, join};
use memory::{Advice, Memory};
use std::path::PathBuf;
use std::time::Instant;
use tables::Tables;

/// Joins the lines of text files with those of others.
#[derive(Parser)]
struct Options {
    /// MB of memory for both tables and the partitions; a quarter of it is kept in memory.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(48..=3000))]
    size: u32,
    /// What the memory is.
    #[arg(long, value_enum, default_value_t = Kind::Inline)]
    memory: Kind,
    /// What the memory is told of how it is used.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Advice::Order, Advice::Passed, Advice::Drop])]
    advice: Vec<Advice>,
    /// How often the tables are joined, by one key and by another in turn.
    #[arg(long, default_value_t = 4)]
    joins: u32,
    /// Where pages go.
    #[arg(long, default_value = "ram:lz4")]
    store: String,
    /// Afterwards, do the same without partitions in as much memory as it takes, and compare.
    #[arg(long)]
    check: bool,
    /// Where to take text from; wherever this machine has some, unless told.
    directories: Vec<PathBuf>,
}

/// Memory to join in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A region whose faults the faulting thread serves.
    Inline,
    /// A region whose faults handler threads serve.
    Local,
    /// Ordinary memory, as much as there is.
    Plain,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let bytes = (options.size as usize * 1_000_000).next_multiple_of(userswap_uffd::page_size());
    let mut memory = match options.memory {
        Kind::Plain => Memory::plain(bytes)?,
        kind => Memory::paged(bytes, &options.store, kind == Kind::Inline)?,
    };
    memory.heed(&options.advice)?;
    let tables = Tables::load(&mut memory, &options.directories)?;
    println!("{} and {} rows, {} bytes", tables.left.rows, tables.right.rows, tables.bytes());
    let mut seconds = 0.0;
    for number in 0..options.joins {
        let key = if number % 2 == 0 { Key::Line } else { Key::Start };
        let from = Instant::now();
        let joined = join(&mut memory, &tables, key);
        seconds += from.elapsed().as_secs_f64();
        println!("join {number}: {} pairs, {} bytes", joined.pairs, joined.bytes);
        if options.check && joined != join::check(&memory, &tables, key) {
            return Err("another answer than without partitions".into());
        }
    }
    println!("seconds: {seconds:.3}");
    println!("{}", memory.moved());
    Ok(())
}
