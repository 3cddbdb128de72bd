//! Takes as much memory as programs don't miss, though nobody is short of it.
//!
//! Each process is probed by itself: a little goes, and if its threads don't wait for it, more. How much a probe takes follows what is published of Senpai
//! (github.com/facebookincubator/senpai, and Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022): a share of what is there, scaled down
//! by how near the stall is to its target, `1 - stall / target`; and, after each step that was too much, an interval and more without any. What is guarded beside
//! the stall is the rate at which pages come back, the "promotion rate" of Lagar-Cavilla et al., "Software-Defined Far Memory in Warehouse-Scale Computers",
//! ASPLOS 2019, there 0.2% of the working set a minute: the stall of one page is short, and a processor that fetches thousands of them has other work, too.
//!
//! Three things differ, for reasons. The stall is our own measure, by thread, since the kernel's doesn't see waiting for a userfaultfd; what the kernel sees is
//! added where it is told. A probe doubles as long as it isn't felt, from 0.05% of memory (the published step, every 6 s) up to a twentieth: otherwise it takes
//! hours until an idle program has given up most. And the working set isn't known, as a page in memory doesn't tell whether it is used; what is in
//! memory, which is little more once probing has come to its end, stands for it.

use crate::policy::{Answer, Footprint, IDLE, Order, Policy, Sample, Verdict, Wants, What};
use std::collections::HashMap;
use std::time::Duration;

/// Settings of [`Proactive`]. Shares are of 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Knobs {
    /// The most a thread may wait for pages that are out, as a share of the time: 0.001.
    pub stall: f64,
    /// The most that may come back in a minute, as a share of what is in memory: 0.002. What wasn't used can be used up in one go.
    pub promotion: f64,
    /// From one probe to the next, and what a stall is averaged over: 1 s.
    pub interval: Duration,
    /// The first probe, as a share of what is in memory: 0.0005.
    pub first: f64,
    /// The largest probe: 0.05.
    pub most: f64,
    /// The longest time without a probe after one that was felt: 30 s.
    pub backoff: Duration,
    /// A process that waits for at least this share of an interval gets back all it has out; 0 is never, and usual.
    pub restore: f64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            stall: 0.001,
            promotion: 0.002,
            interval: Duration::from_secs(1),
            first: 0.0005,
            most: 0.05,
            backoff: Duration::from_secs(30),
            restore: 0.0,
        }
    }
}

/// Probes what processes can do without.
#[derive(Clone, Debug)]
pub struct Proactive {
    knobs: Knobs,
    clients: HashMap<u32, Client>,
    /// The share of time in which somebody waited for the kernel's memory, as last read.
    waited: f64,
}

/// What is known of one process.
#[derive(Clone, Debug)]
struct Client {
    /// Since when is counted what follows.
    since: Duration,
    stall: Duration,
    promoted: u64,
    /// What the last probe was to move, and what it moved.
    asked: u64,
    moved: u64,
    /// When it was looked at last.
    seen: Duration,
    /// Bytes that may still come back before that is too much; less than none after that.
    allowance: f64,
    /// The next probe's share.
    pace: f64,
    /// No probe before.
    rest_until: Duration,
    /// How often in a row a probe was felt.
    rests: u32,
}

/// A probe smaller than this isn't worth the round trip.
const LEAST_PROBE: u64 = 64 << 10;

/// What is in memory is taken for no less, where a share of it may come back: of a program that has given up nearly all some pages may.
const LEAST_SET: u64 = 32 << 20;

/// Intervals without a probe after one that found little.
const FRUITLESS: u32 = 3;

/// Where this part of a probe has come back by the next, it was felt.
const FELT: u64 = 4;

impl Proactive {
    /// Knows nobody yet.
    pub fn new(knobs: Knobs) -> Self {
        Self { knobs, clients: HashMap::new(), waited: 0.0 }
    }
}

impl Policy for Proactive {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        self.waited = sample.stalled.unwrap_or(self.waited);
        let (knobs, waited) = (self.knobs, self.waited);
        self.clients.retain(|pid, _| sample.clients.iter().any(|client| client.pid == *pid));
        let orders = sample.clients.iter().filter_map(|footprint| {
            let client = self.clients.entry(footprint.pid).or_insert_with(|| Client::new(&knobs, sample.at));
            client.count(&knobs, sample.at, footprint);
            let what = client.step(&knobs, sample.at, footprint, waited)?;
            Some(Order { pid: footprint.pid, what })
        });
        Verdict { orders: orders.collect(), next: IDLE.min(knobs.interval), ..Verdict::default() }
    }

    fn wants(&self) -> Wants {
        Wants { activity: true, pressure: true, ..Wants::default() }
    }

    fn answered(&mut self, _: Duration, answers: &[Answer]) {
        for answer in answers {
            if let (What::Out { bytes, spare: true }, Some(client)) =
                (answer.order.what, self.clients.get_mut(&answer.order.pid))
            {
                client.asked += bytes;
                client.moved += answer.moved;
            }
        }
    }
}

