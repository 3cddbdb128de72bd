//! The browser's rules as a [`Policy`]: who is there, what is scarce and what came back is read off what a policy is told.

use super::{Area, Chromium, Hint, Knobs, Pressure, shuffle};
use crate::policy::{Answer, IDLE, Order, Policy, Sample, Verdict, Wants, What};
use std::collections::BTreeSet;
use std::time::Duration;

/// Drives [`Chromium`] by samples, and turns its rounds into orders.
#[derive(Clone, Debug)]
pub struct Browser {
    rules: Chromium,
    /// From which share of time spent waiting for memory on it is scarce.
    scarce: f64,
    known: BTreeSet<u32>,
    /// Told since the last sample: of clients that may be new.
    hints: Vec<(u32, Hint)>,
    /// Whose round is still to be ordered.
    rounds: BTreeSet<u32>,
}

impl Browser {
    /// By these settings; rounds of all begin where somebody waited for memory for at least the share `scarce` of the time.
    pub fn new(knobs: Knobs, scarce: f64) -> Self {
        Self {
            rules: Chromium::new(knobs),
            scarce,
            known: BTreeSet::new(),
            hints: Vec::new(),
            rounds: BTreeSet::new(),
        }
    }

    /// What it goes by, and its accounts.
    pub fn rules(&self) -> &Chromium {
        &self.rules
    }

    /// Takes note of who came and who went.
    fn meet(&mut self, sample: &Sample<'_>) {
        let there: BTreeSet<u32> = sample.clients.iter().map(|client| client.pid).collect();
        for pid in self.known.difference(&there) {
            self.rules.left(*pid);
            self.rounds.remove(pid);
        }
        for pid in &there {
            if self.rules.joined(*pid, sample.at) {
                self.rules.initialised(*pid);
            }
        }
        self.known = there;
    }

    fn pages(&self) -> u32 {
        self.rules.knobs().pages_per_region.max(1)
    }
}

impl Policy for Browser {
    fn judge(&mut self, sample: &Sample<'_>) -> Verdict {
        self.meet(sample);
        self.rules.disk(sample.free_disk);
        for (pid, hint) in std::mem::take(&mut self.hints) {
            if self.rules.hint(pid, hint, sample.at) {
                self.rounds.insert(pid);
            }
        }
        if let Some(share) = sample.stalled {
            let pressure = if share >= self.scarce { Pressure::Moderate } else { Pressure::None };
            self.rounds.extend(self.rules.pressure(pressure, sample.at));
        }
        let free = sample.clients.iter().filter(|client| !client.busy).map(|client| client.pid);
        let what = What::Regions { pages: self.pages() };
        let rounds = &mut self.rounds;
        let orders = free.filter(|pid| rounds.remove(pid)).map(|pid| Order { pid, what }).collect();
        Verdict { orders, next: IDLE, ..Verdict::default() }
    }

    fn wants(&self) -> Wants {
        Wants { ranges: true, pressure: self.rules.knobs().on_pressure, disk: true, ..Wants::default() }
    }

    fn answered(&mut self, at: Duration, answers: &[Answer]) {
        for answer in answers {
            for region in &answer.regions {
                self.rules.went(answer.order.pid, *region, at);
            }
        }
    }

    fn hint(&mut self, pid: u32, hint: Hint, _: Duration) {
        self.hints.push((pid, hint));
    }

    fn came_back(&mut self, pid: u32, area: Area, at: Duration) {
        self.rules.came_back_within(pid, area, at);
    }

    fn gone(&mut self, pid: u32, area: Area) {
        self.rules.gone(pid, area);
    }

