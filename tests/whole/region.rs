//! A region of the own process that pages itself.

use std::sync::Arc;
use userswap_engine::PagedRegion;
use userswap_tests::plain::PlainStore;

const MIB: usize = 1 << 20;

fn fill(bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

fn check(bytes: &[u8]) {
    for (index, word) in bytes.chunks_exact(8).enumerate() {
        let expected = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), expected, "word {index}");
    }
}

#[test]
fn what_was_evicted_reads_back() {
    let store = Arc::new(PlainStore::default());
    let mut region = PagedRegion::builder(8 * MIB as u64, Arc::clone(&store) as _).build().unwrap();
    fill(region.as_mut_slice());
    let moved = region.evict(..).unwrap();
    assert_eq!((moved.moved, moved.stored, moved.pinned), (2048, 2048, 0));
    let usage = region.usage();
    assert_eq!((usage.resident_bytes, usage.out_bytes), (0, 8 * MIB as u64));
    check(region.as_slice());
    assert_eq!(region.usage().out_bytes, 0);
    // Objects are freed after the thread was woken: joining the handlers makes sure of it.
    drop(region);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}

#[test]
fn a_limit_is_held_while_threads_write_all_over() {
    let store = Arc::new(PlainStore::default());
    let mut region =
        PagedRegion::builder(32 * MIB as u64, Arc::clone(&store) as _).limit(4 * MIB as u64).build().unwrap();
    for _ in 0..3 {
        fill(region.as_mut_slice());
        check(region.as_slice());
    }
    let halves = region.as_mut_slice().split_at_mut(16 * MIB);
    std::thread::scope(|scope| {
        for half in [halves.0, halves.1] {
            scope.spawn(move || {
                for _ in 0..3 {
                    fill(half);
                    check(half);
                }
            });
        }
    });
    region.bring_in(..).unwrap();
    drop(region);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
}
