//! Limits: what is over them goes out by itself, and stays out once nobody touches it.

use crate::client::{BYTES, Daemon};
use userswap::Contract;
use userswap_policy::Budget;
use userswap_tests::watch::{Watchdog, until};

impl Daemon {
    /// Bytes of clients in memory. They have written to all they offer.
    fn resident(&self) -> Vec<u64> {
        self.server.clients().iter().map(|client| client.managed_bytes - client.out_bytes).collect()
    }
}

#[test]
fn each_client_is_held_to_its_limit() {
    let _watch = Watchdog::new("each_client_is_held_to_its_limit");
    let limit = BYTES / 4;
    for contract in [Contract::Extended, Contract::Strict] {
        let daemon = Daemon::start(contract, |builder| builder.client_limit(limit));
        let mut clients = [daemon.client(), daemon.client()];
        for _ in 0..2 {
            for client in &mut clients {
                client.ask("check", "checked");
            }
            until("each is under its limit", || {
                let resident = daemon.resident();
                daemon.server.clients().iter().all(|client| client.managed_bytes == BYTES)
                    && resident.len() == 2
                    && resident.iter().all(|bytes| *bytes <= limit)
            });
        }
        // No limit, and everything may stay where it is touched, once what was ordered before has gone.
        daemon.server.set_budget(Budget::default());
        until("nothing more goes", || {
            clients[0].ask("check", "checked");
            daemon.resident().contains(&BYTES)
        });
    }
}

#[test]
fn all_clients_together_are_held_to_the_limit() {
    let _watch = Watchdog::new("all_clients_together_are_held_to_the_limit");
    let limit = BYTES;
    let daemon = Daemon::start(Contract::Extended, |builder| builder.limit(limit));
    let mut clients = [daemon.client(), daemon.client(), daemon.client()];
    for round in 0..2 {
        for client in &mut clients {
            client.ask("check", "checked");
        }
        let limit = limit >> round;
        daemon.server.set_budget(Budget { total: Some(limit), client: None });
        until("all are under the limit", || {
            daemon.server.clients().iter().all(|client| client.managed_bytes == BYTES)
                && daemon.resident().iter().sum::<u64>() <= limit
        });
    }
    for client in &mut clients {
        client.ask("check", "checked");
        client.say("end");
        client.wait();
    }
    daemon.nothing_left();
}
