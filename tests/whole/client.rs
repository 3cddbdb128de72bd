//! A cooperating client in another process: moved out and back by a daemon, by both contracts, while it works, forks, and ends.

use crate::child::{self, Part, Scratch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use userswap::{Contract, Server, ServerBuilder};
use userswap_engine::core::Transition;
use userswap_ipc::wire::MAX_REGIONS;
use userswap_tests::plain::PlainStore;
use userswap_tests::watch::{Watchdog, rounds, until};

pub(crate) const BYTES: u64 = 8 << 20;
const PAGES: u64 = BYTES / 4096;

/// A daemon in this process, and what clients find it by.
pub(crate) struct Daemon {
    pub(crate) server: Server,
    pub(crate) store: Arc<PlainStore>,
    contract: Contract,
    scratch: Scratch,
}

impl Daemon {
    pub(crate) fn start(contract: Contract, settings: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let (store, scratch) = (Arc::new(PlainStore::default()), Scratch::new());
        let builder =
            Server::builder(Arc::clone(&store) as _).contract(contract).listen(scratch.path("sock"));
        Self { server: settings(builder).start().unwrap(), store, contract, scratch }
    }

    /// A client that has been taken on and offers its memory.
    pub(crate) fn client(&self) -> Part {
        let mut client = self.start_client("client");
        client.expect("ready");
        // It may be ready before it is in the books here.
        let pid = client.pid();
        until("the client is taken on", || self.server.pids().contains(&pid));
        client
    }

    pub(crate) fn start_client(&self, part: &str) -> Part {
        let contract = if self.contract == Contract::Strict { "strict" } else { "extended" };
        child::start(part, &[&self.scratch.socket(), contract])
    }

    pub(crate) fn socket(&self) -> String {
        self.scratch.socket()
    }

    /// Everything of a client's moves out.
    pub(crate) fn evict_all(&self, client: &Part) {
        let moved = self.server.evict(client.pid(), None).unwrap();
        assert_eq!((moved.moved, moved.stored), (PAGES, PAGES));
    }

    /// Clients are gone, and nothing of theirs is left.
    pub(crate) fn nothing_left(&self) {
        until("no client is left", || {
            self.server.engine().sweep();
            self.server.engine().spaces().is_empty() && self.server.pids().is_empty()
        });
        until("nothing is left in the store", || self.store.is_empty());
        assert_eq!(self.store.freed_twice(), 0);
    }
}

fn moves_out_and_back(contract: Contract) {
    let daemon = Daemon::start(contract, |builder| builder);
    let mut client = daemon.client();
    let pid = client.pid();
    for _ in 0..3 {
        daemon.evict_all(&client);
        assert_eq!(daemon.server.clients()[0].out_bytes, BYTES);
        client.ask("check", "checked");
    }
    daemon.evict_all(&client);
    assert_eq!(daemon.server.restore(pid).unwrap(), BYTES);
    daemon.server.drain().unwrap();
    client.ask("check", "checked");
    client.say("end");
    client.wait();
    daemon.nothing_left();
}

#[test]
fn an_extended_client_moves_out_and_back() {
    let _watch = Watchdog::new("an_extended_client_moves_out_and_back");
    moves_out_and_back(Contract::Extended);
}

/// Slots are used again and again: that they are mapped over, which the kernel tells of, is no reason to end the client.
#[test]
fn a_strict_client_moves_out_and_back() {
    let _watch = Watchdog::new("a_strict_client_moves_out_and_back");
    moves_out_and_back(Contract::Strict);
}

/// More ranges than an answer has room for: what is behind those is asked for when they are out.
#[test]
fn a_client_of_many_ranges_moves_out_whole() {
    let _watch = Watchdog::new("a_client_of_many_ranges_moves_out_whole");
    let daemon = Daemon::start(Contract::Extended, |builder| builder);
    let mut client = daemon.client();
    assert!(PAGES > u64::try_from(MAX_REGIONS).unwrap());
    client.ask("offer page by page", "offered");
    daemon.evict_all(&client);
    client.ask("check", "checked");
    client.say("end");
    client.wait();
    daemon.nothing_left();
}

/// Two threads read and write all over while everything is moved out again and again.
fn works_while_it_is_moved(contract: Contract, standby: bool) {
    let daemon = Daemon::start(contract, |builder| builder.standby(standby));
    let mut client = daemon.client();
    client.ask("churn", "churning");
    for _ in 0..rounds(12, 500) {
        daemon.server.evict(client.pid(), None).unwrap();
    }
    client.ask("rest", "rested");
    client.ask("check", "checked");
    let counts = daemon.server.total().counts;
    assert!(counts.get(Transition::Installed) > 0 && counts.get(Transition::Poisoned) == 0);
    client.say("end");
    client.wait();
    daemon.nothing_left();
}

#[test]
fn an_extended_client_works_while_it_is_moved() {
    let _watch = Watchdog::new("an_extended_client_works_while_it_is_moved");
    works_while_it_is_moved(Contract::Extended, false);
}

#[test]
fn a_strict_client_works_while_it_is_moved() {
    let _watch = Watchdog::new("a_strict_client_works_while_it_is_moved");
    works_while_it_is_moved(Contract::Strict, false);
}

#[test]
fn a_client_works_while_its_pages_stand_by() {
    let _watch = Watchdog::new("a_client_works_while_its_pages_stand_by");
    works_while_it_is_moved(Contract::Extended, true);
    works_while_it_is_moved(Contract::Strict, true);
}

/// Everything the program has in larger mappings, found by itself: what its allocator uses, too.
#[test]
fn a_client_that_offers_all_its_memory_goes_on() {
    let _watch = Watchdog::new("a_client_that_offers_all_its_memory_goes_on");
    let daemon = Daemon::start(Contract::Extended, |builder| builder);
    let mut client = daemon.start_client("client-of-all");
    client.expect("ready");
    let pid = client.pid();
    until("the client is taken on", || daemon.server.pids().contains(&pid));
    for _ in 0..5 {
        let moved = daemon.server.evict(pid, None).unwrap();
        assert!(moved.stored >= PAGES, "{moved:?}");
        client.ask("check", "checked");
    }
    client.say("end");
    client.wait();
    daemon.nothing_left();
}

/// Children and theirs see all of it and write what they like; parents don't see that.
fn forks(contract: Contract, standby: bool) {
    let daemon = Daemon::start(contract, |builder| builder.standby(standby));
    let mut client = daemon.client();
    for _ in 0..3 {
        daemon.server.evict(client.pid(), None).unwrap();
        client.ask("fork", "child ended well");
        client.ask("check", "checked");
    }
    client.say("end");
    client.wait();
    daemon.nothing_left();
}

#[test]
fn children_of_an_extended_client_see_what_was() {
    let _watch = Watchdog::new("children_of_an_extended_client_see_what_was");
    forks(Contract::Extended, false);
}

#[test]
fn children_of_a_strict_client_see_what_was() {
    let _watch = Watchdog::new("children_of_a_strict_client_see_what_was");
    forks(Contract::Strict, false);
}

#[test]
fn children_see_what_stood_by_at_the_fork() {
    let _watch = Watchdog::new("children_see_what_stood_by_at_the_fork");
    forks(Contract::Extended, true);
    forks(Contract::Strict, true);
}

/// The parent ends first, with everything out: what the child has out is its own.
#[test]
fn a_child_outlives_its_parent() {
    let _watch = Watchdog::new("a_child_outlives_its_parent");
    for contract in [Contract::Extended, Contract::Strict] {
        let daemon = Daemon::start(contract, |builder| builder);
        let mut client = daemon.client();
        daemon.evict_all(&client);
        client.ask("leave a child", "child here");
        client.wait();
        until("the parent is gone", || daemon.server.pids().is_empty());
        assert_eq!(daemon.store.len() as u64, PAGES);
        client.ask("look", "child saw all");
        daemon.nothing_left();
    }
}

/// Nothing was ever moved out, and so nothing but the sentinel is registered: the child is seen nevertheless.
#[test]
fn a_fork_of_a_client_with_nothing_out_is_seen() {
    let _watch = Watchdog::new("a_fork_of_a_client_with_nothing_out_is_seen");
    for contract in [Contract::Extended, Contract::Strict] {
        let daemon = Daemon::start(contract, |builder| builder);
        let mut client = daemon.client();
        client.ask("leave a child", "child here");
        client.wait();
        until("the child alone is left", || {
            daemon.server.pids().is_empty() && daemon.server.engine().spaces().len() == 1
        });
        client.ask("look", "child saw all");
        daemon.nothing_left();
    }
}

/// Forks in the middle of moves, by the C library's fork, which holds the allocator's locks until the fork has been read of.
#[test]
fn forks_among_moves_are_seen_and_nothing_is_missed() {
    let _watch = Watchdog::new("forks_among_moves_are_seen_and_nothing_is_missed");
    for contract in [Contract::Extended, Contract::Strict] {
        for _ in 0..rounds(3, 50) {
            let daemon = Daemon::start(contract, |builder| builder);
            let mut client = daemon.client();
            let (pid, end) = (client.pid(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let evicting = scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        daemon.server.evict(pid, None).unwrap();
                    }
                });
                client.ask("churn", "churning");
                client.ask("fork again and again", "children ended well");
                client.ask("rest", "rested");
                end.store(true, Ordering::Relaxed);
                evicting.join().unwrap();
            });
            client.ask("check", "checked");
            client.say("end");
            client.wait();
            daemon.nothing_left();
        }
    }
}
