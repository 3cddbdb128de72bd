//! Who goes on where somebody has died.

use super::death::{Death, Fate, Mortal, MortalStore};
use super::rng::Rng;
use super::world::{Handler, World};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use userswap_engine::Ledger;
use userswap_engine::memory::Memory;
use userswap_engine::shares::Shares;
use userswap_engine::space::recover::take_up;
use userswap_store::Store;

/// Whoever serves, and when he dies.
pub(super) struct Mortality {
    pub(super) fate: Arc<Fate>,
    pub(super) rng: Rng,
    pub(super) deaths: u32,
}

impl Mortality {
    /// Decides how long this life lasts.
    pub(super) fn decide(&mut self) {
        // Many are short: of recovering, too.
        let most = if self.rng.chance(1, 3) { 60 } else { 900 };
        let left = self.rng.below(most);
        self.fate.decide((self.deaths < MOST_DEATHS).then_some(left));
    }
}

/// So many in one world.
const MOST_DEATHS: u32 = 4;

/// Runs it, unless there is a death.
pub(super) fn lives(run: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(()) => true,
        Err(why) if why.is::<Death>() => false,
        Err(why) => resume_unwind(why),
    }
}

impl World {
    /// A successor takes up what was left. He may die of it.
    pub(super) fn succeed(&mut self) {
        while !lives(|| self.take_up()) {}
    }

    fn take_up(&mut self) {
        let Some(mortality) = &mut self.mortality else { return };
        mortality.deaths += 1;
        let estate = mortality.fate.estate();
        let roster = Arc::clone(&mortality.fate.roster);
        // What the dead one had in hand, none of which has any effect any more.
        let found = self.store.found();
        self.cares.clear();
        let around = self.around;
        self.handlers.iter_mut().for_each(|handler| *handler = Handler::new(around));
        self.shares = Arc::new(Shares::default());
        self.machine.lock().handed.clear();
        roster.ledgers().into_iter().for_each(|number| roster.strike(number));

        let fate = Fate::new(&self.machine, &roster, self.options.defect);
        mortality.fate = Arc::clone(&fate);
        let (mut memories, mut procs) = (Vec::<Arc<dyn Memory>>::new(), Vec::new());
        for left in estate {
            match Ledger::adopt(left.ledger, &roster) {
                Ok(ledger) => {
                    ledger.enter();
                    memories.push(Mortal::new(&self.machine, left.proc, ledger, &fate));
                    procs.push(left.proc);
                }
                Err(error) => self.machine.lock().fail(|| format!("a ledger can't be taken up: {error}")),
            }
        }
        if !self.ending {
            mortality.decide();
        }
        let store: Arc<dyn Store> = MortalStore::new(Arc::clone(&self.store) as _, &fate);
        let (spaces, recovered) = take_up(&store, &self.shares, found, &memories);
        self.machine.lock().note(|| format!("a successor takes up {procs:?}: {recovered:?}"));
        let known = |child: i32| usize::try_from(child).is_ok_and(|child| procs.contains(&child));
        let mut children = Vec::new();
        for (space, proc) in spaces.into_iter().zip(&procs) {
            let Some(space) = space else {
                self.machine.lock().fail(|| format!("the ledger of {proc} makes no sense"));
                continue;
            };
            // Of one that is gone there is nothing to hear.
            children.extend(space.replay(&known).unwrap_or_default());
            self.take_care(space, *proc);
        }
        let handed = std::mem::take(&mut self.machine.lock().handed);
        for (child, proc) in children.into_iter().zip(handed) {
            self.take_care(child, proc);
        }
        let is_ordered = self.machine.lock().setup.ordered;
        self.cares.iter_mut().for_each(|care| care.orders_before = is_ordered);
    }

    /// Whether an order that the dead one may have given is still to be carried out; if none is, it is taken note of once.
    pub(super) fn settle_orders(&mut self, at: usize) -> bool {
        let care = &mut self.cares[at];
        if !care.orders_before || care.closed {
            return false;
        }
        let machine = self.machine.lock();
        let proc = &machine.procs[care.proc];
        let is_at_rest = proc.orders.is_empty()
            && proc.events.is_empty()
            && machine.threads.iter().all(|thread| {
                thread.proc != care.proc
                    || !thread.agent
                    || matches!(thread.state, super::machine::State::Idle | super::machine::State::Dead)
            });
        drop(machine);
        if is_at_rest && care.gate == 0 {
            care.orders_before = false;
            care.space.orders_are_done();
        }
        true
    }
}
