//! Who gives how much of what all have too much.

use crate::policy::Footprint;

/// What each of the clients gives, of `excess` in all, in their order. By what each has beyond its minimum; or, if it is to be `fair`, beyond its share by weight
/// of what all will have, or its minimum if that is more. Where that isn't enough (the minimums come to more than there is), by all each has.
pub(crate) fn parts(clients: &[Footprint], excess: u64, fair: bool) -> Vec<u64> {
    let all: u64 = clients.iter().map(|client| client.resident).sum();
    let left = all.saturating_sub(excess);
    let weights: u128 = clients.iter().map(|client| u128::from(client.claim.weight.max(1))).sum();
    let beyond: Vec<u64> = clients
        .iter()
        .map(|client| {
            let share = u128::from(left) * u128::from(client.claim.weight.max(1)) / weights.max(1);
            let share = if fair { u64::try_from(share).unwrap_or(u64::MAX) } else { 0 };
            client.resident.saturating_sub(share.max(client.claim.minimum))
        })
        .collect();
    if beyond.iter().sum::<u64>() >= excess {
        return by(&beyond, excess);
    }
    let above_least: Vec<u64> =
        clients.iter().map(|client| client.resident.saturating_sub(client.claim.minimum)).collect();
    if above_least.iter().sum::<u64>() >= excess {
        return by(&above_least, excess);
    }
    by(&clients.iter().map(|client| client.resident).collect::<Vec<u64>>(), excess)
}

/// Divides `excess` in proportion to `sizes`, rounded up.
fn by(sizes: &[u64], excess: u64) -> Vec<u64> {
    let all = u128::from(sizes.iter().sum::<u64>().max(1));
    let part = |size: &u64| (u128::from(excess) * u128::from(*size)).div_ceil(all);
    sizes.iter().map(|size| u64::try_from(part(size)).unwrap_or(u64::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Claim;

    fn client(resident: u64, weight: u32, minimum: u64) -> Footprint {
        Footprint { resident, claim: Claim { weight, minimum }, ..Footprint::default() }
    }

    #[test]
    fn without_claims_each_gives_by_what_it_has() {
        assert_eq!(parts(&[client(300, 1, 0), client(100, 1, 0)], 100, false), [75, 25]);
        assert_eq!(parts(&[client(10, 1, 0), client(20, 1, 0)], 1, false), [1, 1]);
        assert_eq!(parts(&[], 100, true), [0; 0]);
    }

    #[test]
    fn who_has_more_than_its_share_gives_first() {
        assert_eq!(parts(&[client(300, 1, 0), client(100, 1, 0)], 100, true), [100, 0]);
        // Of what is left, 300, the second may have three quarters.
        assert_eq!(parts(&[client(200, 1, 0), client(200, 3, 0)], 100, true), [100, 0]);
        // Both are beyond.
        assert_eq!(parts(&[client(200, 1, 0), client(200, 1, 0)], 100, true), [50, 50]);
    }

    #[test]
    fn a_minimum_is_kept_while_it_can_be() {
        assert_eq!(parts(&[client(100, 1, 100), client(300, 1, 0)], 200, false), [0, 200]);
        assert_eq!(parts(&[client(200, 1, 200), client(200, 1, 0)], 200, true), [0, 200]);
        assert_eq!(parts(&[client(200, 1, 150), client(200, 1, 100)], 100, true), [50, 100 - 50]);
        // It can't.
        assert_eq!(parts(&[client(100, 1, 100), client(100, 1, 100)], 100, false), [50, 50]);
    }

    #[test]
    fn they_always_come_to_what_is_asked_and_a_little() {
        for fair in [false, true] {
            for excess in [1, 99, 500, 1000] {
                let clients = [client(400, 2, 10), client(350, 1, 300), client(250, 7, 0)];
                let sum: u64 = parts(&clients, excess, fair).iter().sum();
                assert!((excess..excess + 3).contains(&sum), "{fair} {excess}: {sum}");
            }
        }
    }
}
