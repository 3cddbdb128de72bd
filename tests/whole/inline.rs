//! Inline regions: faults served in the faulting thread.

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
fn smoke() {
    let store = Arc::new(PlainStore::default());
    let mut region = PagedRegion::builder(8 * MIB as u64, Arc::clone(&store) as _).inline().build().unwrap();
    fill(region.as_mut_slice());
    let moved = region.evict(..).unwrap();
    assert_eq!((moved.moved, moved.stored, moved.pinned), (2048, 2048, 0));
    check(region.as_slice());
    drop(region);
    assert_eq!((store.len(), store.freed_twice()), (0, 0));
    let store = userswap_stores::open("ram:lz4", 4096).unwrap();
    let mut region = PagedRegion::builder(8 * MIB as u64, Arc::clone(&store) as _).inline().build().unwrap();
    fill(region.as_mut_slice());
    region.evict(..).unwrap();
    check(region.as_slice());
    region.evict(..).unwrap();
    for n in (0..8*MIB).step_by(4096).rev() { std::hint::black_box(region.as_slice()[n]); }
    check(region.as_slice());
    drop(region);
    assert_eq!(store.stats().pages, 0);
}
