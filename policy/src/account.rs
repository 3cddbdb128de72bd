//! Whether what is brought in early is wanted: the account that both kinds of streams keep together, and by which both are steered.

/// What became of pages that came along.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verdicts {
    /// Somebody came past them.
    pub used: u32,
    /// Their stream ended before.
    pub unused: u32,
}

/// What came of what came along, lately: while more of it is in vain than used, little comes along.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Since they were last asked for.
    since: Verdicts,
    lately: Verdicts,
}

/// Pages that come along at most while more of them are in vain than used.
pub const SHORT: u32 = 4;

/// Pages remembered, about.
const LATELY: u32 = 256;

impl Account {
    /// These have their verdict.
    pub fn judge(&mut self, verdicts: Verdicts) {
        for kept in [&mut self.since, &mut self.lately] {
            kept.used += verdicts.used;
            kept.unused += verdicts.unused;
        }
        if self.lately.used + self.lately.unused > LATELY {
            self.lately.used /= 2;
            self.lately.unused /= 2;
        }
    }

    /// So many pages are to come together at most, where `most` can.
    pub fn limit(&self, most: u32) -> u32 {
        if self.lately.unused > self.lately.used { most.min(SHORT) } else { most }
    }

    /// The verdicts since the last time.
    pub fn take(&mut self) -> Verdicts {
        std::mem::take(&mut self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_comes_while_what_comes_is_in_vain() {
        let mut account = Account::default();
        assert_eq!(account.limit(32), 32);
        (0..100).for_each(|_| account.judge(Verdicts { used: 1, unused: 0 }));
        assert_eq!(account.limit(32), 32);
        (0..100).for_each(|_| account.judge(Verdicts { used: 0, unused: 3 }));
        assert_eq!((account.limit(32), account.limit(2)), (SHORT, 2));
        assert_eq!(account.take(), Verdicts { used: 100, unused: 300 });
        assert_eq!(account.take(), Verdicts::default());
        // It is steered by what came lately, whoever has taken note of it.
        (0..100).for_each(|_| account.judge(Verdicts { used: 4, unused: 0 }));
        assert_eq!(account.limit(32), 32);
    }
}
