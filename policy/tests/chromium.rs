//! The browser's policy under a clock that stands still until it is moved.

use std::time::Duration;
use userswap_policy::chromium::{Area, Chromium, Eligibility, Hint, Knobs, Pressure, regions};

const MIB: u64 = 1 << 20;
const REGION: u64 = 16 * 4096;

/// A policy, and the time it thinks it is.
struct Mock {
    policy: Chromium,
    now: Duration,
}

impl Mock {
    /// Clients 1 and 2 are there, initialised, and have been out of sight for long.
    fn new(knobs: Knobs) -> Self {
        let mut mock = Self { policy: Chromium::new(Knobs { enabled: true, ..knobs }), now: Duration::ZERO };
        for pid in [1, 2] {
            assert!(mock.policy.joined(pid, mock.now));
            mock.policy.initialised(pid);
        }
        mock.pass(1_000);
        mock
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn pressure(&mut self) -> Vec<u32> {
        self.policy.pressure(Pressure::Moderate, self.now)
    }

    fn eligible(&self, pid: u32) -> Eligibility {
        self.policy.eligible(pid, self.now, false)
    }

    fn hint(&mut self, pid: u32, hint: Hint) -> bool {
        self.policy.hint(pid, hint, self.now)
    }

    /// So many bytes of a client go out, as regions that nobody else uses.
    fn fill(&mut self, pid: u32, bytes: u64) {
        let from = Area { start: (u64::from(pid) << 40) + self.policy.used_by(pid), bytes };
        for region in regions(&[from], REGION) {
            self.policy.went(pid, region, self.now);
        }
    }
}

#[test]
fn the_defaults_are_the_browsers() {
    let knobs = Knobs::default();
    assert_eq!((knobs.pages_per_region, knobs.regions_per_round, knobs.compressed), (16, 100, true));
    assert_eq!((knobs.min_free_disk, knobs.max_total, knobs.max_client), (128 * MIB, 1024 * MIB, 128 * MIB));
    let seconds =
        [knobs.blocked_refault, knobs.walk_every, knobs.client_every, knobs.idle].map(|time| time.as_secs());
    assert_eq!(seconds, [45, 60, 120, 60]);
    assert!(knobs.on_freeze && knobs.on_pressure && knobs.shuffle && !knobs.enabled);
}

#[test]
fn switched_off_nobody_is_initialised_or_moved() {
    let mut policy = Chromium::new(Knobs::default());
    assert!(!policy.joined(1, Duration::ZERO));
    assert_eq!(policy.pressure(Pressure::Critical, Duration::from_secs(1_000)), []);
    // Switched off while clients are there, it stops.
    let mut mock = Mock::new(Knobs::default());
    mock.policy.set_knobs(Knobs::default());
    assert_eq!(mock.eligible(1), Eligibility::NotAllowed);
    assert_eq!(mock.pressure(), []);
}

#[test]
fn a_process_is_initialised_once() {
    let mut mock = Mock::new(Knobs::default());
    assert!(!mock.policy.joined(1, mock.now));
    assert!(mock.policy.joined(3, mock.now));
    mock.pass(100);
    assert!(!mock.policy.joined(3, mock.now));
    assert_eq!(mock.eligible(3), Eligibility::NotInitialised);
    mock.policy.initialised(3);
    assert_eq!(mock.eligible(3), Eligibility::Eligible);
    // Its id may come again.
    mock.policy.left(3);
    assert_eq!(mock.eligible(3), Eligibility::Invalid);
    assert!(mock.policy.joined(3, mock.now));
}

#[test]
fn nothing_is_walked_without_pressure() {
    let mut mock = Mock::new(Knobs::default());
    for _ in 0..10 {
        assert_eq!(mock.policy.pressure(Pressure::None, mock.now), []);
        mock.pass(100);
    }
    // And having looked in vain doesn't delay the first walk.
    assert_eq!(mock.pressure(), [1, 2]);
}

#[test]
fn pressure_walks_at_once_then_not_again_for_a_minute() {
    let mut mock = Mock::new(Knobs { client_every: Duration::ZERO, ..Knobs::default() });
    assert_eq!(mock.pressure(), [1, 2]);
    mock.pass(59);
    assert_eq!(mock.pressure(), []);
    assert_eq!(mock.policy.pressure(Pressure::Critical, mock.now), []);
    mock.pass(1);
    assert_eq!(mock.policy.pressure(Pressure::Critical, mock.now), [1, 2]);
}

#[test]
fn a_walk_swaps_only_who_is_eligible() {
    let mut mock = Mock::new(Knobs::default());
    mock.hint(1, Hint::Visible(true));
    assert_eq!(mock.pressure(), [2]);
    assert_eq!(mock.eligible(1), Eligibility::Visible);
}

#[test]
fn neither_visible_nor_audible_nor_loading_is_swapped() {
    for (hint, end, why) in [
        (Hint::Visible(true), Hint::Visible(false), Eligibility::Visible),
        (Hint::Audible(true), Hint::Audible(false), Eligibility::Audible),
        (Hint::Loading(true), Hint::Loading(false), Eligibility::Loading),
    ] {
        let mut mock = Mock::new(Knobs::default());
        mock.hint(1, hint);
        assert_eq!((mock.eligible(1), mock.pressure()), (why, vec![2]));
        mock.hint(1, end);
        mock.pass(60);
        assert_eq!((mock.eligible(1), mock.pressure()), (Eligibility::Eligible, vec![1]));
    }
}

#[test]
fn who_was_seen_must_have_been_out_of_sight_for_a_minute() {
    let mut mock = Mock::new(Knobs::default());
    mock.hint(1, Hint::Visible(true));
    mock.pass(600);
    mock.hint(1, Hint::Visible(false));
    mock.pass(59);
    assert_eq!(mock.eligible(1), Eligibility::NotIdle);
    // That it still isn't seen is no news.
    mock.hint(1, Hint::Visible(false));
    mock.pass(1);
    assert_eq!(mock.eligible(1), Eligibility::Eligible);
    // Who has just come hasn't been idle either.
    mock.policy.joined(3, mock.now);
    mock.policy.initialised(3);
    assert_eq!(mock.eligible(3), Eligibility::NotIdle);
}

#[test]
fn a_process_is_swapped_once_a_period() {
    let mut mock = Mock::new(Knobs::default());
    assert_eq!(mock.pressure(), [1, 2]);
    mock.pass(60);
    assert_eq!((mock.pressure(), mock.eligible(1)), (vec![], Eligibility::TooSoon));
    mock.pass(60);
    assert_eq!(mock.pressure(), [1, 2]);
}

#[test]
fn nothing_is_swapped_when_the_disk_is_low() {
    let mut mock = Mock::new(Knobs::default());
    mock.policy.disk(Some(128 * MIB - 1));
    assert_eq!((mock.eligible(1), mock.pressure()), (Eligibility::DiskLow, vec![]));
    mock.policy.disk(Some(128 * MIB));
    mock.pass(60);
    assert_eq!(mock.pressure(), [1, 2]);
    // Where pages go to memory there is no disk to fill.
    mock.policy.disk(None);
    mock.pass(120);
    assert_eq!(mock.pressure(), [1, 2]);
    // A knob of 0 is no limit.
    let mut mock = Mock::new(Knobs { min_free_disk: 0, ..Knobs::default() });
    mock.policy.disk(Some(0));
    assert_eq!(mock.pressure(), [1, 2]);
}

#[test]
fn the_total_maximum_is_not_passed() {
    let mut mock = Mock::new(Knobs { max_client: 0, ..Knobs::default() });
    mock.fill(2, 1024 * MIB - 3 * REGION);
    assert_eq!((mock.eligible(1), mock.policy.may_move(1, REGION)), (Eligibility::Eligible, 3));
    mock.fill(1, 3 * REGION);
    assert_eq!((mock.eligible(1), mock.policy.may_move(1, REGION)), (Eligibility::TotalFull, 0));
    assert_eq!(mock.pressure(), []);
}

#[test]
fn the_clients_maximum_is_not_passed() {
    let mut mock = Mock::new(Knobs::default());
    mock.fill(1, 128 * MIB - REGION / 2);
    // Half a region is no region.
    assert_eq!(mock.policy.may_move(1, REGION), 1);
    mock.fill(1, REGION);
    assert_eq!((mock.eligible(1), mock.policy.may_move(1, REGION)), (Eligibility::ClientFull, 0));
    assert_eq!(mock.pressure(), [2]);
    // Less allowed than is out already: nothing, and not what a difference below zero wraps to.
    mock.policy.set_knobs(Knobs { enabled: true, max_client: MIB, ..Knobs::default() });
    assert_eq!(mock.policy.may_move(1, REGION), 0);
}

#[test]
fn a_round_is_limited_and_no_limit_is_none() {
    let mut mock = Mock::new(Knobs::default());
    assert_eq!(mock.policy.may_move(1, REGION), 100);
    assert_eq!(mock.policy.may_move(1, 2 * MIB), 64);
    assert_eq!((mock.policy.may_move(9, REGION), mock.policy.may_move(1, 0)), (0, 0));
    let none = Knobs { enabled: true, max_total: 0, max_client: 0, regions_per_round: 0, ..Knobs::default() };
    mock.policy.set_knobs(none);
    mock.fill(1, 2048 * MIB);
    assert_eq!((mock.policy.may_move(1, REGION), mock.eligible(1)), (u32::MAX, Eligibility::Eligible));
}

#[test]
fn who_freezes_is_swapped_whatever_it_is_seen_doing() {
    let mut mock = Mock::new(Knobs::default());
    mock.hint(1, Hint::Visible(true));
    mock.hint(1, Hint::Loading(true));
    assert!(mock.hint(1, Hint::Frozen(true)));
    assert!(!mock.hint(1, Hint::Frozen(true)), "it is frozen already");
    // The period counts for it, too.
    mock.hint(1, Hint::Frozen(false));
    assert!(!mock.hint(1, Hint::Frozen(true)));
    mock.hint(1, Hint::Frozen(false));
    mock.pass(120);
    assert!(mock.hint(1, Hint::Frozen(true)));
    // And so do disk and maximum.
    mock.policy.disk(Some(0));
    assert!(!mock.hint(2, Hint::Frozen(true)));
    let mut mock = Mock::new(Knobs { on_freeze: false, ..Knobs::default() });
    assert!(!mock.hint(1, Hint::Frozen(true)));
}

#[test]
fn pressure_can_be_left_unheard() {
    let mut mock = Mock::new(Knobs { on_pressure: false, ..Knobs::default() });
    assert_eq!(mock.policy.pressure(Pressure::Critical, mock.now), []);
    assert!(mock.hint(1, Hint::Frozen(true)));
}

#[test]
fn the_first_reason_is_given_in_the_browsers_order() {
    let mut mock = Mock::new(Knobs { max_total: MIB, max_client: MIB, ..Knobs::default() });
    assert_eq!(mock.pressure(), [1, 2]);
    mock.policy.joined(3, mock.now);
    mock.fill(1, MIB);
    mock.policy.disk(Some(0));
    for hint in [Hint::Loading(true), Hint::Visible(true), Hint::Audible(true)] {
        mock.hint(1, hint);
    }
    let mut reasons = vec![mock.eligible(9), mock.eligible(3)];
    let mut excluded = mock.policy.clone();
    excluded.exclude(1);
    reasons.push(excluded.eligible(1, mock.now, false));
    reasons.push(mock.eligible(1));
    mock.pass(120);
    reasons.push(mock.eligible(1));
    for hint in [Hint::Loading(false), Hint::Visible(false), Hint::Audible(false)] {
        mock.hint(1, hint);
        reasons.push(mock.eligible(1));
    }
    mock.pass(60);
    reasons.push(mock.eligible(1));
    mock.policy.disk(None);
    reasons.push(mock.eligible(1));
    mock.policy.set_knobs(Knobs { enabled: true, max_client: MIB, ..Knobs::default() });
    reasons.push(mock.eligible(1));
    use Eligibility::{
        Audible, ClientFull, DiskLow, Invalid, Loading, NotAllowed, NotIdle, NotInitialised, TooSoon,
        TotalFull, Visible,
    };
    assert_eq!(
        reasons,
        [
            Invalid,
            NotInitialised,
            NotAllowed,
            TooSoon,
            Loading,
            Visible,
            Audible,
            NotIdle,
            DiskLow,
            TotalFull,
            ClientFull
        ]
    );
}

#[test]
fn both_switches_are_one_way() {
    let mut mock = Mock::new(Knobs::default());
    mock.policy.exclude(1);
    assert_eq!(mock.pressure(), [2]);
    assert!(!mock.policy.joined(1, mock.now));
    mock.pass(1_000);
    assert_eq!(mock.eligible(1), Eligibility::NotAllowed);
    mock.policy.switch_off();
    mock.policy.set_knobs(Knobs { enabled: true, ..Knobs::default() });
    assert_eq!((mock.pressure(), mock.eligible(2)), (vec![], Eligibility::NotAllowed));
    assert!(!mock.policy.joined(3, mock.now));
}

#[test]
fn what_a_dead_client_used_is_free_again() {
    let mut mock = Mock::new(Knobs { max_client: 0, ..Knobs::default() });
    mock.fill(1, 1024 * MIB);
    assert_eq!((mock.eligible(2), mock.policy.used()), (Eligibility::TotalFull, 1024 * MIB));
    mock.policy.left(1);
    assert_eq!((mock.eligible(2), mock.policy.used()), (Eligibility::Eligible, 0));
    // News of the dead changes nothing.
    mock.policy.went(1, Area { start: 0, bytes: REGION }, mock.now);
    mock.policy.came_back(1, 0, mock.now);
    assert_eq!(mock.policy.used(), 0);
}

#[test]
fn what_comes_back_is_accounted_and_blocked_if_it_was_soon() {
    let mut mock = Mock::new(Knobs::default());
    let area = Area { start: 0x10_0000, bytes: REGION };
    mock.policy.went(1, area, mock.now);
    assert_eq!((mock.policy.used(), mock.policy.used_by(1), mock.policy.used_by(2)), (REGION, REGION, 0));
    assert!(!mock.policy.may_go(1, area) && mock.policy.may_go(2, area));
    mock.pass(45);
    mock.policy.came_back(1, area.start, mock.now);
    assert_eq!(mock.policy.used(), 0);
    assert!(mock.policy.may_go(1, area));
    mock.policy.went(1, area, mock.now);
    mock.pass(44);
    mock.policy.came_back(1, area.start, mock.now);
    mock.pass(1_000_000);
    assert!(!mock.policy.may_go(1, area));
}

#[test]
fn a_region_that_is_partly_unmapped_is_out_no_more() {
    let mut mock = Mock::new(Knobs::default());
    mock.fill(1, 4 * REGION);
    mock.policy.gone(1, Area { start: (1 << 40) + REGION + 4096, bytes: REGION });
    assert_eq!((mock.policy.used(), mock.policy.used_by(1)), (2 * REGION, 2 * REGION));
}
