//! The policy `proactive` over a model of a program: idle, busy, idle. What goes is chosen as the engine chooses it, which sees nothing but what comes back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;
use userswap_policy::proactive::Knobs;
use userswap_policy::{Activity, Answer, Footprint, Policy, Proactive, Sample, Victims, What};

const PAGE: u64 = 4096;
/// 256 MiB.
const BLOCKS: u64 = 1024;
const PAGES: u64 = BLOCKS * 64;

/// What a page that was out costs who touches it.
const FAULT: Duration = Duration::from_micros(15);

/// A program, its memory, and who takes of it.
struct Model {
    policy: Proactive,
    victims: Victims,
    /// By block, the pages in memory.
    memory: Vec<u64>,
    resident: u64,
    now: Duration,
    next: Duration,
    activity: Activity,
    /// Of the whole phase.
    stalled: Duration,
    faults: u64,
    random: u64,
}

impl Model {
    fn new() -> Self {
        let mut victims = Victims::new();
        (0..BLOCKS).for_each(|block| victims.found(block, !0));
        Self {
            policy: Proactive::new(Knobs::default()),
            victims,
            memory: vec![!0; usize::try_from(BLOCKS).unwrap()],
            resident: PAGES,
            now: Duration::ZERO,
            next: Duration::ZERO,
            activity: Activity::default(),
            stalled: Duration::ZERO,
            faults: 0,
            random: 7,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn touch(&mut self, page: u64) {
        let (block, bit) = (page / 64, 1 << (page % 64));
        let there = &mut self.memory[usize::try_from(block).unwrap()];
        if *there & bit == 0 {
            *there |= bit;
            self.resident += 1;
            self.victims.arrived(block, bit);
            self.activity.stall += FAULT;
            self.activity.promoted += PAGE;
            self.stalled += FAULT;
            self.faults += 1;
        }
    }

    /// Ten milliseconds, in which pages of the first `set` are touched at random, so many.
    fn pass(&mut self, set: u64, touches: u64) {
        for _ in 0..touches {
            let page = self.draw(set);
            self.touch(page);
        }
        self.now += Duration::from_millis(10);
        if self.now < self.next {
            return;
        }
        let activity = std::mem::take(&mut self.activity);
        let client = Footprint { pid: 1, resident: self.resident * PAGE, activity, ..Footprint::default() };
        let sample = Sample {
            at: self.now,
            clients: &[client],
            fixed: 0,
            store: 0,
            moved_out: 0,
            stalled: None,
            free_disk: None,
        };
        let verdict = self.policy.judge(&sample);
        self.next = self.now + verdict.next;
        for order in verdict.orders {
            let What::Out { bytes, spare: true } = order.what else { panic!("{order:?}") };
            let moved = self.move_out(bytes / PAGE) * PAGE;
            self.policy.answered(self.now, &[Answer { order, moved, regions: Vec::new() }]);
        }
    }

    fn move_out(&mut self, pages: u64) -> u64 {
        let (mut cold, mut moved) = (self.victims.cold(), 0);
        while moved < pages
            && let Some(victim) = self.victims.choose_cold(&mut cold)
        {
            let there = &mut self.memory[usize::try_from(victim.block).unwrap()];
            let goes = *there & victim.pages;
            *there &= !victim.pages;
            self.victims.left(victim, goes.count_ones(), 0);
            moved += u64::from(goes.count_ones());
        }
        self.resident -= moved;
        moved
    }

    /// A phase: how much of all time went into stalls, what came back a minute in shares of memory, and what was saved at its end and in the mean.
    fn phase(&mut self, seconds: u64, set: u64, touches: u64) -> Phase {
        (self.stalled, self.faults) = (Duration::ZERO, 0);
        let mut out = 0.0;
        for _ in 0..seconds * 100 {
            self.pass(set, touches);
            out += (PAGES - self.resident) as f64 / PAGES as f64 / (seconds * 100) as f64;
        }
        let phase = Phase {
            stall: self.stalled.as_secs_f64() / seconds as f64,
            promotion: self.faults as f64 / PAGES as f64 * 60.0 / seconds as f64,
            saved: 1.0 - self.resident as f64 / PAGES as f64,
            mean: out,
        };
        println!("{phase:?}");
        phase
    }
}

#[derive(Debug)]
struct Phase {
    stall: f64,
    promotion: f64,
    saved: f64,
    mean: f64,
}

#[test]
fn an_idle_program_gives_most_and_a_busy_one_hardly_notices() {
    let mut model = Model::new();
    // Three hundred pages, over and over.
    let idle = model.phase(180, 300, 20);
    assert!(idle.saved >= 0.9 && idle.mean >= 0.6, "{idle:?}");
    assert!(idle.stall <= 0.001, "{idle:?}");
    // Half of its memory at random, each page a few times a second. Waking costs what it costs.
    let waking = model.phase(10, PAGES / 2, 2_000);
    let busy = model.phase(600, PAGES / 2, 2_000);
    assert!(busy.stall <= 0.001 && busy.promotion <= 0.02, "{busy:?}");
    assert!(busy.saved >= 0.4 && waking.stall < 0.2, "{waking:?} {busy:?}");
    let idle = model.phase(180, 300, 20);
    assert!(idle.saved >= 0.9 && idle.mean >= 0.6 && idle.stall <= 0.001, "{idle:?}");
}

/// All of it used: nothing can be saved, and looking for it must cost next to nothing.
#[test]
fn a_program_that_needs_all_it_has_keeps_it() {
    let mut model = Model::new();
    let busy = model.phase(600, PAGES, 4_000);
    assert!(busy.stall <= 0.0002 && busy.saved < 0.02, "{busy:?}");
    assert!(busy.promotion <= 0.01, "{busy:?}");
}

/// The model itself: what is out is what was taken and not touched.
#[test]
fn the_model_counts_right() {
    let mut model = Model::new();
    let moved = model.move_out(500);
    assert_eq!(model.resident, PAGES - moved);
    let out: BTreeSet<u64> = (0..PAGES)
        .filter(|page| model.memory[usize::try_from(page / 64).unwrap()] >> (page % 64) & 1 == 0)
        .collect();
    assert_eq!(out.len() as u64, moved);
    out.iter().for_each(|page| model.touch(*page));
    assert_eq!(
        (model.resident, model.faults, model.stalled),
        (PAGES, moved, FAULT * u32::try_from(moved).unwrap())
    );
}
