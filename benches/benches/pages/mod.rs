//! Pages to compress: records as a program has them, the same every time.

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// So many pages of records: an address or a small number, a name from a few hundred, a counter.
pub(crate) fn records(pages: usize) -> Vec<Vec<u8>> {
    let mut random = Random(1);
    (0..pages)
        .map(|_| {
            let mut page = Vec::with_capacity(PAGE + 64);
            while page.len() < PAGE {
                let name = random.below(300);
                page.extend_from_slice(&(0x7f3a_0000_0000 + random.below(1 << 24) * 16).to_le_bytes());
                page.extend_from_slice(&random.below(5).to_le_bytes());
                page.extend_from_slice(format!("name-{:x}", name * 7919).as_bytes());
                page.resize(page.len().next_multiple_of(16), 0);
            }
            page.truncate(PAGE);
            page
        })
        .collect()
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
