//! Holding processes together under a limit on what they have in memory, from samples of it.

use crate::policy::{Answer, Footprint, IDLE, Order, Policy, Sample, Verdict};
use crate::shares::{Inflows, minimums, parts};
use std::time::Duration;

/// What is to be held to, in bytes. 0 or `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// For the memory of all processes together.
    pub resident: Option<u64>,
    /// For that and what the store holds, together.
    pub total: Option<u64>,
    /// For the memory of each process.
    pub client: Option<u64>,
}

/// Decides from one sample after the other. It aims below the limit by what came in lately while it looked away, so that memory
/// that grows is met before the limit and not after.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    limits: Limits,
    fair: bool,
    last: Option<Last>,
    inflows: Inflows,
    /// Bytes a second that come in: at once what it was found to be, and slowly forgotten.
    inflow: u64,
    /// When an order last moved a good part of what it was to.
    fruitful: Duration,
    /// Orders find little to move: until when that is taken for so, and when the next is tried.
    stuck: Option<Stuck>,
}

#[derive(Clone, Copy, Debug)]
struct Stuck {
    until: Duration,
    again: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Duration,
    resident: u64,
    moved_out: u64,
}

/// Looked at no oftener.
const SOONEST: Duration = Duration::from_millis(2);

/// Looked at no more rarely.
const LATEST: Duration = Duration::from_millis(100);

/// How far ahead the inflow is met: the time between two looks and that of moving out.
const AHEAD: Duration = Duration::from_millis(12);

/// Of the margin, the part that may fill again before more is ordered: so little that whoever moves out has work all the time while pages come in. Were it
/// a half, he would rest until it is filled, and pages be held back meanwhile that he could have made room for.
const SLACK: u64 = 8;

/// Of the margin, the part next to the limit in which pages are held back.
const BRAKED: u64 = 4;

/// What came in once is half forgotten in so long. While pages are held back less comes in than soon may again.
const HALVED: Duration = Duration::from_millis(200);

/// No page waits longer.
const LONGEST_BRAKE: Duration = Duration::from_millis(10);

/// A brake this slight is none.
const SHORTEST_BRAKE: Duration = Duration::from_micros(20);

/// After so long without an order that moved half of what it was to, the limit is taken for one that can't be reached.
const FRUITLESS: Duration = Duration::from_millis(100);

/// How often it is tried again then. In between, the program gets on with what it needs.
const RETRY: Duration = Duration::from_millis(100);

/// How long it is taken for that after an order that found little.
const RESIGNED: Duration = Duration::from_millis(500);

/// An order smaller than this isn't worth the round trip.
const LEAST_ORDER: u64 = 256 << 10;

impl Limiter {
    /// One that holds to `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Who has more than its share of the limit gives first, and who has less keeps what it has. Otherwise each gives by what it has, and memory goes to whoever
    /// touches most.
    #[must_use]
    pub fn fair(mut self, fair: bool) -> Self {
        self.fair = fair;
        self
    }

    /// What it holds to.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Holds to something else from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Bytes a second that came in lately.
    pub fn inflow(&self) -> u64 {
        self.inflow
    }

    /// Orders for `asked` bytes in all were carried out, and `moved` bytes went. Where there is much less to move than would have to be,
    /// holding pages back gains nothing: what the program needs to take a step is more than it may have.
    pub fn answered_in_all(&mut self, at: Duration, asked: u64, moved: u64) {
        if asked == 0 {
            return;
        }
        if moved >= asked / 2 {
            self.fruitful = at;
            self.stuck = None;
        } else if at.saturating_sub(self.fruitful) >= FRUITLESS {
            self.stuck = Some(Stuck { until: at + RESIGNED, again: at + RETRY });
        }
    }

