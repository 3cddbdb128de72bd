//! Who gives how much of what all have too much.

use crate::policy::Footprint;
use std::collections::HashMap;
use std::time::Duration;

/// What came in lately, of whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inflows {
    of: HashMap<u32, Inflow>,
    at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Inflow {
    resident: u64,
    moved_out: u64,
    /// Bytes; half of them forgotten every [`HALVED`].
    lately: f64,
}

/// Half of what came in is forgotten in so long.
const HALVED: Duration = Duration::from_millis(200);

impl Inflows {
    /// Takes note of a sample.
    pub(crate) fn note(&mut self, clients: &[Footprint], at: Duration) {
        let halvings = at.saturating_sub(self.at).as_secs_f64() / HALVED.as_secs_f64();
        let kept = 0.5_f64.powf(halvings);
        let now = |client: &Footprint| {
            let before = self.of.get(&client.pid);
            let lately = before.map_or(0.0, |before| {
                let gained = (client.resident + client.moved_out.saturating_sub(before.moved_out))
                    .saturating_sub(before.resident);
                before.lately * kept + gained as f64
            });
            (client.pid, Inflow { resident: client.resident, moved_out: client.moved_out, lately })
        };
        self.of = clients.iter().map(now).collect();
        self.at = at;
    }

    /// What is each one's own of `all` that they may have together: its share by weight, or its minimum if that is more. A `margin` is kept free for what comes in before
    /// anything can go, and comes off the shares of those whose memory comes in: else who needs little would make room for who takes all he can.
    pub(crate) fn own(&self, clients: &[Footprint], all: u64, margin: u64) -> Vec<u64> {
        let weights: u128 = clients.iter().map(|client| u128::from(client.claim.weight.max(1))).sum();
        let lately = |client: &Footprint| self.of.get(&client.pid).map_or(0.0, |inflow| inflow.lately);
        let came: f64 = clients.iter().map(lately).sum();
        let own = |client: &Footprint| {
            let by_weight = |bytes: u64| {
                let share = u128::from(bytes) * u128::from(client.claim.weight.max(1)) / weights.max(1);
                u64::try_from(share).unwrap_or(u64::MAX)
            };
            let free = match came > 0.0 {
                true => Duration::from_nanos(margin).mul_f64((lately(client) / came).min(1.0)).as_nanos(),
                false => by_weight(margin).into(),
            };
            let free = u64::try_from(free).unwrap_or(u64::MAX);
            by_weight(all).saturating_sub(free).max(client.claim.minimum)
        };
        clients.iter().map(own).collect()
    }
}

/// What is each one's own where memory goes to whoever touches it: its minimum.
pub(crate) fn minimums(clients: &[Footprint]) -> Vec<u64> {
    clients.iter().map(|client| client.claim.minimum).collect()
}

/// What each of the clients gives, of `excess` in all, in their order: by what each has beyond its `own`. Where that isn't enough (others have less than theirs, or the
/// minimums come to more than there is), by what each has beyond its minimum, or by all each has.
pub(crate) fn parts(clients: &[Footprint], excess: u64, own: &[u64]) -> Vec<u64> {
    let beyond: Vec<u64> =
        clients.iter().zip(own).map(|(client, own)| client.resident.saturating_sub(*own)).collect();
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

    /// By weight of what is left then, or by minimum.
    fn parts(clients: &[Footprint], excess: u64, fair: bool) -> Vec<u64> {
        let all: u64 = clients.iter().map(|client| client.resident).sum();
        let own = match fair {
            true => Inflows::default().own(clients, all.saturating_sub(excess), 0),
            false => minimums(clients),
        };
        super::parts(clients, excess, &own)
    }

    /// One that hardly ever missed a page had two thirds of its share: the margin was as large as the other made it.
    #[test]
    fn room_for_what_comes_is_made_by_those_whose_it_is() {
        let mut inflows = Inflows::default();
        let clients = |came: u64| {
            let other = Footprint { pid: 2, moved_out: came, ..client(500, 1, 0) };
            [Footprint { pid: 1, moved_out: came / 9, ..client(490, 1, 0) }, other]
        };
        inflows.note(&clients(0), Duration::ZERO);
        assert_eq!(inflows.own(&clients(0), 1000, 100), [450, 450]);
        inflows.note(&clients(900), Duration::from_millis(10));
        let own = inflows.own(&clients(900), 1000, 100);
        assert_eq!(own, [490, 410]);
        assert_eq!(super::parts(&clients(900), 90, &own), [0, 90]);
        // It is forgotten.
        for ms in 1..100 {
            inflows.note(
                &[Footprint { pid: 1, ..client(490 + ms, 1, 0) }, clients(900)[1]],
                Duration::from_millis(ms * 100),
            );
        }
        let own = inflows.own(&clients(900), 1000, 100);
        assert!(own[0] < 410 && own[1] > 490, "{own:?}");
    }

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
