//! Pure decisions for userswap: what to move, when, within which budget.
//!
//! Nothing here does I/O or reads a clock; everything is a function of what is passed in. [`Policy`] is what decides, and what one's own is written against.
#![forbid(unsafe_code)]

mod budget;
pub mod chromium;
mod limit;
mod policy;
pub mod proactive;
pub mod replay;
mod shares;
pub mod strides;
pub mod trace;
mod victims;
pub mod working_set;

pub use budget::{Budget, Demand};
pub use limit::{Limiter, Limits};
pub use policy::{
    Activity, Answer, Claim, Footprint, Off, Order, Policy, Sample, Verdict, Wants, What, Within,
};
pub use proactive::Proactive;
pub use victims::{Cold, Victim, Victims};
