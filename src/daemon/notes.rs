//! What a successor has to know of a client beside its memory, in the notes of its ledger.
//!
//! ```text
//! 0 told   1 connection   2 pidfd   3 pid   4 uid << 32 | gid   5 contract   6 abilities   7–8 swap area   9–10 slots' area
//! 11 pages of a slot   12 program   13 retired   14 own ranges   15 excluded ranges   16… own ranges   256… excluded ranges
//! ```
//! The first word is written last: without it nothing is known but the userfaultfd. Lists grow before their count does.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::Ordering;
use userswap_engine::Ledger;
use userswap_engine::ledger::NOTES_WORDS;
use userswap_ipc::{Abilities, Contract};
use userswap_uffd::Span;

/// A client, as its ledger's notes have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub(super) connection: RawFd,
    pub(super) pidfd: RawFd,
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) contract: Contract,
    pub(super) abilities: Abilities,
    pub(super) swap_area: Option<Span>,
    pub(super) slots: Span,
    pub(super) slot_pages: u32,
    /// What an unmodified program's agent told to be its own, and what is left alone since.
    pub(super) program: Option<Ranges>,
    /// It asked to be left alone for good.
    pub(super) retired: bool,
}

/// What of a program is never moved.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ranges {
    pub(super) ours: Vec<Span>,
    pub(super) excluded: Vec<Span>,
}

const TOLD: usize = 0;
const RETIRED: usize = 13;
const OURS: (usize, usize, usize) = (14, 16, 256);
const EXCLUDED: (usize, usize, usize) = (15, 256, NOTES_WORDS);

/// Writes a client down.
pub(super) fn write(ledger: &Ledger, note: &Note) {
    let words = ledger.notes();
    let set = |at: usize, value: u64| words[at].store(value, Ordering::Release);
    let span = |at: usize, span: Option<Span>| {
        set(at, span.map_or(0, Span::start));
        set(at + 1, span.map_or(0, Span::len));
    };
    set(1, number(note.connection));
    set(2, number(note.pidfd));
    set(3, note.pid.into());
    set(4, u64::from(note.uid) << 32 | u64::from(note.gid));
    set(5, u64::from(note.contract == Contract::Extended));
    set(6, note.abilities.bits());
    span(7, note.swap_area);
    span(9, Some(note.slots));
    set(11, note.slot_pages.into());
    set(12, note.program.is_some().into());
    set(RETIRED, note.retired.into());
    let Ranges { ours, excluded } = note.program.clone().unwrap_or_default();
    for (list, spans) in [(OURS, ours), (EXCLUDED, excluded)] {
        set(list.0, 0);
        spans.into_iter().for_each(|span| push(ledger, list, span));
    }
    set(TOLD, 1);
}

/// What is written down, if anything is.
pub(super) fn read(ledger: &Ledger) -> Option<Note> {
    let words = ledger.notes();
    let get = |at: usize| words[at].load(Ordering::Acquire);
    let list = |(count, first, _): (usize, usize, usize)| -> Option<Vec<Span>> {
        let count = usize::try_from(get(count)).ok()?;
        (0..count).map(|n| Span::new(get(first + n * 2), get(first + n * 2 + 1)).ok()).collect()
    };
    if get(TOLD) != 1 {
        return None;
    }
    let program = match get(12) {
        0 => None,
        _ => Some(Ranges { ours: list(OURS)?, excluded: list(EXCLUDED)? }),
    };
    Some(Note {
        connection: descriptor(get(1))?,
        pidfd: descriptor(get(2))?,
        pid: u32::try_from(get(3)).ok()?,
        uid: u32::try_from(get(4) >> 32).ok()?,
        gid: u32::try_from(get(4) & u64::from(u32::MAX)).ok()?,
        contract: if get(5) == 0 { Contract::Strict } else { Contract::Extended },
        abilities: Abilities::from_bits_truncate(get(6)),
        swap_area: Span::new(get(7), get(8)).ok(),
        slots: Span::new(get(9), get(10)).ok()?,
        slot_pages: u32::try_from(get(11)).ok()?,
        program,
        retired: get(RETIRED) != 0,
    })
}

/// Writes down that the client asked to be left alone for good.
pub(super) fn retire(ledger: &Ledger) {
    ledger.notes()[RETIRED].store(1, Ordering::Release);
}

/// Writes down that a range is to be left alone. `false`: there is no more room.
pub(super) fn exclude(ledger: &Ledger, area: Span) -> bool {
    if read(ledger).and_then(|note| note.program).is_some_and(|ranges| ranges.excluded.contains(&area)) {
        return true;
    }
    let before = ledger.notes()[EXCLUDED.0].load(Ordering::Acquire);
    push(ledger, EXCLUDED, area);
    ledger.notes()[EXCLUDED.0].load(Ordering::Acquire) != before
}

fn push(ledger: &Ledger, (count, first, end): (usize, usize, usize), span: Span) {
    let words = ledger.notes();
    let have = words[count].load(Ordering::Acquire);
    let Some(at) = usize::try_from(have).ok().map(|have| first + have * 2).filter(|at| at + 2 <= end) else {
        return ledger.give_up("more ranges that are left alone than are written down");
    };
    words[at].store(span.start(), Ordering::Release);
    words[at + 1].store(span.len(), Ordering::Release);
    words[count].store(have + 1, Ordering::Release);
}

fn number(descriptor: RawFd) -> u64 {
    u64::try_from(descriptor).map_or(0, |number| number + 1)
}

fn descriptor(number: u64) -> Option<RawFd> {
    RawFd::try_from(number.checked_sub(1)?).ok()
}

/// The number of a descriptor.
pub(super) fn raw(descriptor: BorrowedFd<'_>) -> RawFd {
    descriptor.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_engine::Roster;

    #[test]
    fn what_is_written_is_read_once_it_is_whole() {
        let ledger = Ledger::create(&Roster::create().unwrap()).unwrap();
        assert_eq!(read(&ledger), None);
        let span = |start| Span::new(start, 0x2000).unwrap();
        let mut note = Note {
            connection: 0,
            pidfd: 9,
            pid: 77,
            uid: 1000,
            gid: u32::MAX,
            contract: Contract::Strict,
            abilities: Abilities::ORDERS,
            swap_area: None,
            slots: span(0x10_0000),
            slot_pages: 256,
            program: Some(Ranges { ours: vec![span(0x1000), span(0x4000)], excluded: Vec::new() }),
            retired: false,
        };
        write(&ledger, &note);
        assert_eq!(read(&ledger).as_ref(), Some(&note));
        assert!(exclude(&ledger, span(0x8000)));
        retire(&ledger);
        note.retired = true;
        note.program.as_mut().unwrap().excluded.push(span(0x8000));
        assert_eq!(read(&ledger), Some(note));
        assert!(exclude(&ledger, span(0x8000)), "known already");
        let mut more = (1..).map(|n| span(n * 0x10_0000));
        while exclude(&ledger, more.next().unwrap()) {}
        assert!(!ledger.is_complete());
        assert_eq!(read(&ledger).unwrap().program.unwrap().ours.len(), 2);
    }
}
