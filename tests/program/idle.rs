//! A daemon whose clients do nothing.

use crate::daemon::Daemon;
use crate::support::{Place, Talk, ask, can_serve, until};
use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;

/// Nothing wakes up but timers a second apart, in the daemon as in its clients' agents.
#[test]
fn a_daemon_with_clients_at_rest_is_at_rest() {
    if !can_serve("a_daemon_with_clients_at_rest_is_at_rest") {
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::start(&place, &[]);
    let mut clients: Vec<Talk> = (0..CLIENTS)
        .map(|_| Talk::start(&mut place.userswap(&["run", "-q", "--daemon", &place.at("s"), "--", "cat"])))
        .collect();
    for client in &mut clients {
        writeln!(client.child.stdin.as_mut().unwrap(), "here").unwrap();
        client.expect("here");
    }
    let known = until("all are known", || {
        let known: Vec<u32> = ask(&place, &["clients"])
            .as_array()?
            .iter()
            .filter_map(|client| u32::try_from(client["pid"].as_u64()?).ok())
            .collect();
        (known.len() == CLIENTS).then_some(known)
    });
    let keeper = daemon.keeper.id();
    until("nothing wakes up oftener than once a second", || {
        let (began, before) = (Instant::now(), wakeups(keeper, &known));
        std::thread::sleep(Duration::from_secs(4));
        let after = wakeups(keeper, &known);
        // A half more than once a second, and one that fell into it by its both ends.
        let most = began.elapsed().as_secs_f64() * 1.5 + 2.0;
        let restless: Vec<_> = after
            .iter()
            .filter(|(thread, wakeups)| (**wakeups - before.get(*thread).copied().unwrap_or(0)) as f64 > most)
            .collect();
        // A thread for each client, at least, and an agent in each.
        let all = before.len() > 2 * CLIENTS && before.len() == after.len();
        if !restless.is_empty() {
            println!("at work: {restless:?}");
        }
        (all && restless.is_empty()).then_some(())
    });
    for client in &mut clients {
        assert!(client.end().success());
    }
    daemon.end();
    place.assert_clean();
}

/// How often each thread of the daemon's processes and each agent of the clients has gone to sleep.
fn wakeups(keeper: u32, clients: &[u32]) -> HashMap<String, u64> {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let worker = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let mut found = HashMap::new();
    for process in worker.chain([keeper]) {
        found.extend(of_threads(process, |_| true));
    }
    for client in clients {
        found.extend(of_threads(*client, |name| name == "userswap"));
    }
    found
}

fn of_threads(process: u32, counts: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
            let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
            let (name, number) = (of("Name:")?, of("Pid:")?);
            let slept = of("voluntary_ctxt_switches:")?.parse().ok()?;
            counts(name).then(|| (format!("{name} {number}"), slept))
        })
        .collect()
}
