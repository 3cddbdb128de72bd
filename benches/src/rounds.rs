//! The rounds: everything in turn, over and over, so that whatever else the machine does falls on all alike.

use crate::args::{Memory, Plan};
use crate::child::Child;
use crate::error::Error;
use crate::image::Image;
use crate::machine::Machine;
use crate::pattern::{Pattern, Random};
use crate::report::Report;
use crate::stats::Pass;
use crate::subject::{MovedOut, Role, StageTimes, Touches};
use crate::touch::Manner;
use crate::zram::Zram;

/// What touches what, of all that is measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    pub(crate) pattern: Pattern,
    pub(crate) threads: usize,
    pub(crate) pinned: bool,
    /// Touches that write, of a hundred.
    pub(crate) writes: u8,
}

/// Who is measured; `None` is the kernel's swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entrant {
    pub(crate) memory: Memory,
    pub(crate) store: String,
}

/// One move-out and one pass.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) entrant: Option<Entrant>,
    pub(crate) case: Case,
    pub(crate) moved: MovedOut,
    pub(crate) pass: Pass,
}

/// Does everything.
pub(crate) fn run(plan: &Plan, image: &Image) -> Result<Report, Error> {
    let machine = Machine::look();
    let mut left_out = Vec::new();
    let zram = start_zram(plan, image, &mut left_out);
    if let Some(zram) = &zram {
        let settings = zram.settings();
        eprintln!("beside: /dev/{}, {}, {} bytes", settings.device, settings.algorithm, settings.bytes);
    }
    let mut entered = enter(plan, image, zram.as_ref(), &mut left_out);
    let mut samples = Vec::new();
    let mut seeds = Random::new(plan.seed);
    let touches = plan.touches.unwrap_or(image.pages() / 2).clamp(1, image.pages());
    // Round 0 isn't counted: it's then that stores get their memory and programs their pages.
    for round in 0..=plan.rounds {
        for case in cases(plan) {
            let Case { pattern, threads, pinned, writes } = case;
            let manner = Manner { pin: pinned, writes };
            let touches = Touches { pattern, touches, threads, manner, seed: seeds.next() };
            for at in order(entered.len(), round) {
                let one = &mut entered[at];
                match one.measure(touches, image.pages(), zram.as_ref()) {
                    _ if one.failed => {}
                    Ok((moved, pass)) => samples.extend((round > 0).then(|| Sample {
                        round,
                        entrant: one.entrant.clone(),
                        case: case.clone(),
                        moved,
                        pass,
                    })),
                    Err(error @ Error::Wrong { .. }) => return Err(error),
                    Err(error) => {
                        one.failed = true;
                        left_out.push(format!("{}: {}", one.name, error.chain()));
                    }
                }
            }
        }
        if round > 0 {
            eprintln!("round {round} of {}", plan.rounds);
        }
    }
    // Whose figures are incomplete has none.
    let failed: Vec<_> = entered.iter().filter(|one| one.failed).map(|one| one.entrant.clone()).collect();
    samples.retain(|sample| !failed.contains(&sample.entrant));
    let stages = stages(&mut entered, &mut left_out);
    let settings = zram.as_ref().map(|zram| zram.settings().clone());
    Ok(Report::new(plan, image, machine, settings, &samples, stages, left_out))
}

/// How long the stages took, over everything: of those who measure them.
fn stages(entered: &mut [Entered], left_out: &mut Vec<String>) -> Vec<(Entrant, StageTimes)> {
    let mut stages = Vec::new();
    for one in entered.iter_mut().filter(|one| !one.failed) {
        let Some(entrant) = &one.entrant else { continue };
        match one.mover.as_mut().unwrap_or(&mut one.toucher).stages() {
            Ok(times) => stages.extend(times.map(|times| (entrant.clone(), times))),
            Err(error) => left_out.push(format!("{}: stages: {}", one.name, error.chain())),
        }
    }
    stages
}

fn start_zram(plan: &Plan, image: &Image, left_out: &mut Vec<String>) -> Option<Zram> {
    if !plan.zram {
        left_out.push("zram: not asked for".into());
        return None;
    }
    // Room for twice the image: the kernel may put something else there, too.
    let bytes = (image.pages() * userswap_uffd::page_size() * 2 + (16 << 20)) as u64;
    Zram::start(bytes).inspect_err(|error| left_out.push(format!("zram: {}", error.chain()))).ok()
}

