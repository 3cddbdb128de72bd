//! The conformance kit: laws every store keeps, to be run against yours.
//!
//! ```
//! use std::sync::Arc;
//! use userswap_store::Store;
//! use userswap_store::testkit::{Ask, Reference};
//!
//! fn make(ask: &Ask) -> Arc<dyn Store> {
//!     Arc::new(Reference::new(ask, None)) // yours here
//! }
//! userswap_store::conformance!(make);
//! # fn main() { assert!(userswap_store::testkit::check(&make).is_clean()) }
//! ```
//! expands to a `#[test]` for each of [`LAWS`]. Or call [`check`] and print the [`Report`]. The kit is tested against
//! [`Reference`], a plain store, and against the same store with a [`Defect`] of each kind.

mod images;
mod laws;
mod model;
mod reference;
mod steps;
mod wait;

use std::fmt;
use std::sync::Arc;

pub use images::{Image, images};
pub use laws::LAWS;
pub use reference::{Defect, Reference};
pub use wait::fetch_and_wait;

use crate::Store;

/// What a law wants of the store it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// The most bytes the store may hold. A store that can't be limited ignores it and says so in its
    /// [`capacity`](crate::Capabilities::capacity), and the laws about it are skipped.
    pub capacity: Option<u64>,
}

/// Something that makes stores, each new and empty.
pub trait Make: Sync {
    /// A new, empty store.
    fn make(&self, ask: &Ask) -> Arc<dyn Store>;
}

impl<F: Fn(&Ask) -> Arc<dyn Store> + Sync> Make for F {
    fn make(&self, ask: &Ask) -> Arc<dyn Store> {
        self(ask)
    }
}

/// A law: its name, and what checks it.
#[derive(Clone, Copy)]
pub struct Law {
    /// Its name, as in `conformance!`'s tests.
    pub name: &'static str,
    /// In a sentence.
    pub says: &'static str,
    pub(crate) check: fn(&dyn Make) -> Verdict,
}

impl Law {
    /// Checks the law against new stores.
    pub fn check(&self, make: &dyn Make) -> Verdict {
        (self.check)(make)
    }
}

/// How a law fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept.
    Kept,
    /// Not applicable to a store with these capabilities.
    Skipped(&'static str),
    /// Broken, and how it showed.
    Broken(String),
}

/// All laws' verdicts.
#[derive(Clone, Debug)]
pub struct Report(pub Vec<(&'static str, Verdict)>);

impl Report {
    /// No law is broken.
    pub fn is_clean(&self) -> bool {
        self.broken().is_empty()
    }

    /// The broken laws' names.
    pub fn broken(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Broken(_)))
            .map(|(name, _)| *name)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, verdict) in &self.0 {
            match verdict {
                Verdict::Kept => writeln!(f, "kept     {name}")?,
                Verdict::Skipped(why) => writeln!(f, "skipped  {name}: {why}")?,
                Verdict::Broken(how) => writeln!(f, "BROKEN   {name}: {how}")?,
            }
        }
        Ok(())
    }
}

/// Checks every law.
pub fn check(make: &dyn Make) -> Report {
    Report(LAWS.iter().map(|law| (law.name, law.check(make))).collect())
}

/// Checks the law of this name, and panics if it is broken.
///
/// # Panics
/// If the law is broken, or there is none of this name: for tests.
#[allow(clippy::panic, reason = "a test's way to fail")]
pub fn assert_law(name: &str, make: &dyn Make) {
    let Some(law) = LAWS.iter().find(|law| law.name == name) else { panic!("there is no law {name}") };
    match law.check(make) {
        Verdict::Kept => {}
        Verdict::Skipped(why) => println!("SKIPPED {name}: {why}"),
        Verdict::Broken(how) => panic!("{name} is broken ({}): {how}", law.says),
    }
}

/// A `#[test]` for each law, against the stores `make` makes: a `Fn(&Ask) -> Arc<dyn Store>`.
#[macro_export]
macro_rules! conformance {
    ($make:expr) => {
        $crate::conformance!(@laws $make;
            round_trips put_copies batches_are_all_or_nothing identity_is_checked runs_go_page_by_page
            accounts_return_to_zero capacity_is_kept maintenance_loses_nothing threads_do_not_mix model
        );
    };
    (@laws $make:expr; $($law:ident)*) => {
        $(
            #[test]
            fn $law() {
                $crate::testkit::assert_law(stringify!($law), &$make);
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    mod reference_store {
        use super::*;

        crate::conformance!(|ask: &Ask| -> Arc<dyn Store> { Arc::new(Reference::new(ask, None)) });
    }

    mod reference_store_that_answers_late {
        use super::*;

        crate::conformance!(|ask: &Ask| -> Arc<dyn Store> {
            Arc::new(Reference::new(ask, None).answering_late())
        });
    }

    #[test]
    fn the_macro_names_every_law() {
        let named = "round_trips put_copies batches_are_all_or_nothing identity_is_checked runs_go_page_by_page \
                     accounts_return_to_zero capacity_is_kept maintenance_loses_nothing threads_do_not_mix model";
        assert_eq!(named, LAWS.iter().map(|law| law.name).collect::<Vec<_>>().join(" "));
    }

    /// Each defect breaks the law that is about it.
    #[test]
    fn seeded_defects_break_the_right_law() {
        for (defect, law) in [
            (Defect::WrongPage, "identity_is_checked"),
            (Defect::KeyIgnored, "identity_is_checked"),
            (Defect::LostByte, "round_trips"),
            (Defect::KeptReference, "put_copies"),
            (Defect::TornBatch, "batches_are_all_or_nothing"),
            (Defect::RunStopsAtError, "runs_go_page_by_page"),
            (Defect::LeakedSlot, "accounts_return_to_zero"),
            (Defect::LateFree, "accounts_return_to_zero"),
            (Defect::LostError, "capacity_is_kept"),
            (Defect::CompactionLoss, "maintenance_loses_nothing"),
        ] {
            let make = |ask: &Ask| -> Arc<dyn Store> { Arc::new(Reference::new(ask, Some(defect))) };
            let report = check(&make);
            assert!(report.broken().contains(&law), "{defect:?} goes unnoticed by {law}:\n{report}");
        }
    }
}
