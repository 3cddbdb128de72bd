//! What objects of several pages would save, and what reading one page of them would cost: `blocks IMAGE…`.
//!
//! For each image and codec, pages beside each other are compressed together in blocks of 4 to 32 KiB. Printed are bytes a page as a store would hold it (a header of 24 bytes
//! an object, rounded up to 16, and 8 of index a page; a page that doesn't compress alone is kept as it came), nanoseconds to have one page by decoding its block as a
//! whole, the same by decoding up to the page (lz4 with each page's matches reaching back into the pages before it), and a page's part of
//! decoding a block for all its pages. Same-filled pages are left out. Blocks are read in random order; of three passes the least time counts.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "an example that stops on errors")]

use std::time::Instant;

const PAGE: usize = 4096;
const HEADER: usize = 24;
const INDEX: usize = 8;

fn main() {
    for path in std::env::args().skip(1) {
        let image = std::fs::read(&path).unwrap();
        let filled = |page: &[u8]| page.chunks_exact(8).all(|word| word == &page[..8]);
        let pages: Vec<u8> =
            image.chunks_exact(PAGE).filter(|page| !filled(page)).flatten().copied().collect();
        println!("{path}: {} pages", pages.len() / PAGE);
        println!(
            "  {:<16} {:>6} {:>8} {:>9} {:>9} {:>9}",
            "codec", "block", "bytes", "get one", "up to it", "a page of all"
        );
        for codec in [Codec::Lz4, Codec::Chained, Codec::Zstd(-1), Codec::Zstd(6)] {
            for block in [1, 2, 4, 8] {
                measure(codec, block, &pages);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Codec {
    Lz4,
    /// lz4, a piece a page.
    Chained,
    Zstd(i32),
}

/// The compressed pieces of a block, one behind the other, and where each ends.
struct Object {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

fn measure(codec: Codec, block: usize, pages: &[u8]) {
    if matches!((codec, block), (Codec::Chained, 1)) {
        return;
    }
    let mut bytes = 0;
    let mut objects = Vec::new();
    let mut compressor = match codec {
        Codec::Zstd(level) => Some(zstd::bulk::Compressor::new(level).unwrap()),
        _ => None,
    };
    for raw in pages.chunks_exact(block * PAGE) {
        let mut object = Object { bytes: Vec::new(), ends: Vec::new() };
        match codec {
            Codec::Lz4 => object.bytes = lz4_flex::block::compress(raw),
            Codec::Zstd(_) => object.bytes = compressor.as_mut().unwrap().compress(raw).unwrap(),
            Codec::Chained => {
                for page in 0..block {
                    let (before, from) = raw.split_at(page * PAGE);
                    let piece = match page {
                        0 => lz4_flex::block::compress(&from[..PAGE]),
                        _ => lz4_flex::block::compress_with_dict(&from[..PAGE], before),
                    };
                    object.bytes.extend_from_slice(&piece);
                    object.ends.push(object.bytes.len());
                }
            }
        }
        let len = object.bytes.len().min(raw.len());
        bytes += (HEADER + len).next_multiple_of(16) + INDEX * block;
        objects.push(object);
    }
    let order = shuffled(objects.len());
    let mut out = vec![0; block * PAGE];
    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
    let mut decode = |object: &Object, upto: usize| match codec {
        Codec::Lz4 => drop(lz4_flex::block::decompress_into(&object.bytes, &mut out).unwrap()),
        Codec::Zstd(_) => drop(decompressor.decompress_to_buffer(&object.bytes, &mut out).unwrap()),
        Codec::Chained => {
            let mut from = 0;
            for (page, end) in object.ends.iter().enumerate().take(upto + 1) {
                let (before, rest) = out.split_at_mut(page * PAGE);
                let piece = &object.bytes[from..*end];
                match page {
                    0 => lz4_flex::block::decompress_into(piece, &mut rest[..PAGE]).unwrap(),
                    _ => {
                        lz4_flex::block::decompress_into_with_dict(piece, &mut rest[..PAGE], before).unwrap()
                    }
                };
                from = *end;
            }
        }
    };
    let mut pass = |upto: &dyn Fn(usize) -> usize| {
        let times = (0..3).map(|_| {
            let start = Instant::now();
            order.iter().for_each(|at| decode(&objects[*at], upto(*at)));
            start.elapsed().as_nanos() as f64 / order.len() as f64
        });
        times.fold(f64::MAX, f64::min)
    };
    let all = pass(&|_| block - 1);
    // A page of the block that the block's place says, each as often as any other.
    let some = pass(&|at| at % block);
    let pages = objects.len() * block;
    // To have one page of a block, that page is copied out of it.
    let one = if matches!(codec, Codec::Chained) { all } else { some };
    let upto = if matches!(codec, Codec::Chained) { format!("{some:.0}") } else { "-".to_owned() };
    println!(
        "  {:<16} {:>6} {:>8} {:>9.0} {:>9} {:>9.0}",
        format!("{codec:?}"),
        block * PAGE,
        bytes / pages,
        one,
        upto,
        all / block as f64
    );
}

fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut random = 1_u64;
    for at in (1..count).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(at, usize::try_from(random % (at as u64 + 1)).unwrap());
    }
    order
}
