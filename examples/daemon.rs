//! A swap daemon in a page: clients connect, are held to a limit each, and are let go when the daemon ends.
//!
//! ```text
//! cargo run --release --example daemon -- /tmp/userswap.sock --limit 64
//! cargo run --release --example search -- --socket /tmp/userswap.sock
//! ```
//! It takes commands on standard input: `status`, `evict` (everything of everybody), `restore`; the end of the input ends it.

use clap::Parser;
use std::path::PathBuf;
use userswap::{Contract, Server};
use userswap_store::Budget;

#[derive(Parser)]
struct Options {
    /// Where to listen.
    socket: PathBuf,
    /// Where pages go.
    #[arg(long, default_value = "ram:zstd")]
    store: String,
    /// The most a client keeps in memory, in MiB; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// Speak the mirrored contract alone.
    #[arg(long)]
    strict: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let store = userswap_stores::open(&options.store, userswap_uffd::page_size())?;
    let server = Server::builder(store.clone())
        .contract(if options.strict { Contract::Strict } else { Contract::Extended })
        .client_limit(options.limit << 20)
        .listen(&options.socket)
        .start()?;
    println!("listening");
    for line in std::io::stdin().lines() {
        match line?.trim() {
            "status" => {}
            "evict" => each(&server, |pid| server.evict(pid, None).map(drop)),
            "restore" => each(&server, |pid| server.restore(pid).map(drop)),
            other => println!("not a command: {other}"),
        }
        // Memory that freed objects leave half empty is tidied up when somebody says so.
        store.maintain(Budget::UNLIMITED);
        let clients = server.clients();
        let managed: u64 = clients.iter().map(|client| client.managed_bytes).sum();
        let out: u64 = clients.iter().map(|client| client.out_bytes).sum();
        let stats = store.stats();
        let (stored, held) = (stats.pages, stats.memory_bytes);
        println!("clients {} managed {managed} out {out} stored {stored} held {held}", clients.len());
    }
    // Whatever is out comes back before the daemon goes.
    Ok(server.drain()?)
}

/// Does something to every client; one that has just gone is no reason to stop.
fn each(server: &Server, what: impl Fn(u32) -> Result<(), userswap::ServerError>) {
    for client in server.clients().iter().filter(|client| client.pid != 0) {
        if let Err(error) = what(client.pid) {
            println!("process {}: {error}", client.pid);
        }
    }
}
