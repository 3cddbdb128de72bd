//! Which pages background work is for, in zram's words, and when it goes around.

use std::time::Duration;

use super::index::Cursor;
use super::object::Form;
pub use crate::spec::Kinds;

impl Kinds {
    /// Whether a page of this form is of one of these kinds.
    pub(super) fn wants(self, form: Form, is_idle: bool) -> bool {
        let huge = form.is_raw();
        form.is_page()
            && (self.contains(Self::ALL)
                || self.contains(Self::IDLE) && is_idle
                || self.contains(Self::HUGE) && huge
                || self.contains(Self::HUGE_IDLE) && huge && is_idle
                || self.contains(Self::INCOMPRESSIBLE) && form == Form::DenseRaw)
    }

    /// Time makes a difference.
    pub(super) fn ask_for_age(self) -> bool {
        self.contains(Self::IDLE) || self.contains(Self::HUGE_IDLE)
    }
}

/// Goes around all objects now and then.
#[derive(Default)]
pub(super) struct Tour {
    /// Where it is; `None` at rest.
    pub(super) at: Option<Cursor>,
    /// Pages put when it began: with more there is something to do.
    puts: u64,
    began: u32,
    /// It passed pages that will be of the right kind when they are older.
    pub(super) passed_young: bool,
}

impl Tour {
    /// Begins, if there is a reason to, and answers where to go on. For pages of an age, four times as they reach it.
    pub(super) fn begin(&mut self, puts: u64, now: u32, kinds: Kinds, idle: Duration) -> Option<Cursor> {
        let rested = !kinds.ask_for_age() || now.saturating_sub(self.began) >= second(idle) / 4;
        if self.at.is_none() && rested && (puts != self.puts || self.passed_young) {
            *self = Self { at: Some(Cursor::default()), puts, began: now, passed_young: false };
        }
        self.at
    }
}

/// Whole seconds.
pub(super) fn second(time: Duration) -> u32 {
    crate::clock::second(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_what_zram_means_by_them() {
        let some = Kinds::IDLE | Kinds::INCOMPRESSIBLE;
        assert!(some.contains(Kinds::IDLE) && !some.contains(Kinds::HUGE));
        for (kinds, lz4, idle_lz4, raw, idle_raw, dense_raw) in [
            (Kinds::NONE, false, false, false, false, false),
            (Kinds::IDLE, false, true, false, true, false),
            (Kinds::HUGE, false, false, true, true, true),
            (Kinds::HUGE_IDLE, false, false, false, true, false),
            (Kinds::INCOMPRESSIBLE, false, false, false, false, true),
            (some, false, true, false, true, true),
            (Kinds::ALL, true, true, true, true, true),
        ] {
            let wants = [(Form::Lz4, false), (Form::Lz4, true), (Form::Raw, false), (Form::Raw, true)];
            let wants = wants.map(|(form, idle)| kinds.wants(form, idle));
            assert_eq!(wants, [lz4, idle_lz4, raw, idle_raw], "{kinds:?}");
            assert_eq!(kinds.wants(Form::DenseRaw, false), dense_raw, "{kinds:?}");
            assert!(!kinds.wants(Form::Elsewhere, true) && !kinds.wants(Form::Filled, true));
        }
    }

    #[test]
    fn a_tour_begins_when_there_is_something_to_see() {
        let mut tour = Tour::default();
        let minute = Duration::from_secs(60);
        assert!(tour.begin(0, 100, Kinds::IDLE, minute).is_none());
        assert!(tour.begin(1, 100, Kinds::IDLE, minute).is_some());
        tour.at = None;
        assert!(tour.begin(1, 200, Kinds::IDLE, minute).is_none());
        assert!(tour.begin(2, 110, Kinds::IDLE, minute).is_none());
        assert!(tour.begin(2, 115, Kinds::IDLE, minute).is_some());
        (tour.at, tour.passed_young) = (None, true);
        assert!(tour.begin(2, 129, Kinds::IDLE, minute).is_none());
        assert!(tour.begin(2, 130, Kinds::IDLE, minute).is_some());
        tour.at = None;
        assert!(tour.begin(2, 130, Kinds::HUGE, minute).is_none());
        assert!(tour.begin(3, 130, Kinds::HUGE, minute).is_some());
    }
}
