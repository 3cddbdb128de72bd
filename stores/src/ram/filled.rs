//! Pages that are one word repeated.

/// The eight bytes the page consists of, if it does.
pub(crate) fn repeated_word(page: &[u8]) -> Option<u64> {
    let (words, rest) = page.as_chunks::<8>();
    let (first, last) = (words.first()?, words.last()?);
    // Most pages that aren't filled differ in the first few words or at the end.
    if first != last || !rest.is_empty() {
        return None;
    }
    words.iter().all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

/// Half the word, if it is twice the same.
#[allow(clippy::cast_possible_truncation, reason = "the halves are compared")]
pub(crate) fn repeated_half(word: u64) -> Option<u32> {
    (word as u32 == (word >> 32) as u32).then_some(word as u32)
}

/// Fills a page with the word.
pub(crate) fn fill(page: &mut [u8], word: u64) {
    if word.to_le_bytes() == [word.to_le_bytes()[0]; 8] {
        page.fill(word.to_le_bytes()[0]);
        return;
    }
    for chunk in page.as_chunks_mut::<8>().0 {
        *chunk = word.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_pages_are_found_and_made() {
        for word in [0, u64::MAX, 0x1212_1212_1212_1212, 0xdead_beef_dead_beef, 0x0123_4567_89ab_cdef] {
            let mut page = [1; 4096];
            fill(&mut page, word);
            assert_eq!(repeated_word(&page), Some(word));
            for at in [0, 9, 2048, 4095] {
                page[at] ^= 1;
                assert_eq!(repeated_word(&page), None, "{word:x} at {at}");
                page[at] ^= 1;
            }
        }
        assert_eq!(repeated_half(0xdead_beef_dead_beef), Some(0xdead_beef));
        assert_eq!(repeated_half(0xdead_beef_dead_beee), None);
        assert_eq!(repeated_word(&[]), None);
    }
}
