//! Carrying out the daemon's orders.

use crate::agent::Agent;
use crate::setup::Areas;
use crate::sys::{self, Errno, Fd, PAGE};
use crate::wire::{Elements, Region, stop};

const UFFD_MOVE: u32 = 1;
const DROP_DONTNEED: u32 = 1;

/// Carries out one range of a `Move`. Gives how many bytes were moved and why not more.
///
/// Nothing here may fault in the program's memory: while a move is carried out the daemon reads no faults.
pub(crate) fn move_range(agent: &Agent, mover: u32, ranges: &Elements<'_>, index: usize) -> (u64, u32) {
    let src = ranges.region(index);
    let dest = Region { address: ranges.field(index, 2), length: src.length };
    let areas = agent.areas();
    let sound = mover == UFFD_MOVE && src.is_whole() && dest.is_whole() && areas.staging.contains(dest);
    if !sound || areas.ours.iter().any(|ours| ours.overlaps(src)) {
        return (0, stop::REFUSED);
    }
    agent.control().moving().during(|| match agent.threads().first_kept(src) {
        None => move_bare(agent, src, dest.address),
        Some(kept) => {
            let before = Region { address: src.address, length: kept - src.address };
            match move_bare(agent, before, dest.address) {
                (done, stop::NONE) => (done, stop::PINNED),
                stopped => stopped,
            }
        }
    })
}

/// Moves what no thread's end depends on.
fn move_bare(agent: &Agent, src: Region, dest: u64) -> (u64, u32) {
    let mut done = 0;
    while done < src.length {
        // SAFETY: the daemon answers for the source being registered; the destination lies in the staging area, which is
        // nobody's.
        let (moved, errno) =
            unsafe { sys::uffd_move(agent.uffd(), dest + done, src.address + done, src.length - done) };
        done += moved;
        match errno {
            None => {}
            // After a part the next try, from there, tells the reason.
            Some(Errno::AGAIN) if moved > 0 => {}
            // Slots are empty before they are moved into. Linux 6.18 tries again by itself when a page's accessed bit changes meanwhile,
            // but then doesn't count what it moves, and ends with this for what it has moved itself.
            Some(Errno::EXIST) => done += PAGE as u64,
            Some(errno) => return (done, reason(errno, agent.pagemap(), src.address + done)),
        }
    }
    (done, stop::NONE)
}

fn reason(errno: Errno, pagemap: Option<&Fd>, at: u64) -> u32 {
    match errno {
        Errno::AGAIN => stop::BUSY,
        Errno::NOENT => stop::HOLE,
        Errno::NOMEM => stop::NO_MEMORY,
        // Mapped by nobody else, so it isn't a living child that shares it.
        Errno::BUSY if is_exclusive(pagemap, at) => stop::WAS_SHARED,
        Errno::BUSY => stop::PINNED,
        _ => stop::REFUSED,
    }
}

fn is_exclusive(pagemap: Option<&Fd>, at: u64) -> bool {
    let mut entry = [0];
    entries(pagemap, at, &mut entry) == 1 && is_own(entry[0])
}

/// In memory, and mapped here alone.
fn is_own(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const EXCLUSIVE: u64 = 1 << 56;
    entry & PRESENT != 0 && entry & EXCLUSIVE != 0
}

/// Reads pagemap entries from an address on; gives how many.
fn entries(pagemap: Option<&Fd>, at: u64, into: &mut [u64]) -> usize {
    let offset = at as usize / PAGE * 8;
    pagemap.and_then(|pagemap| sys::read_words_at(pagemap, into, offset).ok()).unwrap_or(0) / 8
}

/// Carries out a `Drop`; `false` if an area isn't in the staging area, which is the only one used here.
pub(crate) fn drop_areas(areas: &Areas, how: u32, list: &Elements<'_>) -> bool {
    (0..list.count).all(|index| {
        let area = list.region(index);
        how == DROP_DONTNEED
            && area.is_whole()
            && areas.staging.contains(area)
            // SAFETY: the staging area is the daemon's to empty.
            && unsafe { sys::advise(area.address as usize, area.length as usize, sys::DONTNEED) }.is_ok()
    })
}

/// Carries out an `Unshare`: a write fault for each page that is mapped here alone makes it the program's own again. May wait
/// for the daemon, where the program drops a page between the look and the fault.
pub(crate) fn unshare(agent: &Agent, list: &Elements<'_>) {
    const BATCH: usize = 64;
    for index in 0..list.count {
        let area = list.region(index);
        if !area.is_whole() || agent.areas().ours.iter().any(|ours| ours.overlaps(area)) {
            continue;
        }
        let mut batch = [0_u64; BATCH];
        let (mut at, pages) = (area.address as usize, area.length as usize / PAGE);
        let mut left = pages;
        while left > 0 {
            let wanted = batch.get_mut(..left.min(BATCH)).unwrap_or_default();
            let count = entries(agent.pagemap(), at as u64, wanted);
            if count == 0 {
                break;
            }
            populate_own(at, batch.get(..count).unwrap_or_default());
            at += count * PAGE;
            left = left.saturating_sub(count);
        }
    }
}

/// Populates for writing each run of pages that are our own.
fn populate_own(at: usize, batch: &[u64]) {
    let mut rest = batch;
    let mut at = at;
    while let Some(first) = rest.first() {
        let own = is_own(*first);
        let run = rest.iter().take_while(|entry| is_own(**entry) == own).count();
        if own {
            // SAFETY: a write fault changes no byte.
            let _ = unsafe { sys::advise(at, run * PAGE, sys::POPULATE_WRITE) };
        }
        at += run * PAGE;
        rest = rest.get(run..).unwrap_or_default();
    }
}
