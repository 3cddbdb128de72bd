//! Text, cut into passages, and an inverted index over it: which passages hold a word.
//!
//! All of it lies in one stretch of memory, at offsets from its start:
//!
//! ```text
//! text | passages: (start u32, length u32)* | words: (hash u64, first u32, count u32)* | postings: (passage u32)*
//! ```
//! The words are a hash table with open addressing, twice as many places as words; a place with count 0 is free.

use super::quiz::{Answers, choose};
use std::collections::HashMap;
use std::ops::Range;

/// Where things are. The memory itself is passed in with every question.
#[derive(Clone)]
pub(crate) struct Index {
    passages: Table<8>,
    words: Table<16>,
    postings: Table<4>,
}

/// Records of `N` bytes at some offset.
#[derive(Clone, Copy)]
struct Table<const N: usize> {
    at: usize,
    len: usize,
}

impl Index {
    /// How many passages there are.
    pub(crate) fn passages(&self) -> usize {
        self.passages.len
    }

    /// Bytes of memory in use, from the start.
    pub(crate) fn bytes(&self) -> usize {
        self.postings.range().end
    }

    /// One passage's text; `None` if the memory holds nonsense.
    pub(crate) fn passage<'a>(&self, memory: &'a [u8], passage: usize) -> Option<&'a [u8]> {
        let record = self.passages.record(memory, passage)?;
        let (start, length) = (word32(record, 0)?, word32(record, 4)?);
        memory.get(start as usize..(start as usize).checked_add(length as usize)?)
    }

    /// The passages that hold the word with this hash, in order. Without any the word isn't there.
    pub(crate) fn postings<'a>(&self, memory: &'a [u8], hash: u64) -> impl Iterator<Item = u32> + use<'a> {
        let found = self.place(memory, hash).unwrap_or(0..0);
        let bytes = memory.get(self.postings.slice(found)).unwrap_or(&[]);
        bytes.chunks_exact(4).filter_map(|bytes| word32(bytes, 0))
    }

    fn place(&self, memory: &[u8], hash: u64) -> Option<Range<usize>> {
        let mask = self.words.len - 1;
        let mut place = usize::try_from(hash).ok()? & mask;
        for _ in 0..self.words.len {
            let record = self.words.record(memory, place)?;
            let (first, count) = (word32(record, 8)? as usize, word32(record, 12)? as usize);
            if count == 0 {
                return None;
            }
            if word64(record)? == hash {
                return (first + count <= self.postings.len).then_some(first..first + count);
            }
            place = (place + 1) & mask;
        }
        None
    }
}

impl<const N: usize> Table<N> {
    fn range(self) -> Range<usize> {
        self.slice(0..self.len)
    }

    fn slice(self, records: Range<usize>) -> Range<usize> {
        self.at + records.start * N..self.at + records.end * N
    }

    fn record(self, memory: &[u8], index: usize) -> Option<&[u8]> {
        if index < self.len { memory.get(self.slice(index..index + 1)) } else { None }
    }
}

/// Fills memory with text, and with an index in the end.
pub(crate) struct Builder<'a> {
    memory: &'a mut [u8],
    /// Text to load, and loaded.
    most: usize,
    filled: usize,
    passages: Vec<Range<usize>>,
    /// Words get numbers as they come.
    numbers: HashMap<u64, u32>,
    words: Vec<Found>,
    /// Numbers of the words of every passage, one passage after the other.
    held: Vec<u32>,
    held_ends: Vec<usize>,
}

/// A word, while the index is built.
pub(crate) struct Found {
    pub(crate) hash: u64,
    /// Where it is, somewhere in the text.
    pub(crate) at: Range<usize>,
    /// How many passages hold it.
    pub(crate) count: u32,
    /// The last one seen, to count each once.
    last: usize,
}

/// About this long is a passage.
const PASSAGE: usize = 4096;

impl<'a> Builder<'a> {
    /// Puts up to `most` bytes of text at the start of `memory`.
    pub(crate) fn new(memory: &'a mut [u8], most: usize) -> Self {
        Self {
            most: most.min(memory.len()),
            memory,
            filled: 0,
            passages: Vec::new(),
            numbers: HashMap::new(),
            words: Vec::new(),
            held: Vec::new(),
            held_ends: Vec::new(),
        }
    }

    /// Whether all the text is there.
    pub(crate) fn is_full(&self) -> bool {
        self.filled >= self.most
    }

    /// Bytes of text so far.
    pub(crate) fn text_bytes(&self) -> usize {
        self.filled
    }

    /// Adds a text, as far as it fits, cut at line ends where it can be. A `salt` other than 0 goes before each line.
    pub(crate) fn add(&mut self, text: &[u8], salt: usize) {
        let salted;
        let mut rest = text;
        if salt > 0 {
            let prefix = format!("{salt} ");
            salted = text.split_inclusive(|byte| *byte == b'\n').fold(Vec::new(), |mut all, line| {
                all.extend_from_slice(prefix.as_bytes());
                all.extend_from_slice(line);
                all
            });
            rest = &salted;
        }
        while !rest.is_empty() && !self.is_full() {
            let most = rest.len().min(PASSAGE).min(self.most - self.filled);
            let cut = match rest[..most].iter().rposition(|byte| *byte == b'\n') {
                Some(line) if most < rest.len() => line + 1,
                _ => most,
            };
            let (passage, after) = rest.split_at(cut);
            self.add_passage(passage);
            rest = after;
        }
    }

