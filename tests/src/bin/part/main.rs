//! Plays a part in a whole-system test, in a process of its own. Told what to do on standard input, answers on standard output.

#![allow(clippy::unwrap_used)]

use userswap::{Client, Contract};
use userswap_uffd::{Mapping, Protection, Span};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["client", path, contract] => client(path, contract),
        _ => panic!("no such part: {arguments:?}"),
    }
}

/// Offers 8 MiB with a pattern, and checks it when told.
fn client(path: &str, contract: &str) {
    let contract = if contract == "strict" { Contract::Strict } else { Contract::Extended };
    let client = Client::builder(path).contract(contract).connect().unwrap();
    let memory = Mapping::new(10 << 20, Protection::READ_WRITE).unwrap();
    let start = memory.span().start().next_multiple_of(2 << 20);
    let words = start as *mut u64;
    let count = (8usize << 20) / 8;
    for index in 0..count {
        // SAFETY: within our own mapping; nothing else refers to it.
        unsafe { words.add(index).write_volatile(pattern(index)) };
    }
    assert!(client.offer(Span::new(start, 8 << 20).unwrap()));
    println!("ready");
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "check" => {
                for index in 0..count {
                    // SAFETY: as above.
                    let word = unsafe { words.add(index).read_volatile() };
                    assert_eq!(word, pattern(index), "word {index}");
                }
                println!("checked");
            }
            "end" => return,
            other => panic!("not told what {other} means"),
        }
    }
}

fn pattern(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
