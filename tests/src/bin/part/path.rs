//! A program that faults, one page after the other, while somebody counts what its handler does.

use std::sync::Arc;
use userswap_tests::own::Own;

pub(crate) fn run() {
    let store = userswap_stores::open("ram:lz4", 4096).unwrap();
    let Some(own) = Own::settings(256, Arc::clone(&store)).handlers(1).around(1).build("path") else {
        return;
    };
    own.pages.fill_all(|page| page + 1);
    assert_eq!(own.evict().stored, 256);
    println!("ready");
    for line in std::io::stdin().lines() {
        assert_eq!(line.unwrap(), "touch");
        // Never the next page, so that nobody takes it for a stream.
        for n in 0..256 {
            let page = n * 101 % 256;
            assert_eq!(own.pages.peek(page), page + 1);
        }
        println!("touched");
    }
}