    fn add_passage(&mut self, text: &[u8]) {
        let start = self.filled;
        self.memory[start..start + text.len()].copy_from_slice(text);
        self.filled += text.len();
        let passage = self.passages.len();
        self.passages.push(start..self.filled);
        for word in words(text) {
            let hash = hash_word(&text[word.clone()]);
            let next = u32::try_from(self.words.len()).unwrap_or(u32::MAX);
            let number = *self.numbers.entry(hash).or_insert(next);
            if number == next {
                let at = start + word.start..start + word.end;
                self.words.push(Found { hash, at, count: 0, last: usize::MAX });
            }
            let found = &mut self.words[number as usize];
            if found.last != passage {
                found.last = passage;
                found.count += 1;
                self.held.push(number);
            }
        }
        self.held_ends.push(self.held.len());
    }

    /// Lays out the index behind the text and chooses what to ask.
    pub(crate) fn finish(self) -> Result<(Index, Answers), String> {
        let places = (self.words.len() * 2).next_power_of_two();
        let passages = Table::<8> { at: self.filled.next_multiple_of(8), len: self.passages.len() };
        let words = Table::<16> { at: passages.range().end, len: places };
        let postings = Table::<4> { at: words.range().end, len: self.held.len() };
        let index = Index { passages, words, postings };
        if index.bytes() > self.memory.len() || u32::try_from(index.bytes()).is_err() {
            return Err("the index doesn't fit behind the text; ask for less of it".into());
        }
        if self.words.is_empty() {
            return Err("there are no words in the text".into());
        }
        let sorted = Postings::sort(&self.words, &self.held, &self.held_ends);
        let answers = choose(self.memory, &self.passages, &self.words, &sorted);

        let records = self.memory[passages.range()].chunks_exact_mut(8);
        for (record, passage) in records.zip(&self.passages) {
            put32(&mut record[..4], passage.start);
            put32(&mut record[4..], passage.len());
        }
        write_words(&mut self.memory[words.range()], &self.words);
        for (record, passage) in self.memory[postings.range()].chunks_exact_mut(4).zip(&sorted.all) {
            record.copy_from_slice(&passage.to_le_bytes());
        }
        Ok((index, answers))
    }
}

/// The passages of every word, one word after the other.
pub(crate) struct Postings {
    all: Vec<u32>,
    /// Where each word's end.
    ends: Vec<usize>,
}

impl Postings {
    /// From the words of every passage.
    fn sort(words: &[Found], held: &[u32], held_ends: &[usize]) -> Self {
        let mut next = 0;
        let mut ends: Vec<usize> = words
            .iter()
            .map(|word| {
                let start = next;
                next += word.count as usize;
                start
            })
            .collect();
        let mut all = vec![0; next];
        let mut start = 0;
        for (passage, &end) in (0_u32..).zip(held_ends) {
            for &word in &held[start..end] {
                // Starts become ends as their passages come.
                let at = &mut ends[word as usize];
                all[*at] = passage;
                *at += 1;
            }
            start = end;
        }
        Self { all, ends }
    }

    /// Those of one word, in order.
    pub(crate) fn of(&self, word: usize) -> &[u32] {
        let start = if word == 0 { 0 } else { self.ends[word - 1] };
        &self.all[start..self.ends[word]]
    }
}

/// Fills the hash table; the postings lie in the order of `words`.
fn write_words(table: &mut [u8], words: &[Found]) {
    let mask = table.len() / 16 - 1;
    table.fill(0);
    let mut first = 0;
    for word in words {
        let mut place = usize::try_from(word.hash).unwrap_or(0) & mask;
        while table[place * 16 + 12..place * 16 + 16] != [0; 4] {
            place = (place + 1) & mask;
        }
        let record = &mut table[place * 16..place * 16 + 16];
        record[..8].copy_from_slice(&word.hash.to_le_bytes());
        put32(&mut record[8..12], first);
        record[12..].copy_from_slice(&word.count.to_le_bytes());
        first += word.count as usize;
    }
}

/// The words of a text: letters, digits and underscores, from 3 to 32 of them.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += text[at..].iter().position(|byte| is_part(*byte))?;
            let start = at;
            at += text[at..].iter().position(|byte| !is_part(*byte)).unwrap_or(text.len() - at);
            if (3..=32).contains(&(at - start)) {
                return Some(start..at);
            }
        }
    })
}

/// A word's hash, upper and lower case alike (FNV-1a, its low bits stirred).
pub(crate) fn hash_word(word: &[u8]) -> u64 {
    let hash = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x100_0000_01b3)
    });
    hash ^ (hash >> 29)
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// Offsets fit: the whole is checked to.
fn put32(bytes: &mut [u8], value: usize) {
    bytes.copy_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}
