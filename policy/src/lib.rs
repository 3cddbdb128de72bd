//! Pure decisions for userswap: what to move, when, within which budget.
//!
//! Nothing here does I/O or reads a clock; everything is a function of what is passed in.
#![forbid(unsafe_code)]

mod budget;
pub mod chromium;
mod limit;
pub mod replay;
pub mod strides;
pub mod trace;
mod victims;

pub use budget::{Budget, Demand};
pub use limit::{Footprint, Limiter, Limits, Order, Sample, Verdict};
pub use victims::{Victim, Victims};
