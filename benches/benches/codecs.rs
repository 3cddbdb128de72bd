//! A page by lz4, zstd, and zstd with a dictionary, as the stores have them: each way, without the store.
#![allow(clippy::unwrap_used, reason = "a benchmark stops on errors")]

mod pages;

use criterion::{Criterion, Throughput};
use pages::{PAGE, records};
use std::hint::black_box;

/// What `ram:zstd` puts pages in with.
const LEVEL: i32 = -1;

/// What it gives a dictionary.
const DICTIONARY: usize = 15 << 10;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let pages = records(512);
    lz4(&mut criterion, &pages);
    zstd(&mut criterion, &pages, None);
    let samples = &pages[..256];
    let dictionary = zstd::dict::from_samples(samples, DICTIONARY).unwrap();
    // Others than it was trained on.
    zstd(&mut criterion, &pages[256..], Some(&dictionary));
    criterion.final_summary();
}

fn lz4(criterion: &mut Criterion, pages: &[Vec<u8>]) {
    let mut group = criterion.benchmark_group("lz4");
    group.throughput(Throughput::Bytes(PAGE as u64));
    let mut room = vec![0; lz4_flex::block::get_maximum_output_size(PAGE)];
    let mut table = lz4_flex::block::CompressTable::small();
    let mut turn = pages.iter().cycle();
    group.bench_function("compress", |bencher| {
        bencher.iter(|| {
            let page = turn.next().unwrap();
            black_box(lz4_flex::block::compress_into_with_table(page, &mut room, &mut table).unwrap())
        });
    });
    let compressed: Vec<Vec<u8>> = pages.iter().map(|page| lz4_flex::block::compress(page)).collect();
    let mut turn = compressed.iter().cycle();
    let mut page = vec![0; PAGE];
    group.bench_function("decompress", |bencher| {
        bencher
            .iter(|| black_box(lz4_flex::block::decompress_into(turn.next().unwrap(), &mut page).unwrap()));
    });
    group.finish();
}

fn zstd(criterion: &mut Criterion, pages: &[Vec<u8>], dictionary: Option<&[u8]>) {
    let name = if dictionary.is_some() { "zstd with a dictionary" } else { "zstd" };
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(PAGE as u64));
    let (mut compressor, mut decompressor) = match dictionary {
        Some(dictionary) => (
            zstd::bulk::Compressor::with_dictionary(LEVEL, dictionary).unwrap(),
            zstd::bulk::Decompressor::with_dictionary(dictionary).unwrap(),
        ),
        None => (zstd::bulk::Compressor::new(LEVEL).unwrap(), zstd::bulk::Decompressor::new().unwrap()),
    };
    let mut room = vec![0; zstd::zstd_safe::compress_bound(PAGE)];
    let mut turn = pages.iter().cycle();
    group.bench_function("compress", |bencher| {
        bencher.iter(|| black_box(compressor.compress_to_buffer(turn.next().unwrap(), &mut room).unwrap()));
    });
    let compressed: Vec<Vec<u8>> = pages.iter().map(|page| compressor.compress(page).unwrap()).collect();
    let mut turn = compressed.iter().cycle();
    let mut page = vec![0; PAGE];
    group.bench_function("decompress", |bencher| {
        bencher
            .iter(|| black_box(decompressor.decompress_to_buffer(turn.next().unwrap(), &mut page).unwrap()));
    });
    group.finish();
}
