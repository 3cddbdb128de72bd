//! Messages of the contract as bytes and back: the orders that move pages and what answers them.
#![allow(clippy::unwrap_used, reason = "a benchmark stops on errors")]

use criterion::Criterion;
use std::hint::black_box;
use userswap_ipc::contract::{Contract, MemoryRegion, MovePtesLeavingMapping};
use userswap_ipc::extension::{Move, MoveRange, MoveReply, MoveResult, MoveStop, Mover};
use userswap_ipc::wire::{RequestId, ToClient, ToDaemon, WireMessage};

/// Runs of pages in an order, as many as go together.
const RUNS: u64 = 32;

/// Handles of messages that have none.
type NoHandle = ();

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let region = |number: u64| MemoryRegion { address: 0x7f00_0000_0000 + (number << 21), length: 1 << 20 };
    let move_one = MovePtesLeavingMapping { src: region(1), dest: 0x7e00_0000_0000 };
    both::<ToClient<NoHandle>>(
        &mut criterion,
        "MovePTEsLeavingMapping",
        &ToClient::MovePtesLeavingMapping(move_one),
    );
    let moves = (0..RUNS)
        .map(|run| MoveRange {
            src: region(run).address,
            len: 13 << 12,
            dest: 0x7e00_0000_0000 + (run << 16),
        })
        .collect();
    let order = Move { mover: Mover::UffdMove, moves };
    both::<ToClient<NoHandle>>(&mut criterion, "Move of 32 runs", &ToClient::Move(order));
    let results = (0..RUNS).map(|_| MoveResult { moved: 13 << 12, stop: MoveStop::None }).collect();
    both::<ToDaemon<NoHandle>>(&mut criterion, "reply to it", &ToDaemon::Moved(MoveReply { results }));
    let superpages = (0..1000).map(region).collect();
    both::<ToDaemon<NoHandle>>(&mut criterion, "1,000 superpages", &ToDaemon::SuperPagesUsed(superpages));
    criterion.final_summary();
}

fn both<M: WireMessage<NoHandle> + Clone>(criterion: &mut Criterion, name: &str, message: &M) {
    let mut group = criterion.benchmark_group(name);
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(message.clone().encode(RequestId(7))));
    });
    let bytes = message.clone().encode(RequestId(7)).bytes;
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(M::decode(&bytes, Vec::new(), Contract::Extended).is_ok()));
    });
    assert!(M::decode(&bytes, Vec::new(), Contract::Extended).is_ok(), "{name} can't be decoded");
    group.finish();
}
