//! Pages of every kind.

/// A page's contents with a name.
#[derive(Clone, Debug)]
pub struct Image {
    /// What kind it is.
    pub name: &'static str,
    /// One page.
    pub bytes: Vec<u8>,
    /// It is one word of at most eight bytes repeated.
    pub same_filled: bool,
}

/// A page of each kind: same-filled with words of each width, nearly same-filled, random, text and mixtures.
pub fn images(page_size: usize) -> Vec<Image> {
    let filled = |name, word: &[u8]| Image {
        name,
        bytes: word.iter().copied().cycle().take(page_size).collect(),
        same_filled: true,
    };
    let other = |name, bytes| Image { name, bytes, same_filled: false };
    let changed = |word: u8, at: usize, to: u8| {
        let mut page = vec![word; page_size];
        if let Some(byte) = page.get_mut(at) {
            *byte = to;
        }
        page
    };
    let mut half = random(3, page_size);
    half[page_size / 2..].fill(0);
    vec![
        filled("zero", &[0]),
        filled("all ones", &[0xff]),
        filled("one byte", &[0x5a]),
        filled("two bytes", &[1, 2]),
        filled("four bytes", &[0xde, 0xad, 0xbe, 0xef]),
        filled("eight bytes", &[8, 7, 6, 5, 4, 3, 2, 1]),
        other("three bytes", [1, 2, 3].iter().copied().cycle().take(page_size).collect()),
        other("one bit at the start", changed(0, 0, 1)),
        other("one bit in the middle", changed(0, page_size / 2 + 1, 0x80)),
        other("one bit at the end", changed(0, page_size - 1, 0x80)),
        other("all ones but the last byte", changed(0xff, page_size - 1, 0)),
        other("random", random(1, page_size)),
        other("random then zeros", half),
        other("text", text(1, page_size)),
        other("pointers", pointers(1, page_size)),
    ]
}

/// Bytes that don't compress.
pub(super) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    (0..len.div_ceil(8)).flat_map(|_| next(&mut state).to_le_bytes()).take(len).collect()
}

/// Words in a random order.
pub(super) fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "page ", "fault ", "the ", "swap ", "of ", "a ", "memory ", "thread ", "store ", "and ", "is ",
        "cold ",
    ];
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let word = usize::try_from(next(&mut state) % 12).unwrap_or(0);
        bytes.extend_from_slice(WORDS[word].as_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Eight-byte words alike in their upper halves.
pub(super) fn pointers(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let word = |state: &mut u64| (0x7f3a_0000_0000 | next(state) & 0xff_fff8).to_le_bytes();
    (0..len.div_ceil(8)).flat_map(|_| word(&mut state)).take(len).collect()
}

/// A page that differs from seed to seed, of a kind that does too.
pub(super) fn varied(seed: u64, len: usize) -> Vec<u8> {
    match seed % 5 {
        0 => random(seed, len),
        1 => text(seed, len),
        2 => pointers(seed, len),
        3 => seed.to_le_bytes().iter().copied().cycle().take(len).collect(),
        _ => {
            let mut page = random(seed, len / 3);
            page.resize(len, 0);
            page
        }
    }
}

/// A step of splitmix64.
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
