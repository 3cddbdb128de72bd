//! A program that takes part: it offers 8 MiB and answers for what is in it.

use crate::sys;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use userswap::{Client, Contract};
use userswap_ipc::client::Builder;
use userswap_ipc::extension::HintKind;
use userswap_ipc::superpages::OwnMaps;
use userswap_tests::pages::Pages;
use userswap_tests::random::Random;
use userswap_uffd::{Mapping, Protection, Span};

const BYTES: u64 = 8 << 20;

/// Offers everything it has in larger mappings, its allocator's memory among it.
pub(crate) fn run_with_all(path: &str) {
    play(Client::builder(path).superpages(OwnMaps { min_bytes: 1 << 20 }));
}

pub(crate) fn run(path: &str, contract: &str) {
    let contract = if contract == "strict" { Contract::Strict } else { Contract::Extended };
    play(Client::builder(path).contract(contract));
}

fn play(builder: Builder) {
    let client = match builder.connect() {
        Ok(client) => client,
        Err(error) => {
            println!("refused: {error}");
            return;
        }
    };
    let memory = Mapping::new(BYTES + (2 << 20), Protection::READ_WRITE).unwrap();
    let start = memory.span().start().next_multiple_of(2 << 20);
    let span = Span::new(start, BYTES).unwrap();
    let whole = sys::pages_of(&memory);
    let pages = whole.part((start - memory.span().start()) / 4096, BYTES / 4096);
    pages.fill_all(value);
    assert!(client.offer(span));
    println!("ready");
    let mut churning: Option<Churn> = None;
    // Unbuffered, for a forked child that goes on reading.
    let mut line = String::new();
    loop {
        line.clear();
        while !line.ends_with('\n') {
            let mut byte = [0u8; 1];
            match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
                Ok(1) => line.push(char::from(byte[0])),
                _ => return,
            }
        }
        match line.trim_end() {
            "check" => {
                pages.assert_all(value);
                println!("checked");
            }
            "offer page by page" => {
                assert!(client.withdraw(span));
                assert!(span.pieces(4096).all(|page| client.offer(page)));
                println!("offered");
            }
            "churn" => {
                churning = Some(Churn::start(pages));
                println!("churning");
            }
            "rest" => {
                let touches = churning.take().unwrap().stop();
                assert!(touches > 0);
                println!("rested");
            }
            "wait on a page" => println!("{}", wait_on(pages)),
            "still waiting" => println!("{}", userfault_waiters()),
            "fork" => println!("{}", if fork(pages) { "child ended well" } else { "child ended badly" }),
            "fork again and again" => {
                let well = (0..20).all(|_| sys::reap(sys::fork(|| sys::all_hold(pages, value))));
                println!("{}", if well { "children ended well" } else { "children ended badly" });
            }
            "leave a child" => {
                let child = sys::fork(|| {
                    sys::tell("child here\n");
                    let intact = sys::told() && sys::all_hold(pages, value);
                    sys::tell(if intact { "child saw all\n" } else { "child saw damage\n" });
                    intact
                });
                assert!(child > 0);
                return;
            }
            "freeze" | "thaw" => {
                let frozen = u64::from(line.trim_end() == "freeze");
                client.hint(HintKind::Frozen, frozen).unwrap();
                println!("told");
            }
            "end" => return,
            other => panic!("not told what {other} means"),
        }
    }
}

/// What a page of a client holds.
pub(crate) fn value(page: u64) -> u64 {
    page + 1
}

/// A child that sees everything and changes half of it, while its parent goes on; and its child.
fn fork(pages: Pages) -> bool {
    let child = sys::fork(|| {
        let seen = sys::all_hold(pages, value);
        (0..pages.len()).step_by(2).for_each(|page| pages.fill(page, !value(page)));
        let changed = |page: u64| if page.is_multiple_of(2) { !value(page) } else { value(page) };
        let grandchild = sys::fork(|| sys::all_hold(pages, changed));
        seen && sys::all_hold(pages, changed) && sys::reap(grandchild)
    });
    pages.assert_all(value);
    sys::reap(child)
}

/// Two threads that read and write all over.
struct Churn {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Churn {
    fn start(pages: Pages) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicU64::new(0));
        let half = pages.len() / 2;
        let threads: Vec<_> = (0..2)
            .map(|number| {
                let (part, stop, begun) =
                    (pages.part(number * half, half), Arc::clone(&stop), Arc::clone(&begun));
                std::thread::spawn(move || {
                    let mut random = Random::new(number);
                    let mut touches = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let page = random.below(half);
                        let due = value(number * half + page);
                        assert_eq!(part.read(page), Ok(due));
                        if random.one_in(4) {
                            part.fill(page, due);
                        }
                        touches += 1;
                        begun.fetch_add(1, Ordering::Relaxed);
                    }
                    touches
                })
            })
            .collect();
        userswap_tests::watch::until("both threads touch", || begun.load(Ordering::Relaxed) > 100);
        Self { stop, threads }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    }
}

/// Touches pages in a thread until one makes it wait, or there is none that does.
fn wait_on(pages: Pages) -> &'static str {
    let thread = std::thread::spawn(move || (0..pages.len()).all(|page| pages.read(page) == Ok(value(page))));
    loop {
        if thread.is_finished() {
            return if thread.join().unwrap() { "read" } else { "read something else" };
        }
        if userfault_waiters() > 0 {
            return "waiting";
        }
        std::thread::yield_now();
    }
}

/// Threads of this process that wait for a page.
fn userfault_waiters() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let wchan = task.as_ref().unwrap().path().join("wchan");
            std::fs::read_to_string(wchan).is_ok_and(|wchan| wchan.contains("userfault"))
        })
        .count()
}
