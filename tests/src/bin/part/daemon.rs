//! A daemon that can be killed.

use std::sync::Arc;
use userswap::Server;
use userswap_tests::plain::PlainStore;
use userswap_tests::watch::until;

pub(crate) fn run(path: &str) {
    let server = Server::builder(Arc::new(PlainStore::default())).listen(path).start().unwrap();
    println!("listening");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("evict", pid)) => {
                let pid = pid.parse().unwrap();
                // It may be ready before it is in the books here.
                until("the client is taken on", || server.pids().contains(&pid));
                let moved = server.evict(pid, None).unwrap();
                println!("{} out", moved.stored);
            }
            _ => panic!("not told what {line} means"),
        }
    }
}