impl Client {
    fn new(knobs: &Knobs, at: Duration) -> Self {
        Self {
            since: at,
            stall: Duration::ZERO,
            promoted: 0,
            asked: 0,
            moved: 0,
            seen: at,
            allowance: 0.0,
            pace: knobs.first,
            rest_until: at,
            rests: 0,
        }
    }

    /// Adds what a sample says.
    fn count(&mut self, knobs: &Knobs, at: Duration, footprint: &Footprint) {
        self.stall += footprint.activity.stall;
        self.promoted += footprint.activity.promoted;
        let minutely = knobs.promotion * footprint.resident.max(LEAST_SET) as f64;
        let passed = at.saturating_sub(self.seen).as_secs_f64() / 60.0;
        // However much came back, it is tried again after the longest rest.
        let least = -minutely * knobs.backoff.as_secs_f64() / 60.0;
        let gained = self.allowance + minutely * passed - footprint.activity.promoted as f64;
        self.allowance = gained.clamp(least, minutely);
        self.seen = at;
    }

    /// What is to be done now, if an interval is over.
    fn step(&mut self, knobs: &Knobs, at: Duration, footprint: &Footprint, waited: f64) -> Option<What> {
        let passed = at.saturating_sub(self.since);
        if passed < knobs.interval || passed.is_zero() {
            return None;
        }
        let own = self.stall.as_secs_f64() / passed.as_secs_f64();
        let (promoted, asked, moved) = (self.promoted, self.asked, self.moved);
        (self.since, self.stall, self.promoted, self.asked, self.moved) = (at, Duration::ZERO, 0, 0, 0);
        let share = own + waited;
        if share >= knobs.stall || self.allowance < 0.0 {
            self.rest(knobs, at);
            return (knobs.restore > 0.0 && own >= knobs.restore && !footprint.busy).then_some(What::Back);
        }
        if at < self.rest_until || footprint.busy {
            return None;
        }
        if asked > 0 && moved < asked / 2 {
            // There is nothing cold any more: what is left was passed over since it is used, and has its turn again after a few more probes. They cost nobody
            // anything but us, and if the program has come to rest it is they that find out.
            self.pace = knobs.first;
            self.rest_until = at + knobs.interval.saturating_mul(FRUITLESS).min(knobs.backoff);
            return None;
        }
        if moved > 0 && promoted.saturating_mul(FELT) < moved {
            self.pace = (self.pace * 2.0).min(knobs.most);
            self.rests = 0;
        } else if promoted > 0 {
            self.pace = (self.pace / 2.0).max(knobs.first);
        }
        let bytes = footprint.resident as f64 * self.pace * (1.0 - share / knobs.stall);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // a part of it, and no less than none
        let bytes = (bytes as u64).max(LEAST_PROBE);
        Some(What::Out { bytes, spare: true })
    }

