//! Questions with known answers: every answer is checked against what was computed when the text was loaded.

use super::index::{Found, Postings, hash_word, words};
use super::{Corpus, Random};
use std::ops::Range;

/// What is right. Kept on the heap, away from the memory that is asked.
pub(crate) struct Answers {
    /// Of every passage.
    checksums: Vec<u64>,
    /// Words to ask for.
    words: Vec<Word>,
    /// Pairs of them, by number, and how many passages hold both.
    pairs: Vec<(usize, usize, usize)>,
}

struct Word {
    text: Vec<u8>,
    hash: u64,
    /// How many passages hold it, and a checksum over their numbers.
    count: usize,
    checksum: u64,
}

/// How many words and pairs are chosen.
const CHOSEN: usize = 4096;

/// Words in more passages than this make dull questions.
const MOST_PASSAGES: u32 = 2000;

/// Asks one question after the other.
pub(crate) struct Quiz<'a> {
    corpus: &'a Corpus,
    memory: &'a [u8],
    random: Random,
}

impl<'a> Quiz<'a> {
    /// Questions drawn from `seed`, to `memory`.
    pub(crate) fn new(corpus: &'a Corpus, memory: &'a [u8], seed: u64) -> Self {
        Self { corpus, memory, random: Random(seed) }
    }

    /// Asks one and checks the answer: a passage's text, the passages that hold a word, or those that hold two.
    ///
    /// # Errors
    /// A sentence that says which answer was wrong.
    pub(crate) fn ask(&mut self) -> Result<(), String> {
        match self.random.below(4) {
            0 | 1 => {
                // Some passages are asked for far more often than others, as in life.
                let passages = self.corpus.index.passages();
                let (a, b) = (self.random.below(passages), self.random.below(passages));
                self.check_passage(a * b / passages)
            }
            2 => {
                let word = self.random.below(self.corpus.answers.words.len());
                self.check_word(word)
            }
            _ => {
                let pair = self.random.below(self.corpus.answers.pairs.len());
                self.check_pair(pair)
            }
        }
    }

    /// Checks every passage and every word there is to ask for.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(crate) fn check_all(&mut self) -> Result<(), String> {
        let answers = &self.corpus.answers;
        (0..answers.checksums.len()).try_for_each(|passage| self.check_passage(passage))?;
        (0..answers.words.len()).try_for_each(|word| self.check_word(word))?;
        (0..answers.pairs.len()).try_for_each(|pair| self.check_pair(pair))
    }

    fn check_passage(&self, passage: usize) -> Result<(), String> {
        let found = self.corpus.index.passage(self.memory, passage).map(checksum);
        let right = self.corpus.answers.checksums[passage];
        match found {
            Some(found) if found == right => Ok(()),
            _ => Err(format!("passage {passage} has the checksum {found:x?} and should have {right:x}")),
        }
    }

    fn check_word(&mut self, word: usize) -> Result<(), String> {
        let word = &self.corpus.answers.words[word];
        let shown = String::from_utf8_lossy(&word.text);
        let found: Vec<u32> = self.corpus.index.postings(self.memory, word.hash).collect();
        if (found.len(), checksum_of(&found)) != (word.count, word.checksum) {
            return Err(format!("{shown} is in {} passages, found were {found:?}", word.count));
        }
        let passage = found[self.random.below(found.len())] as usize;
        self.check_passage(passage)?;
        let text = self.corpus.index.passage(self.memory, passage).unwrap_or(&[]);
        let is_there = words(text).any(|at| text[at].eq_ignore_ascii_case(&word.text));
        if is_there { Ok(()) } else { Err(format!("{shown} isn't in passage {passage}")) }
    }

    fn check_pair(&self, pair: usize) -> Result<(), String> {
        let (a, b, right) = self.corpus.answers.pairs[pair];
        let [a, b] = [a, b].map(|word| self.corpus.answers.words[word].hash);
        let index = &self.corpus.index;
        let other: Vec<u32> = index.postings(self.memory, b).collect();
        let found =
            index.postings(self.memory, a).filter(|passage| other.binary_search(passage).is_ok()).count();
        if found == right {
            Ok(())
        } else {
            Err(format!("two words are together in {right} passages, found were {found}"))
        }
    }
}

/// Computes what is right, from the postings as they were made.
pub(crate) fn choose(
    memory: &[u8],
    passages: &[Range<usize>],
    found: &[Found],
    postings: &Postings,
) -> Answers {
    let checksums = passages.iter().map(|passage| checksum(&memory[passage.clone()])).collect();
    let fit: Vec<usize> = (0..found.len()).filter(|&word| found[word].count <= MOST_PASSAGES).collect();
    // Most words are rare: half of the chosen are of those in ten passages or more, as far as there are any.
    let (rare, common): (Vec<usize>, Vec<usize>) = fit.into_iter().partition(|&word| found[word].count < 10);
    let mut random = Random(1);
    let mut numbers = Vec::new();
    for from in [&rare, &common] {
        for _ in 0..if from.is_empty() { 0 } else { CHOSEN / 2 } {
            numbers.push(from[random.below(from.len())]);
        }
    }
    let words: Vec<Word> = numbers
        .iter()
        .map(|&number| {
            let text = memory[found[number].at.clone()].to_ascii_lowercase();
            let (count, checksum) = (postings.of(number).len(), checksum_of(postings.of(number)));
            Word { hash: hash_word(&text), text, count, checksum }
        })
        .collect();
    let pairs = (0..CHOSEN)
        .map(|_| {
            let (a, b) = (random.below(words.len()), random.below(words.len()));
            let other = postings.of(numbers[b]);
            let both = postings.of(numbers[a]).iter().filter(|passage| other.binary_search(passage).is_ok());
            (a, b, both.count())
        })
        .collect();
    Answers { checksums, words, pairs }
}

/// A checksum that sees every bit and every place.
fn checksum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let stir = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let sum = words
        .by_ref()
        .fold(bytes.len() as u64, |sum, word| stir(sum, word.try_into().map_or(0, u64::from_le_bytes)));
    words.remainder().iter().fold(sum, |sum, byte| stir(sum, u64::from(*byte)))
}

fn checksum_of(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |sum: u64, number| {
        (sum ^ u64::from(*number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}