    /// What to do about a sample.
    pub fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        let movable: u64 = sample.clients.iter().map(|client| client.resident).sum();
        let resident = movable + sample.fixed;
        self.note(sample, resident);
        let Some(shared) = self.allowed(sample.store) else {
            let orders = self.own_limits(sample);
            return Verdict { orders, next: self.pause(None), fair: self.fair, ..Verdict::default() };
        };
        let margin = self.margin(shared);
        let mut orders = self.own_limits(sample);
        // What is over the slack is taken down to the margin's end, in one order worth the trip.
        if resident > shared.saturating_sub(margin - margin / SLACK) {
            let excess = resident - shared.saturating_sub(margin).min(resident);
            let own = self.own(sample, shared, margin);
            order(sample.clients, &parts(sample.clients, excess, &own), excess, &mut orders);
        }
        let stuck = self.stuck.filter(|stuck| sample.at < stuck.until);
        if stuck.is_some_and(|stuck| sample.at < stuck.again) {
            orders.clear();
        }
        let brake = match stuck {
            Some(_) => Duration::ZERO,
            None => brake(shared - margin / BRAKED, shared, resident),
        };
        let next = self.pause(Some(shared.saturating_sub(resident)));
        Verdict {
            orders,
            next: if brake.is_zero() { next } else { next.min(SOONEST * 2) },
            // Of what is left below the brake: where all are within their shares of that, nothing is braked.
            unbraked: match brake.is_zero() {
                true => Vec::new(),
                false => self.within(sample, shared, margin / BRAKED),
            },
            brake,
            fair: self.fair,
            over: resident.saturating_sub(shared),
        }
    }

    /// What is each one's own, of a limit that is aimed at from a margin below.
    fn own(&self, sample: &Sample<'_>, shared: u64, margin: u64) -> Vec<u64> {
        match self.fair {
            true => self.inflows.own(sample.clients, shared.saturating_sub(sample.fixed), margin),
            false => minimums(sample.clients),
        }
    }

    /// Who has no more than is its own. It isn't its pages that come too fast.
    fn within(&self, sample: &Sample<'_>, shared: u64, margin: u64) -> Vec<u32> {
        let own = self.own(sample, shared, margin);
        let within = sample.clients.iter().zip(own).filter(|(client, own)| client.resident <= *own);
        within.map(|(client, _)| client.pid).collect()
    }

    /// What all may have in memory while the store holds so much.
    fn allowed(&self, store: u64) -> Option<u64> {
        let total = limit(self.limits.total).map(|most| most.saturating_sub(store));
        match (limit(self.limits.resident), total) {
            (Some(resident), Some(total)) => Some(resident.min(total)),
            (one, other) => one.or(other),
        }
    }

    /// How far below a limit to aim: what comes in while nobody looks, between a 32nd and a third of the limit.
    fn margin(&self, most: u64) -> u64 {
        per(self.inflow, AHEAD).clamp(most / 32, most / 3)
    }

    fn note(&mut self, sample: &Sample<'_>, resident: u64) {
        if let Some(last) = self.last
            && let Some(passed) = sample.at.checked_sub(last.at).filter(|passed| !passed.is_zero())
        {
            let gained = (resident + (sample.moved_out - last.moved_out.min(sample.moved_out)))
                .saturating_sub(last.resident);
            let now = u128::from(gained) * 1_000_000_000 / passed.as_nanos();
            let halvings = passed.as_secs_f64() / HALVED.as_secs_f64();
            let kept = Duration::from_nanos(self.inflow).mul_f64(0.5_f64.powf(halvings)).as_nanos();
            self.inflow = u64::try_from(now.max(kept)).unwrap_or(u64::MAX);
        }
        if self.fair {
            self.inflows.note(sample.clients, sample.at);
        }
        self.last = Some(Last { at: sample.at, resident, moved_out: sample.moved_out });
    }

    /// What the limit for each makes of it.
    fn own_limits(&self, sample: &Sample<'_>) -> Vec<Order> {
        let Some(most) = limit(self.limits.client) else { return Vec::new() };
        let margin = self.margin(most);
        sample
            .clients
            .iter()
            .filter(|client| !client.busy && client.resident > most - margin + margin / SLACK)
            .map(|client| Order::out(client.pid, client.resident - (most - margin)))
            .filter(|order| order.bytes() >= LEAST_ORDER)
            .collect()
    }

    /// When to look again, with so many bytes to go to the limit: half the time they last.
    fn pause(&self, to_go: Option<u64>) -> Duration {
        let Some(to_go) = to_go else {
            return if limit(self.limits.client).is_some() { LATEST / 4 } else { IDLE };
        };
        let lasts = u128::from(to_go) * 1_000_000_000 / u128::from(self.inflow.max(1)) / 2;
        Duration::from_nanos(u64::try_from(lasts).unwrap_or(u64::MAX)).clamp(SOONEST, LATEST)
    }
}