/// Starts everybody.
fn enter(plan: &Plan, image: &Image, zram: Option<&Zram>, left_out: &mut Vec<String>) -> Vec<Entered> {
    let mut wanted = Vec::new();
    if zram.is_some() {
        wanted.push(None);
    }
    for &memory in &plan.memories {
        let own = memory.own_store().map(str::to_owned);
        let stores = own.as_ref().map_or(plan.stores.as_slice(), std::slice::from_ref);
        wanted.extend(stores.iter().map(|store| Some(Entrant { memory, store: store.clone() })));
    }
    wanted
        .into_iter()
        .filter_map(|entrant| {
            let name = name(entrant.as_ref());
            Entered::start(entrant, &name, image, plan)
                .inspect_err(|error| left_out.push(format!("{name}: {}", error.chain())))
                .ok()
        })
        .collect()
}

fn name(entrant: Option<&Entrant>) -> String {
    entrant.map_or("zram".into(), |entrant| format!("{} {}", entrant.memory.name(), entrant.store))
}

/// Somebody who is measured, and running.
struct Entered {
    entrant: Option<Entrant>,
    name: String,
    failed: bool,
    toucher: Child,
    /// Moves out what `toucher` touches, if it doesn't do so itself. Ends after it.
    mover: Option<Child>,
}

impl Entered {
    fn start(entrant: Option<Entrant>, name: &str, image: &Image, plan: &Plan) -> Result<Self, Error> {
        let (stages, regions) = (plan.stages, plan.regions);
        if regions > 1
            && entrant.as_ref().is_some_and(|it| matches!(it.memory, Memory::Inline | Memory::Local))
        {
            return Err(Error::Input("is one region by itself".into()));
        }
        let image = image.path();
        let mut mover = None;
        let role = match &entrant {
            None => Role::Kernel { image },
            Some(Entrant { memory: memory @ (Memory::Inline | Memory::Local), store }) => {
                Role::Local { image, store: store.clone(), inline: *memory == Memory::Inline, stages }
            }
            Some(Entrant { memory: Memory::Plain, .. }) => Role::Plain { image },
            Some(Entrant { memory: Memory::PlainHandler, .. }) => Role::PlainHandler { image },
            Some(Entrant { memory: Memory::Client, store }) => {
                let file = format!("userswap-bench-{}-{}.sock", std::process::id(), store.replace('/', "-"));
                let socket = std::env::temp_dir().join(file);
                let role = Role::Daemon { store: store.clone(), socket: socket.clone(), stages };
                mover = Some(Child::start(&format!("{name}, the daemon"), &role)?.0);
                Role::Client { image, socket, regions }
            }
        };
        let (toucher, _) = Child::start(name, &role)?;
        Ok(Self { entrant, name: name.to_owned(), failed: false, toucher, mover })
    }

    /// Moves everything out and touches it.
    fn measure(
        &mut self,
        touches: Touches,
        pages: usize,
        zram: Option<&Zram>,
    ) -> Result<(MovedOut, Pass), Error> {
        let who = || self.name.clone();
        let mut moved = self.mover.as_mut().unwrap_or(&mut self.toucher).move_out()?;
        if let (None, Some(zram)) = (&self.entrant, zram) {
            moved.memory_bytes = Some(zram.memory_bytes()?);
        }
        let touched = self.toucher.touch(touches)?;
        if touched.wrong > 0 {
            return Err(Error::Wrong { who: who(), pages: touched.wrong });
        }
        // What never left can't come back: a few pages may be in somebody's hands, not more.
        let stays = self.entrant.as_ref().is_some_and(|entrant| entrant.memory == Memory::Plain);
        if touched.present > pages / 100 && !stays {
            let reason = format!("{} of {pages} pages were not moved out", touched.present);
            return Err(Error::Child { who: who(), reason });
        }
        Ok((moved, touched.pass))
    }
}

fn cases(plan: &Plan) -> Vec<Case> {
    let mut cases = Vec::new();
    for &pinned in &plan.placements {
        for &pattern in &plan.patterns {
            for &writes in &plan.writes {
                let case = |&threads: &usize| Case { pattern, threads, pinned, writes };
                cases.extend(plan.threads.iter().map(case));
            }
        }
    }
    cases
}

/// Everybody once, another first each round.
fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| (at + round) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn_and_another_begins() {
        let turn = |round| order(3, round).collect::<Vec<_>>();
        assert_eq!((turn(0), turn(1), turn(5)), (vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1]));
        assert_eq!(order(0, 3).count(), 0);
    }
}
