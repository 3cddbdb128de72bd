//! From an address to the state of its page, in an address space of 1 to 10,000 regions.
#![allow(clippy::unwrap_used, reason = "a benchmark stops on errors")]

use criterion::{BenchmarkId, Criterion};
use std::hint::black_box;
use userswap_engine::core::{Counts, PageIndex, Piece, RegionId, Shard};
use userswap_engine::directory::{Directory, Part, Region};

/// Pages of a region.
const PAGES: u32 = 256;

const PAGE: u64 = 4096;

/// From one region's start to the next's: there is something else between them.
const APART: u64 = 4 * PAGES as u64 * PAGE;

const BASE: u64 = 0x7f00_0000_0000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("lookup");
    for regions in [1, 10, 100, 1_000, 10_000] {
        let directory = directory(regions);
        // Far apart, as faults of several threads are.
        let mut turn = (0..u64::from(regions) * u64::from(PAGES)).cycle().step_by(104_729);
        group.bench_function(BenchmarkId::from_parameter(regions), |bencher| {
            bencher.iter(|| {
                let page = turn.next().unwrap();
                let (region, within) = (page / u64::from(PAGES), page % u64::from(PAGES));
                let (region, page) = directory.find(BASE + region * APART + within * PAGE).unwrap();
                black_box(region.lock().state(page))
            });
        });
    }
    group.finish();
    criterion.final_summary();
}

fn directory(regions: u32) -> Directory {
    let mut directory = Directory::default();
    for number in 0..regions {
        let addr = BASE + u64::from(number) * APART;
        let shard = Shard::new(RegionId(number), PAGES, PAGE, addr, Counts::default());
        let piece = Piece { first: PageIndex(0), pages: PAGES, addr };
        directory.insert(&Part { region: Region::new(shard), piece });
    }
    directory
}