impl Policy for Limiter {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        self.judge(sample)
    }

    fn limits(&self) -> Limits {
        self.limits()
    }

    fn set_limits(&mut self, limits: Limits) {
        self.set_limits(limits);
    }

    fn answered(&mut self, at: Duration, answers: &[Answer]) {
        let sum = |of: fn(&Answer) -> u64| answers.iter().map(of).sum();
        self.answered_in_all(at, sum(|answer| answer.order.bytes()), sum(|answer| answer.moved));
    }
}

/// How long a page waits: with more than `from` in memory the longer the more it is, by the square, and the longest at the limit. So
/// what comes in settles between the two at what goes out, whether that is much or little.
fn brake(from: u64, most: u64, resident: u64) -> Duration {
    let share = resident.saturating_sub(from) as f64 / (most - from).max(1) as f64;
    let brake = LONGEST_BRAKE.mul_f64(share.min(1.0).powi(2));
    if brake < SHORTEST_BRAKE { Duration::ZERO } else { brake }
}

/// Adds what each gives to the orders. Who is busy keeps its part for the next time.
fn order(clients: &[Footprint], parts: &[u64], excess: u64, orders: &mut Vec<Order>) {
    for (client, bytes) in clients.iter().zip(parts).filter(|(client, _)| !client.busy) {
        let bytes = (*bytes).min(client.resident);
        if bytes < LEAST_ORDER.min(excess) || bytes == 0 {
            continue;
        }
        match orders.iter_mut().find(|order| order.pid == client.pid) {
            Some(order) => *order = Order::out(client.pid, order.bytes().max(bytes)),
            None => orders.push(Order::out(client.pid, bytes)),
        }
    }
}