    /// Starts small again, after a while: twice as long after each time in a row.
    fn rest(&mut self, knobs: &Knobs, at: Duration) {
        self.pace = knobs.first;
        let rest = knobs.interval.saturating_mul(2u32.saturating_pow(self.rests)).min(knobs.backoff);
        if at >= self.rest_until {
            self.rests = (self.rests + 1).min(16);
        }
        self.rest_until = self.rest_until.max(at + rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// One process of 400 MiB, judged once a second.
    struct Mock {
        policy: Proactive,
        now: Duration,
        resident: u64,
    }

    impl Mock {
        fn new(knobs: Knobs) -> Self {
            let mut mock = Self { policy: Proactive::new(knobs), now: Duration::ZERO, resident: 400 * MIB };
            assert_eq!(mock.judge(0, 0, None), None);
            mock
        }

        /// A second in which its threads waited so long and touched so many bytes that were out.
        fn judge(&mut self, stall_us: u64, promoted: u64, stalled: Option<f64>) -> Option<What> {
            let activity = crate::Activity { stall: Duration::from_micros(stall_us), promoted };
            let client = Footprint { pid: 1, resident: self.resident, activity, ..Footprint::default() };
            let sample = Sample {
                at: self.now,
                clients: &[client],
                fixed: 0,
                store: 0,
                moved_out: 0,
                stalled,
                free_disk: None,
            };
            let orders = self.policy.judge(&sample).orders;
            self.now += Duration::from_secs(1);
            orders.first().map(|order| order.what)
        }

        /// The last order moved so much of what it was to.
        fn answer(&mut self, what: What, share: f64) {
            let order = Order { pid: 1, what };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let moved = (order.bytes() as f64 * share) as u64;
            self.resident -= moved;
            self.policy.answered(self.now, &[Answer { order, moved, regions: Vec::new() }]);
        }

        /// Seconds until the next order, in which nothing happens.
        fn quiet(&mut self) -> (u64, What) {
            (1..).find_map(|second| Some((second, self.judge(0, 0, None)?))).unwrap()
        }
    }

    fn bytes(what: What) -> u64 {
        Order { pid: 1, what }.bytes()
    }

    #[test]
    fn probes_double_while_they_arent_felt_up_to_a_twentieth() {
        let mut mock = Mock::new(Knobs::default());
        let mut last = 0;
        for probe in 0..20 {
            let what = mock.judge(0, 0, None).unwrap();
            assert!(matches!(what, What::Out { spare: true, .. }));
            let most = mock.resident / 20;
            assert!(bytes(what) >= last.min(most) && bytes(what) <= most, "{probe}: {what:?}");
            last = bytes(what);
            mock.answer(what, 1.0);
        }
        assert_eq!(last, (mock.resident + last) / 20);
    }

    #[test]
    fn a_stall_ends_probing_for_longer_each_time() {
        let mut mock = Mock::new(Knobs::default());
        let mut rests = Vec::new();
        for _ in 0..8 {
            // Over the target, 0.1% of a second, but little came back.
            assert_eq!(mock.judge(1_000, 4096, None), None);
            let (rest, what) = mock.quiet();
            rests.push(rest);
            mock.answer(what, 1.0);
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30, 30]);
        // A probe that isn't felt makes good again.
        let what = mock.judge(0, 0, None).unwrap();
        mock.answer(what, 1.0);
        assert_eq!(mock.judge(1_000, 4096, None), None);
        assert_eq!(mock.quiet().0, 1);
    }

    #[test]
    fn the_nearer_the_target_the_smaller_a_probe() {
        let half = Mock::new(Knobs::default()).judge(500, 0, None).unwrap();
        let none = Mock::new(Knobs::default()).judge(0, 0, None).unwrap();
        assert!(bytes(half).abs_diff(bytes(none) / 2) < 4096, "{half:?} {none:?}");
        // What the kernel has somebody wait counts beside.
        let waited = Mock::new(Knobs::default()).judge(0, 0, Some(0.0005)).unwrap();
        assert_eq!(half, waited);
        assert_eq!(Mock::new(Knobs::default()).judge(500, 0, Some(0.0005)), None);
    }

    #[test]
    fn what_comes_back_in_a_minute_is_bounded_however_short_the_stall() {
        let mut mock = Mock::new(Knobs::default());
        let minutely = 400 * MIB / 500;
        let (mut promoted, mut probes) = (0, 0);
        for _ in 0..600 {
            // All that goes comes back at once, in no time.
            if let Some(what) = mock.judge(1, promoted, None) {
                promoted = bytes(what);
                probes += 1;
            } else {
                promoted = 0;
            }
        }
        // Ten minutes, and one to begin with.
        assert!(probes > 10 && probes * 209_715 <= minutely * 12, "{probes} probes");
    }

    #[test]
    fn where_nothing_cold_is_left_it_looks_rarely_and_small() {
        let mut mock = Mock::new(Knobs::default());
        let mut rests = Vec::new();
        for _ in 0..7 {
            let (rest, what) = mock.quiet();
            rests.push(rest);
            assert!(bytes(what) <= mock.resident / 2000, "{what:?}");
            mock.answer(what, 0.1);
        }
        assert_eq!(rests, [1, 4, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn who_waits_for_long_gets_all_of_it_back_if_that_is_wanted() {
        let knobs = Knobs { restore: 0.2, ..Knobs::default() };
        assert_eq!(Mock::new(knobs).judge(200_000, MIB, None), Some(What::Back));
        assert_eq!(Mock::new(knobs).judge(199_000, MIB, None), None);
        assert_eq!(Mock::new(Knobs::default()).judge(999_999, MIB, None), None);
    }
}
