//! A gigabyte of memory that keeps 64 MiB of itself resident: the rest lives compressed, and comes back when touched.
//!
//! `cargo run --release --example paged_region`

use userswap::PagedRegion;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = userswap_stores::open("ram:lz4", 4096)?;
    let mut region = PagedRegion::builder(1 << 30, store.clone()).limit(64 << 20).build()?;
    for (number, page) in region.as_mut_slice().chunks_exact_mut(4096).enumerate() {
        page[..2048].copy_from_slice(number.to_le_bytes().repeat(256).as_slice());
        page[4095] = 1;
    }
    let mut pages = region.as_slice().chunks_exact(4096).enumerate();
    let all_right = pages.all(|(number, page)| page[2040..2048] == number.to_le_bytes() && page[4095] == 1);
    let (usage, held) = (region.usage(), store.stats().memory_bytes);
    println!("all as it was: {all_right}; {usage:?}; the store holds {} MiB", held >> 20);
    if all_right { Ok(()) } else { Err("something was lost".into()) }
}
