//! A deterministic model of Linux that the engine is driven through from a seed.
//!
//! [`machine`] and [`calls`] are the kernel: page tables, faults, events, and system calls that take several steps.
//! [`program`] is what the simulated programs do with it; they know what every page must read as ([`page`]).
//! [`memory`] is the engine's seam to it, [`store`] a store with bad manners, [`server`] and [`mover`] walk through the engine's
//! own steps, and a [`world`] puts them together: whose step is next is all that chance decides, so a seed is a run. In some worlds who serves dies
//! between any two things it does (`death`), and a `successor` goes on. A [`defect`] can be put between the engine and all that, to see whether seeds find it.

pub mod calls;
mod death;
pub mod defect;
mod ending;
pub mod machine;
pub mod memory;
pub mod mover;
pub mod page;
pub mod program;
pub mod report;
pub mod rng;
pub mod script;
pub mod server;
pub mod store;
mod successor;
pub mod world;

pub use defect::Defect;
pub use report::{Report, failing_seeds, run_seeds};
pub use script::Script;
pub use world::{Options, Outcome, World};

/// Runs one seed. A panic on the way is what went wrong.
pub fn run_seed(seed: u64, options: Options) -> Outcome {
    let mut world = World::new(seed, options);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ran {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        world
            .fail(|| format!("panicked: {}", said.or(panic.downcast_ref().copied()).unwrap_or("no message")));
    }
    world.outcome()
}