/// What comes in over a time, at so many bytes a second.
fn per(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn limit(value: Option<u64>) -> Option<u64> {
    value.filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn client(pid: u32, resident: u64) -> Footprint {
        Footprint { pid, resident, ..Footprint::default() }
    }

    /// Beside one that took all it could a program that kept within its share was held back as long as the other.
    #[test]
    fn who_has_no_more_than_its_share_isnt_held_back_for_the_others() {
        let limits = Limits { resident: Some(100 * MIB), ..Limits::default() };
        let mut poor = client(3, 5 * MIB);
        poor.claim.minimum = 6 * MIB;
        let clients = [client(1, 33 * MIB), client(2, 62 * MIB), poor];
        for (fair, unbraked) in [(true, vec![1, 3]), (false, vec![3])] {
            let mut limiter = Limiter::new(limits).fair(fair);
            let verdict = limiter.judge(&sample(0, &clients, 0));
            assert!(!verdict.brake.is_zero());
            assert_eq!(verdict.unbraked, unbraked);
        }
    }

    #[test]
    fn who_is_alone_or_has_as_much_as_the_others_is_held_back_before_the_limit() {
        let limits = Limits { resident: Some(100 * MIB), ..Limits::default() };
        let each = |count: u32| (1..=count).map(|pid| client(pid, 100 * MIB / u64::from(count))).collect();
        for clients in [each(1), each(4)] as [Vec<Footprint>; 2] {
            let verdict = Limiter::new(limits).fair(true).judge(&sample(0, &clients, 0));
            assert!(!verdict.brake.is_zero());
            assert_eq!((verdict.unbraked, verdict.over), (vec![], 0));
        }
    }

    fn sample(at: u64, clients: &[Footprint], moved_out: u64) -> Sample<'_> {
        Sample {
            at: Duration::from_millis(at),
            clients,
            fixed: 0,
            store: 0,
            moved_out,
            stalled: None,
            free_disk: None,
        }
    }

    fn resident(bytes: u64) -> Limits {
        Limits { resident: Some(bytes), ..Limits::default() }
    }

    #[test]
    fn without_a_limit_it_only_looks_and_rarely() {
        for limits in [Limits::default(), Limits { resident: Some(0), total: Some(0), client: Some(0) }] {
            let verdict = Limiter::new(limits).judge(&sample(0, &[client(1, 900 * MIB)], 0));
            assert_eq!(verdict, Verdict { next: IDLE, ..Verdict::default() });
        }
    }

    #[test]
    fn what_is_over_goes_and_a_little_more() {
        let mut limiter = Limiter::new(resident(64 * MIB));
        let verdict = limiter.judge(&sample(0, &[client(1, 100 * MIB)], 0));
        assert_eq!(verdict.orders, [Order::out(1, 38 * MIB)]);
        assert_eq!((verdict.over, verdict.next), (36 * MIB, SOONEST));
        assert_eq!(limiter.judge(&sample(100, &[client(1, 62 * MIB)], 38 * MIB)).orders, []);
    }

    #[test]
    fn each_gives_its_share_and_who_is_busy_waits() {
        let mut limiter = Limiter::new(resident(66 * MIB));
        let clients = [client(1, 66 * MIB), Footprint { busy: true, ..client(2, 33 * MIB) }];
        let margin = 66 * MIB / 32;
        let verdict = limiter.judge(&sample(0, &clients, 0));
        assert_eq!(verdict.orders, [Order::out(1, ((33 * MIB + margin) * 2).div_ceil(3))]);
    }

    #[test]
    fn growth_is_met_before_the_limit() {
        let mut limiter = Limiter::new(resident(64 * MIB));
        assert_eq!(limiter.judge(&sample(0, &[client(1, 20 * MIB)], 0)).orders, []);
        // 20 MiB in 50 ms: nearly 5 MiB more within 12 ms.
        let verdict = limiter.judge(&sample(50, &[client(1, 40 * MIB)], 0));
        assert_eq!((verdict.orders, verdict.over), (vec![], 0));
        assert!(verdict.next <= Duration::from_millis(30), "{:?}", verdict.next);
        let verdict = limiter.judge(&sample(80, &[client(1, 52 * MIB)], 0));
        assert!(verdict.next <= Duration::from_millis(15), "{:?}", verdict.next);
        let verdict = limiter.judge(&sample(95, &[client(1, 60 * MIB)], 0));
        assert_eq!((verdict.over, verdict.brake), (0, Duration::ZERO));
        assert!(verdict.orders[0].bytes() > MIB, "{verdict:?}");
    }

    #[test]
    fn what_came_in_while_as_much_went_out_is_seen() {
        let mut limiter = Limiter::new(resident(64 * MIB));
        limiter.judge(&sample(0, &[client(1, 62 * MIB)], 0));
        limiter.judge(&sample(100, &[client(1, 62 * MIB)], 20 * MIB));
        assert_eq!(limiter.inflow(), 200 * MIB);
        let mut at = 100;
        while limiter.inflow() > MIB {
            at += 10;
            limiter.judge(&sample(at, &[client(1, 62 * MIB)], 20 * MIB));
            assert!(at < 2000, "still thought to grow by {}", limiter.inflow());
        }
    }

    #[test]
    fn what_the_store_holds_counts_against_the_total() {
        let mut limiter = Limiter::new(Limits { total: Some(80 * MIB), ..resident(64 * MIB) });
        let clients = [client(1, 60 * MIB)];
        assert_eq!(limiter.judge(&Sample { store: 10 * MIB, ..sample(0, &clients, 0) }).orders, []);
        let verdict = limiter.judge(&Sample { store: 40 * MIB, ..sample(100, &clients, 0) });
        assert_eq!(verdict.over, 20 * MIB);
        let verdict = limiter.judge(&Sample { store: 200 * MIB, ..sample(200, &clients, 0) });
        assert_eq!(verdict.orders, [Order::out(1, 60 * MIB)]);
    }

    #[test]
    fn what_cant_be_moved_counts_too() {
        let mut limiter = Limiter::new(resident(64 * MIB));
        let clients = [client(1, 40 * MIB)];
        let verdict = limiter.judge(&Sample { fixed: 40 * MIB, ..sample(0, &clients, 0) });
        assert_eq!(verdict.orders, [Order::out(1, 18 * MIB)]);
    }

    #[test]
    fn the_limit_for_each_holds_beside_the_one_for_all() {
        let limits = Limits { client: Some(32 * MIB), ..resident(100 * MIB) };
        let mut limiter = Limiter::new(limits);
        let verdict = limiter.judge(&sample(0, &[client(1, 40 * MIB), client(2, 8 * MIB)], 0));
        assert_eq!(verdict.orders, [Order::out(1, 9 * MIB)]);
    }

    #[test]
    fn a_program_that_churns_settles_under_the_limit() {
        // 100 MiB a second come in; moving out takes its time and is done when the next sample is taken.
        let mut limiter = Limiter::new(resident(64 * MIB));
        let (mut now, mut moved_out, mut at) = (20 * MIB, 0, 0u64);
        let mut over = 0;
        for _ in 0..1000 {
            let verdict = limiter.judge(&sample(at, &[client(1, now)], moved_out));
            over += u64::from(verdict.over > 0);
            let passed = u64::try_from(verdict.next.as_millis()).unwrap();
            at += passed;
            now += passed * 100 * MIB / 1000;
            for order in verdict.orders {
                now -= order.bytes();
                moved_out += order.bytes();
            }
        }
        assert_eq!(over, 0);
        assert!(now > 40 * MIB, "{now} left of 64 MiB");
    }

    #[test]
    fn the_brake_goes_on_below_the_limit_and_is_full_at_it() {
        let mut limiter = Limiter::new(resident(64 * MIB));
        let mut at = 0;
        let mut brake = |bytes| {
            at += 5;
            limiter.judge(&sample(at, &[client(1, bytes)], 0)).brake
        };
        assert_eq!(brake(62 * MIB), Duration::ZERO);
        assert!((1..LONGEST_BRAKE.as_micros()).contains(&brake(63 * MIB + MIB / 2).as_micros()));
        assert_eq!(brake(64 * MIB), LONGEST_BRAKE);
        assert_eq!(brake(u64::MAX / 2), LONGEST_BRAKE);
        assert_eq!(brake(40 * MIB), Duration::ZERO);
    }

    #[test]
    fn a_limit_that_cant_be_reached_holds_nothing_back() {
        let mut limiter = Limiter::new(resident(16 * MIB));
        let clients = [client(1, 20 * MIB)];
        let (mut orders, mut at) = (0, 0u64);
        let mut braked = 0;
        while at < 2_000 {
            let verdict = limiter.judge(&sample(at, &clients, 0));
            for order in verdict.orders {
                orders += 1;
                limiter.answered_in_all(Duration::from_millis(at), order.bytes(), MIB / 2);
            }
            braked += u64::from(!verdict.brake.is_zero() && at > 200);
            at += 5;
        }
        assert_eq!(braked, 0);
        assert!((10..60).contains(&orders), "{orders} orders");
        // It shrank, and can be held again.
        limiter.answered_in_all(Duration::from_millis(2_000), 4 * MIB, 4 * MIB);
        assert_eq!(limiter.judge(&sample(2_001, &clients, 0)).brake, LONGEST_BRAKE);
    }

    #[test]
    fn one_order_that_finds_little_among_others_is_no_reason() {
        let mut limiter = Limiter::new(resident(16 * MIB));
        let clients = [client(1, 20 * MIB)];
        for at in 0..100 {
            let now = Duration::from_millis(at * 10);
            limiter.answered_in_all(now, MIB, if at % 5 == 0 { MIB } else { 0 });
            assert_eq!(limiter.judge(&sample(at * 10, &clients, 0)).brake, LONGEST_BRAKE, "{at}");
        }
    }

    #[test]
    fn what_comes_back_faster_than_it_goes_is_held_under_the_limit() {
        // A thread brings 32 pages in with each fault and could do so every 75 us, 1.7 GiB a second. Much less goes out.
        for rate in [50, 500] {
            let mut limiter = Limiter::new(resident(64 * MIB));
            let (mut now, mut moved_out, mut owed, mut at) = (60 * MIB, 0u64, 0u64, Duration::ZERO);
            while at < Duration::from_secs(20) {
                let clients = [Footprint { busy: owed > 0, ..client(1, now) }];
                let verdict = limiter.judge(&Sample { at, ..sample(0, &clients, moved_out) });
                assert!(at < Duration::from_secs(5) || verdict.over == 0, "{} over at {at:?}", verdict.over);
                owed += verdict.orders.iter().map(|order| order.bytes()).sum::<u64>();
                at += verdict.next;
                let mut passed = verdict.next;
                while !passed.is_zero() {
                    let step = passed.min(Duration::from_micros(100));
                    passed -= step;
                    let each = Duration::from_micros(75) + verdict.brake;
                    now += 128 * 1024 * u64::try_from(step.as_nanos()).unwrap()
                        / u64::try_from(each.as_nanos()).unwrap();
                    let out = owed.min(per(rate * MIB, step)).min(now);
                    (now, moved_out, owed) = (now - out, moved_out + out, owed - out);
                }
            }
            // It isn't held back more than it takes: what can go out nearly all the time does.
            assert!(moved_out > 20 * rate * MIB / 8 * 7, "{} MiB a second of {rate}", moved_out / MIB / 20);
        }
    }
}
