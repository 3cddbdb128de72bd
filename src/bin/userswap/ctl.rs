//! `userswap ctl`

use crate::args::{Ctl, Order, Told};
use crate::bytes::Bytes;
use crate::failure::{Failure, Status};
use crate::policy;
use crate::run::progress;
use crate::working_set;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;
use userswap::daemon::control::{
    self, ClientReport, Drained, Evicted, Hinted, Hints, InForce, Limited, Operator, Request, Restored,
};

/// Asks a daemon, and prints its answer.
pub(crate) fn ctl(args: &Ctl) -> Result<ExitCode, Failure> {
    let path = args.control.as_deref().ok_or_else(|| {
        Failure::new(Status::Usage, "say which daemon: --control PATH, as it was given to the daemon")
    })?;
    match &args.order {
        Order::Status => exchange(args, path, Request::Status, print_status),
        Order::Clients => {
            exchange(args, path, Request::Clients, |clients: &Vec<ClientReport>| print_clients(clients))
        }
        Order::Evict { pid, bytes } => {
            let _shown = show(path, *pid, "moving out");
            let request = Request::Evict { pid: *pid, bytes: bytes.map(|bytes| bytes.0) };
            exchange(args, path, request, |evicted: &Evicted| {
                print!("{} moved out, {} stored", Bytes(evicted.moved_bytes), Bytes(evicted.stored_bytes));
                if evicted.pinned_pages > 0 {
                    print!(", {} pages can't move now", evicted.pinned_pages);
                }
                println!();
            })
        }
        Order::Restore { pid } => {
            let _shown = show(path, *pid, "bringing back");
            exchange(args, path, Request::Restore { pid: *pid }, |restored: &Restored| {
                println!("{} brought back", Bytes(restored.restored_bytes));
            })
        }
        Order::WorkingSet(order) => working_set::order(args, path, order),
        Order::Limit { size } => {
            exchange(args, path, Request::Limit { bytes: size.0 }, |limited: &Limited| {
                match limited.limit_bytes {
                    0 => println!("no limit"),
                    bytes => println!("limited to {}", Bytes(bytes)),
                }
            })
        }
        Order::Policy { policy } => {
            let set = policy.as_deref().map(policy::read).transpose()?.map(Box::new);
            exchange(args, path, Request::Policy { set }, |force: &InForce| match &force.policy {
                Some(settings) => print!("{}", policy::as_file(settings)),
                None => println!("a policy of the daemon's own"),
            })
        }
        Order::Hint { pid, hints } => {
            let mut told = Hints::default();
            for (what, so) in hints {
                let field = match what {
                    Told::Visible => &mut told.visible,
                    Told::Audible => &mut told.audible,
                    Told::Loading => &mut told.loading,
                    Told::Frozen => &mut told.frozen,
                };
                *field = Some(*so);
            }
            exchange(args, path, Request::Hint { pid: *pid, hints: told }, |_: &Hinted| println!("told"))
        }
        Order::Drain => exchange(args, path, Request::Drain, |drained: &Drained| {
            println!("everything is back, {} programs let go", drained.clients);
        }),
    }
}

fn exchange<T: DeserializeOwned + Serialize>(
    args: &Ctl,
    path: &Path,
    request: Request,
    print: impl Fn(&T),
) -> Result<ExitCode, Failure> {
    let answer: T = Operator::connect(path)?.ask(request)?;
    if args.json {
        let json = serde_json::to_string(&answer).map_err(|error| Failure::of("writing JSON", &error))?;
        println!("{json}");
    } else {
        print(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows on a terminal how far a long move is.
fn show(path: &Path, pid: u32, doing: &'static str) -> Option<progress::Shown> {
    let path = path.to_path_buf();
    progress::Shown::start(move || {
        let clients: Vec<ClientReport> = Operator::connect(&path).ok()?.ask(Request::Clients).ok()?;
        let client = clients.iter().find(|client| client.pid == pid)?;
        Some(format!(
            "{doing}: {} in memory, {} out",
            Bytes(client.resident_bytes),
            Bytes(client.moved_out_bytes)
        ))
    })
}

fn print_clients(clients: &[ClientReport]) {
    println!("{:>9}  {:>10}  {:>10}  {:>10}", "PID", "IN MEMORY", "OUT", "STANDBY");
    for client in clients {
        let pid = if client.pid == 0 { "(forked)".to_owned() } else { client.pid.to_string() };
        println!(
            "{pid:>9}  {:>10}  {:>10}  {:>10}",
            Bytes(client.resident_bytes).to_string(),
            Bytes(client.moved_out_bytes).to_string(),
            Bytes(client.standby_bytes).to_string()
        );
    }
}

fn print_status(status: &control::Status) {
    let control::Status { worker_pid, limit_bytes, clients, store, totals, confinement } = status;
    println!("worker       {worker_pid}");
    let calls = if confinement.system_calls_filtered { "filtered" } else { "all" };
    println!("privileges   {}; system calls: {calls}", confinement.capabilities.join(", "));
    match limit_bytes {
        0 => println!("limit        none"),
        bytes => println!("limit        {}", Bytes(*bytes)),
    }
    println!(
        "store        {}: {} in {} of memory, {:.2} to 1, {} same-filled pages",
        store.name,
        Bytes(store.raw_bytes),
        Bytes(store.memory_bytes),
        store.ratio,
        store.same_filled_pages
    );
    if store.device_bytes > 0 {
        println!("             {} of its file or device", Bytes(store.device_bytes));
    }
    for (name, figure) in &store.figures {
        println!("             {name} {figure}");
    }
    println!("moved        {} pages out, {} in", totals.pages_out, totals.pages_in);
    let judged = totals.along_used + totals.along_unused;
    println!(
        "along        {} pages; of {judged} with a verdict {:.0}% were used",
        totals.pages_along,
        totals.along_used as f64 * 100.0 / judged.max(1) as f64
    );
    println!(
        "faults       {}, p50 {} p99 {} max {} µs in the daemon",
        totals.faults,
        totals.fault_ns.p50 / 1000,
        totals.fault_ns.p99 / 1000,
        totals.fault_ns.max / 1000
    );
    println!("peak         {} in memory", Bytes(totals.peak_pss_anon_bytes));
    if totals.poisoned_pages > 0 {
        println!("LOST         {} pages", totals.poisoned_pages);
    }
    println!();
    print_clients(clients);
}