    fn choose(&mut self, pid: u32, regions: &mut Vec<Area>, random: &mut dyn FnMut(usize) -> usize) {
        regions.retain(|region| self.rules.may_go(pid, *region));
        if self.rules.knobs().shuffle {
            shuffle(regions, random);
        }
        let bytes = regions.first().map_or(0, |region| region.bytes);
        let most = self.rules.may_move(pid, bytes);
        regions.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Footprint;

    const REGION: u64 = 16 * 4096;

    struct Mock {
        policy: Browser,
        now: Duration,
        clients: Vec<Footprint>,
    }

    impl Mock {
        /// Clients 1 and 2, there for long.
        fn new(knobs: Knobs) -> Self {
            let clients = [1, 2].map(|pid| Footprint { pid, resident: 1 << 30, ..Footprint::default() });
            let policy = Browser::new(Knobs { enabled: true, ..knobs }, 0.05);
            let mut mock = Self { policy, now: Duration::ZERO, clients: clients.to_vec() };
            assert_eq!(mock.judge(None), []);
            mock.now += Duration::from_secs(1000);
            mock
        }

        fn judge(&mut self, stalled: Option<f64>) -> Vec<Order> {
            let sample = Sample {
                at: self.now,
                clients: &self.clients,
                fixed: 0,
                store: 0,
                moved_out: 0,
                stalled,
                free_disk: None,
            };
            self.policy.judge(&sample).orders
        }

        fn hint(&mut self, pid: u32, hint: Hint) {
            self.policy.hint(pid, hint, self.now);
        }

        /// Carries a round out over so many regions. How many went.
        fn carry_out(&mut self, order: Order, offered: u64) -> Vec<Area> {
            assert_eq!(order.what, What::Regions { pages: 16 });
            let mut regions: Vec<Area> =
                (0..offered).map(|at| Area { start: (at + 1) * REGION, bytes: REGION }).collect();
            self.policy.choose(order.pid, &mut regions, &mut |below| below / 2);
            let moved = regions.len() as u64 * REGION;
            let answer = Answer { order, moved, regions: regions.clone() };
            self.policy.answered(self.now, &[answer]);
            regions
        }
    }

    fn round(pid: u32) -> Order {
        Order { pid, what: What::Regions { pages: 16 } }
    }

    #[test]
    fn pressure_gives_everybody_out_of_sight_a_round_once_a_minute() {
        let mut mock = Mock::new(Knobs::default());
        mock.hint(2, Hint::Visible(true));
        assert_eq!(mock.judge(Some(0.04)), []);
        assert_eq!(mock.judge(None), []);
        assert_eq!(mock.judge(Some(0.05)), [round(1)]);
        mock.hint(2, Hint::Visible(false));
        assert_eq!(mock.judge(Some(1.0)), []);
        mock.now += Duration::from_secs(60);
        assert_eq!(mock.judge(Some(1.0)), [round(2)]);
    }

    #[test]
    fn who_freezes_has_a_round_at_once_and_who_is_busy_after_that() {
        let mut mock = Mock::new(Knobs::default());
        mock.hint(1, Hint::Frozen(true));
        mock.clients[0].busy = true;
        assert_eq!(mock.judge(None), []);
        mock.clients[0].busy = false;
        assert_eq!((mock.judge(None), mock.judge(None)), (vec![round(1)], vec![]));
    }

    #[test]
    fn a_round_moves_so_many_regions_and_what_was_back_soon_never_again() {
        let mut mock = Mock::new(Knobs { client_every: Duration::ZERO, ..Knobs::default() });
        let first = mock.carry_out(round(1), 400);
        assert_eq!((first.len(), mock.policy.rules().used_by(1)), (100, 100 * REGION));
        assert!(first.windows(2).any(|two| two[0].start > two[1].start), "in order");
        // One page of the first region, and one that spans the end of the second and the start of what is behind it.
        mock.now += Duration::from_secs(44);
        mock.policy.came_back(1, Area { start: first[0].start + 4096, bytes: 4096 }, mock.now);
        assert_eq!(mock.policy.rules().used_by(1), 99 * REGION);
        mock.now += Duration::from_secs(1);
        mock.policy.came_back(1, Area { start: first[1].start, bytes: 4096 }, mock.now);
        let second = mock.carry_out(round(1), 101);
        assert!(!second.contains(&first[0]), "back too soon");
        assert!(second.iter().all(|region| *region == first[1] || !first.contains(region)));
        // All that it had is unmapped: other regions may be there.
        mock.policy.gone(1, Area { start: 0, bytes: u64::MAX });
        assert_eq!(mock.policy.rules().used(), 0);
        let mut again = vec![first[0]];
        mock.policy.choose(1, &mut again, &mut |_| 0);
        assert_eq!(again, [first[0]]);
    }

    #[test]
    fn what_a_client_had_goes_from_the_accounts_with_it() {
        let mut mock = Mock::new(Knobs::default());
        mock.carry_out(round(2), 50);
        assert_eq!(mock.policy.rules().used(), 50 * REGION);
        mock.clients.pop();
        mock.judge(None);
        assert_eq!(mock.policy.rules().used(), 0);
        assert!(mock.policy.wants().ranges && mock.policy.wants().pressure);
    }
}
