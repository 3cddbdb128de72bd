//! Who has to give up how much, under a limit for each and a limit for all.

/// Limits on resident memory, in bytes. 0 or `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// For all clients together.
    pub total: Option<u64>,
    /// For each client.
    pub client: Option<u64>,
}

/// What one client has, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Resident, of what could be moved out.
    pub resident: u64,
    /// Resident with all clients together, this one included.
    pub resident_in_all: u64,
}

impl Budget {
    /// Whether there is anything to hold to.
    pub fn is_limited(&self) -> bool {
        limit(self.total).is_some() || limit(self.client).is_some()
    }

    /// How many bytes the client has to give up now. Of what all have too much each gives its share by size, so that
    /// nobody gives for the others.
    pub fn excess(&self, demand: Demand) -> u64 {
        let own = limit(self.client).map_or(0, |most| demand.resident.saturating_sub(most));
        let shared = limit(self.total).map_or(0, |most| {
            let over = u128::from(demand.resident_in_all.saturating_sub(most));
            let all = u128::from(demand.resident_in_all.max(1));
            let share = (over * u128::from(demand.resident)).div_ceil(all);
            u64::try_from(share).unwrap_or(u64::MAX)
        });
        own.max(shared).min(demand.resident)
    }
}

fn limit(value: Option<u64>) -> Option<u64> {
    value.filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn no_limit_takes_nothing() {
        let demand = Demand { resident: 100 * MIB, resident_in_all: 300 * MIB };
        assert_eq!(Budget::default().excess(demand), 0);
        assert_eq!(Budget { total: Some(0), client: Some(0) }.excess(demand), 0);
    }

    #[test]
    fn each_gives_its_share_of_what_all_have_too_much() {
        let budget = Budget { total: Some(200 * MIB), client: None };
        let give = |resident| budget.excess(Demand { resident, resident_in_all: 300 * MIB });
        assert_eq!(give(200 * MIB).div_ceil(MIB), 67);
        assert_eq!(give(100 * MIB).div_ceil(MIB), 34);
        assert!(give(200 * MIB) + give(100 * MIB) >= 100 * MIB);
    }

    #[test]
    fn the_stricter_limit_counts_and_nobody_gives_more_than_it_has() {
        let budget = Budget { total: Some(10), client: Some(60 * MIB) };
        assert_eq!(budget.excess(Demand { resident: 100 * MIB, resident_in_all: 100 * MIB }), 100 * MIB - 10);
        assert_eq!(budget.excess(Demand { resident: 5, resident_in_all: u64::MAX }), 5);
    }
}
