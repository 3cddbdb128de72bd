//! The search engine's text in a region that pages itself: a quarter of the text's size stays in memory, the rest is compressed.
//!
//! `cargo run --release --example search_local`

mod corpus;

use clap::Parser;
use corpus::quiz::Quiz;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use userswap::PagedRegion;

/// Answers questions about the text of this machine's files, from a region that pages itself.
#[derive(Parser)]
struct Options {
    /// Text to load, in MB; a quarter of that is kept in memory.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1500))]
    size: u32,
    /// How long to ask.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Threads that ask.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Where pages go.
    #[arg(long, default_value = "ram:zstd")]
    store: String,
    /// Where to take text from; wherever this machine has some, unless told.
    directories: Vec<PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let text = options.size as usize * 1_000_000;
    let store = userswap_stores::open(&options.store, userswap_uffd::page_size())?;
    let mut region =
        PagedRegion::builder(corpus::room_for(text) as u64, store.clone()).limit(text as u64 / 4).build()?;
    let corpus = corpus::load(region.as_mut_slice(), text, &options.directories)?;
    println!(
        "{} MB of text from {} files ({} repeats) in {} passages, {} MB with the index, {} MB of it kept in memory",
        corpus.text_bytes / 1_000_000,
        corpus.files,
        corpus.repeats,
        corpus.index.passages(),
        corpus.index.bytes() / 1_000_000,
        text / 4_000_000,
    );
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (corpus, memory) = (&corpus, region.as_slice());
    let answered = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..options.threads)
            .map(|seed| {
                scope.spawn(move || {
                    let mut quiz = Quiz::new(corpus, memory, seed);
                    let mut answered = 0_u64;
                    while Instant::now() < end {
                        quiz.ask()?;
                        answered += 1;
                    }
                    Ok(answered)
                })
            })
            .collect();
        askers.into_iter().try_fold(0, |sum, asker| match asker.join() {
            Ok(Ok(answered)) => Ok(sum + answered),
            Ok(Err(wrong)) => Err(wrong),
            Err(_) => Err("a thread that asks has panicked".to_owned()),
        })
    })?;
    let usage = region.usage();
    println!(
        "{answered} answers, all right; {} MB in memory, {} MB out, in {} MB of the store",
        usage.resident_bytes / 1_000_000,
        usage.out_bytes / 1_000_000,
        store.stats().memory_bytes / 1_000_000,
    );
    Quiz::new(corpus, memory, 0).check_all()?;
    println!("all right");
    Ok(())
}
