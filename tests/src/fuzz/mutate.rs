//! Mutations from a seed, for where there is no libFuzzer.

use crate::random::Random;

/// The longest input that is made.
const LONGEST: usize = 4096;

/// One of `corpus` with a few changes.
pub fn mutated(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = pick(random, corpus).cloned().unwrap_or_default();
    for _ in 0..=random.below(4) {
        change(random, &mut bytes, corpus);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let len = bytes.len() as u64;
    let at = random.below(len + 1) as usize;
    match random.below(8) {
        0 if len > 0 => bytes[at.min(len as usize - 1)] ^= 1 << random.below(8),
        1 if len > 0 => bytes[at.min(len as usize - 1)] = random.next() as u8,
        2 => bytes.insert(at, random.next() as u8),
        3 => drop(bytes.drain(at..(at + random.below(9) as usize).min(bytes.len()))),
        4 => bytes.truncate(at),
        // A number that is at the edge of something.
        5 => {
            let edge = [0, 1, 7, 8, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 47, u64::MAX >> 1, u64::MAX];
            let edge = edge[random.below(edge.len() as u64) as usize].to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4) as usize];
            let at = at & !(width - 1);
            for (place, byte) in bytes.iter_mut().skip(at).zip(&edge[..width]) {
                *place = *byte;
            }
        }
        6 => {
            let from: Vec<u8> = bytes.iter().skip(at).take(random.below(33) as usize).copied().collect();
            bytes.splice(at..at, from);
        }
        _ => {
            let other = pick(random, corpus).cloned().unwrap_or_default();
            let from = random.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

fn pick<'a>(random: &mut Random, corpus: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    corpus.get(random.below(corpus.len().max(1) as u64) as usize)
}
