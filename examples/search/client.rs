//! The search engine: a program that takes part in swapping.

use crate::Options;
use crate::corpus::{self, Corpus, quiz::Quiz};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use userswap::Client;
use userswap_uffd::{Mapping, Protection, page_bytes};

/// Offers its memory to the daemon at `socket`, loads text into it, and answers until time is up.
///
/// Prints `loaded …` once, `answered N` (all in all) ten times a second, and `all right` when, in the end, everything was checked.
pub(crate) fn run(options: &Options, socket: &Path) -> Result<(), Box<dyn Error>> {
    let room = corpus::room_for(options.text_bytes()) as u64;
    let mapping = Mapping::new(room.next_multiple_of(page_bytes()), Protection::READ_WRITE)?;
    let client = Client::builder(socket).contract(options.contract()).connect()?;
    // From here on it may be moved out at any time, while it is filled as well. It stays mapped: the process ends first.
    client.offer(mapping.span());
    let span = mapping.leak();
    // SAFETY: needed because the memory isn't Rust's. It is mapped for good, zeroed, and known to nobody else. The daemon moves
    // pages out and back behind the reference, but a load finds what was last stored, or waits for it.
    let memory = unsafe {
        std::slice::from_raw_parts_mut(
            std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(span.start())?),
            usize::try_from(span.len())?,
        )
    };
    let corpus = corpus::load(memory, options.text_bytes(), &options.directories)?;
    println!("loaded {}", describe(&corpus));
    answer(options, &corpus, memory)?;
    Quiz::new(&corpus, memory, options.seed).check_all()?;
    println!("all right");
    Ok(())
}

/// What there is to search in, in a line.
pub(crate) fn describe(corpus: &Corpus) -> String {
    let again = match corpus.repeats {
        0 => String::new(),
        repeats => format!(" (too few: taken {repeats} more times, with salted lines)"),
    };
    format!(
        "{} MB of text from {} files{again} in {} passages, {} MB with the index",
        corpus.text_bytes / 1_000_000,
        corpus.files,
        corpus.index.passages(),
        corpus.index.bytes() / 1_000_000
    )
}

/// Has threads ask questions until time is up or an answer is wrong.
fn answer(options: &Options, corpus: &Corpus, memory: &[u8]) -> Result<(), String> {
    let (answered, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..u64::from(options.threads))
            .map(|thread| {
                let mut quiz = Quiz::new(corpus, memory, options.seed.wrapping_add(thread << 32));
                let (answered, over) = (&answered, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        quiz.ask().inspect_err(|_| over.store(true, Ordering::Relaxed))?;
                        answered.fetch_add(1, Ordering::Relaxed);
                        if options.rest > 0 {
                            std::thread::sleep(Duration::from_micros(options.rest));
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        if options.seconds == 0 {
            // Not joined: it waits for input, which may never end if an answer is wrong.
            let until = InputEnds::watch();
            report(&answered, &over, || until.is_over());
        } else {
            let end = Instant::now() + Duration::from_secs(options.seconds);
            report(&answered, &over, || Instant::now() >= end);
        }
        over.store(true, Ordering::Relaxed);
        askers.into_iter().try_for_each(|asker| match asker.join() {
            Ok(ended) => ended,
            Err(_) => Err("a thread that asks has panicked".into()),
        })
    })
}

fn report(answered: &AtomicU64, over: &AtomicBool, is_end: impl Fn() -> bool) {
    while !over.load(Ordering::Relaxed) && !is_end() {
        std::thread::sleep(Duration::from_millis(100));
        // Whoever listened may be gone; that is no reason to stop.
        let _ = writeln!(std::io::stdout(), "answered {}", answered.load(Ordering::Relaxed));
    }
}

/// Tells whether standard input has ended.
struct InputEnds(std::thread::JoinHandle<()>);

impl InputEnds {
    fn watch() -> Self {
        Self(std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }))
    }

    fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}
