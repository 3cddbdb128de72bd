//! The daemon beside the search engine: it moves the engine's memory out and back, and shows what that does.

use crate::Options;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use userswap::{Server, Store};
use userswap_policy::Budget;
use userswap_uffd::probe::{Answer, Capability};

/// Starts a daemon here and the search engine in a process of its own, and shows how they do.
pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    check_machine()?;
    let scratch = Scratch::new()?;
    let socket = scratch.0.join("sock");
    let store = userswap_stores::open(&options.store, userswap_uffd::page_size())?;
    let server = Server::builder(Arc::clone(&store)).contract(options.contract()).listen(&socket).start()?;
    let mut search = Search::start(options, &socket)?;
    println!("{} (contract: {}, store: {})", search.loaded, options.contract_name(), options.store);
    println!("\n{:28} {:>10} {:>13} {:>10} {:>10}", "", "answers/s", "in memory, MB", "out, MB", "store, MB");
    let seconds = Duration::from_secs(options.seconds);
    let mut show = Show { search: &mut search, server: &server, store: &*store };

    show.phase("all in memory", seconds, || Ok(()))?;
    let managed = show.in_memory()?;
    server.set_budget(Budget { client: Some(managed / 4), total: None });
    show.phase("held to a quarter", seconds, || Ok(()))?;
    server.set_budget(Budget::default());
    let pid = show.search.child.id();
    let mut moved = 0;
    let churn = options.churn.map_or(seconds, Duration::from_secs);
    show.phase("moved out over and over", churn, || {
        moved += server.evict(pid, None)?.moved;
        Ok(())
    })?;
    server.drain()?;
    show.phase("brought back", seconds, || Ok(()))?;

    let answered = search.end()?;
    println!("\n{answered} answers, all right; {moved} pages were moved out at full speed");
    let left = store.stats().pages;
    if left == 0 { Ok(()) } else { Err(format!("{left} pages were left in the store").into()) }
}

/// That this machine and this user can do what a daemon needs.
fn check_machine() -> Result<(), String> {
    let needed = [Capability::Events, Capability::ForkEvents, Capability::Pidfd, Capability::ReadMemory];
    for (capability, answer) in userswap_uffd::probe().answers() {
        if let Answer::No { why, remedy } = answer
            && needed.contains(&capability)
        {
            return Err(format!(
                "a daemon needs {}: {why}. As root it should work; else: {remedy}",
                capability.name()
            ));
        }
    }
    Ok(())
}

/// Prints a line a second.
struct Show<'a> {
    search: &'a mut Search,
    server: &'a Server,
    store: &'a dyn Store,
}

impl Show<'_> {
    /// Does `work` over and over for so long, with a line a second.
    fn phase(
        &mut self,
        name: &str,
        length: Duration,
        mut work: impl FnMut() -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let start = Instant::now();
        let mut line = (start, self.search.answered());
        let mut named = name;
        while start.elapsed() < length {
            if let Err(error) = work() {
                // A search engine that is gone has something to say about it.
                self.search.check()?;
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
            let since = line.0.elapsed();
            if since >= Duration::from_secs(1).min(length) {
                let answered = self.search.answered();
                let rate = (answered - line.1) as f64 / since.as_secs_f64();
                let out: u64 = self.server.clients().iter().map(|client| client.out_bytes).sum();
                let (memory, held) = (self.in_memory()?, self.store.stats().memory_bytes);
                println!("{named:28} {rate:>10.0} {:>13} {:>10} {:>10}", mb(memory), mb(out), mb(held));
                line = (Instant::now(), answered);
                named = "";
                self.search.check()?;
            }
        }
        Ok(())
    }

    /// Bytes of private memory of the search engine that are in RAM.
    fn in_memory(&self) -> Result<u64, Box<dyn Error>> {
        let path = format!("/proc/{}/smaps_rollup", self.search.child.id());
        let rollup = std::fs::read_to_string(path)?;
        let kilobytes = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let kilobytes = kilobytes.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kilobytes.ok_or("the kernel doesn't tell what is in memory")? << 10)
    }
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}

/// The search engine's process, ended when dropped.
struct Search {
    child: Child,
    loaded: String,
    answered: Arc<AtomicU64>,
    /// Reads what it says, to the end; tells whether all was right then.
    listener: Option<std::thread::JoinHandle<bool>>,
}

impl Search {
    fn start(options: &Options, socket: &std::path::Path) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--socket")
            .arg(socket)
            .args(["--contract", options.contract_name(), "--seconds", "0"])
            .args(["--size", &options.size.to_string(), "--threads", &options.threads.to_string()])
            .args(["--seed", &options.seed.to_string(), "--rest", &options.rest.to_string()])
            .args(&options.directories)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let Some(output) = child.stdout.take() else { return Err("a pipe is missing".into()) };
        let answered = Arc::new(AtomicU64::new(0));
        let mut search = Self { child, loaded: String::new(), answered, listener: None };
        let mut output = BufReader::new(output);
        output.read_line(&mut search.loaded)?;
        search.loaded = search.loaded.trim_end().to_owned();
        if search.loaded.is_empty() {
            search.child.wait()?;
            return Err("the search engine ended before it had loaded anything".into());
        }
        let answered = Arc::clone(&search.answered);
        search.listener = Some(std::thread::spawn(move || {
            let mut all_right = false;
            for line in output.lines().map_while(Result::ok) {
                if let Some(number) = line.strip_prefix("answered ").and_then(|number| number.parse().ok()) {
                    answered.store(number, Ordering::Relaxed);
                }
                all_right = line == "all right";
            }
            all_right
        }));
        Ok(search)
    }

    /// Answers so far.
    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// That it still runs.
    fn check(&mut self) -> Result<(), Box<dyn Error>> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the search engine has ended: {status}").into()),
        }
    }

    /// Has it check everything and end. Tells how many answers it gave.
    fn end(mut self) -> Result<u64, Box<dyn Error>> {
        drop(self.child.stdin.take());
        let all_right = self.listener.take().is_some_and(|listener| listener.join().unwrap_or(false));
        let status = self.child.wait()?;
        if all_right && status.success() {
            Ok(self.answered())
        } else {
            Err(format!("the search engine found something wrong: {status}").into())
        }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for the socket that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("userswap-search-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
