//! Whether what is brought in early is wanted: the account that both kinds of streams keep together, and by which both are steered.

/// What became of pages that came along.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdicts {
    /// Somebody came past them.
    pub used: u32,
    /// Their stream ended before.
    pub unused: u32,
}

/// What was asked for and what came along, lately.
///
/// *Accuracy* is the part of what came along that was used, *coverage* the part of what was wanted that came along. While accuracy is low little comes along. While it is high and
/// coverage is low, streams end before their windows have grown: then they grow faster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Since they were last asked for.
    since: Verdicts,
    lately: Verdicts,
    /// Waited for, lately.
    asked: u32,
}

/// Pages that come along at most while more of them are in vain than used.
pub const SHORT: u32 = 4;

/// Pages remembered, about.
const LATELY: u32 = 256;

impl Account {
    /// A page is waited for.
    pub fn ask(&mut self) {
        self.asked += 1;
        self.forget();
    }

    /// These have their verdict.
    pub fn judge(&mut self, verdicts: Verdicts) {
        for kept in [&mut self.since, &mut self.lately] {
            kept.used += verdicts.used;
            kept.unused += verdicts.unused;
        }
        self.forget();
    }

    fn forget(&mut self) {
        if self.lately.used + self.lately.unused + self.asked > LATELY {
            self.lately.used /= 2;
            self.lately.unused /= 2;
            self.asked /= 2;
        }
    }

    /// So many pages are to come together at most, where `most` can.
    pub fn limit(&self, most: u32) -> u32 {
        if self.lately.unused > self.lately.used { most.min(SHORT) } else { most }
    }

    /// How many times as many come with a stream's next page as came with the last.
    pub fn growth(&self) -> u32 {
        let Verdicts { used, unused } = self.lately;
        let (is_accurate, is_covered) = (used >= SURE && unused * 8 <= used, self.asked * 8 <= used);
        if is_accurate && !is_covered { 4 } else { 2 }
    }

    /// The verdicts since the last time.
    pub fn take(&mut self) -> Verdicts {
        std::mem::take(&mut self.since)
    }
}

/// Fewer verdicts say nothing.
const SURE: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_comes_while_it_is_in_vain_and_streams_grow_faster_while_they_are_short() {
        let mut account = Account::default();
        assert_eq!((account.limit(32), account.growth()), (32, 2));
        // Nine of ten are used, and as many are waited for as come along.
        for _ in 0..100 {
            account.ask();
            account.judge(Verdicts { used: 1, unused: 0 });
        }
        assert_eq!((account.limit(32), account.growth()), (32, 4));
        // Hardly any is waited for.
        (0..20).for_each(|_| account.judge(Verdicts { used: 31, unused: 1 }));
        assert_eq!((account.limit(32), account.growth()), (32, 2));
        // What came was in vain.
        for _ in 0..100 {
            account.ask();
            account.judge(Verdicts { used: 0, unused: 3 });
        }
        assert_eq!((account.limit(32), account.growth()), (SHORT, 2));
        let taken = account.take();
        assert_eq!((taken.used, taken.unused, account.take()), (100 + 620, 320, Verdicts::default()));
    }
}
