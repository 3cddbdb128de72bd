//! A cooperating client in another process: moved out and back by a daemon, by both contracts.

use crate::child;
use std::sync::Arc;
use userswap::{Contract, Server};
use userswap_tests::plain::PlainStore;

const BYTES: u64 = 8 << 20;

fn moves_out_and_back(contract: Contract) {
    let store = Arc::new(PlainStore::default());
    let scratch = child::Scratch::new();
    let server = Server::builder(Arc::clone(&store) as _)
        .contract(contract)
        .listen(scratch.path("sock"))
        .start()
        .unwrap();
    let mut client =
        child::start("client", &[scratch.path("sock").to_str().unwrap(), contract_name(contract)]);
    client.expect("ready");
    let pid = client.pid();
    for _ in 0..3 {
        let moved = server.evict(pid, None).unwrap();
        assert_eq!((moved.moved, moved.stored), (BYTES / 4096, BYTES / 4096));
        assert_eq!(server.clients()[0].out_bytes, BYTES);
        client.say("check");
        client.expect("checked");
    }
    server.evict(pid, None).unwrap();
    assert_eq!(server.restore(pid).unwrap(), BYTES);
    server.drain().unwrap();
    client.say("check");
    client.expect("checked");
    client.say("end");
    client.wait();
    drop(server);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

fn contract_name(contract: Contract) -> &'static str {
    match contract {
        Contract::Strict => "strict",
        Contract::Extended => "extended",
    }
}

#[test]
fn an_extended_client_moves_out_and_back() {
    moves_out_and_back(Contract::Extended);
}

#[test]
fn a_strict_client_moves_out_and_back() {
    moves_out_and_back(Contract::Strict);
}
