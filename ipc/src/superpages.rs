//! Which memory a program offers, and what of it is in use: the answer to `GetPartitionAllocSuperPagesUsed`.

use std::fs;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use userswap_uffd::maps::{Permissions, Vma, read_smaps};
use userswap_uffd::{MoveLimits, Span};

use crate::contract::MemoryRegion;

/// The unit in which usage is told: an aligned 2 MiB.
pub const SUPERPAGE: u64 = 2 << 20;

/// Tells which areas a program offers to be moved out.
pub trait Superpages: Send {
    /// Puts the areas, in any order and without overlap, into `areas`, which is empty. Each should lie within one mapping.
    ///
    /// # Errors
    /// Why it can't be told now; the connection ends.
    fn areas(&mut self, areas: &mut Vec<Span>) -> io::Result<()>;
}

/// The superpages of `areas` that `in_core` says yes to, clipped to their area, neighbours of one area merged.
///
/// At most `most` superpages (`None`: no limit) in at most `most_regions` regions. Areas are taken in order of address.
/// Neighbours are merged within an area only: a region never spans two mappings, which couldn't be moved in one piece.
pub fn superpages_used(
    areas: &[Span],
    most: Option<usize>,
    most_regions: usize,
    mut in_core: impl FnMut(Span) -> bool,
) -> Vec<MemoryRegion> {
    let mut areas = areas.to_vec();
    areas.sort_unstable();
    let mut left = most.unwrap_or(usize::MAX);
    let mut regions: Vec<MemoryRegion> = Vec::new();
    for area in areas {
        let mut merges = false;
        for superpage in superpages_of(area) {
            if left == 0 {
                return regions;
            }
            if !in_core(superpage) {
                merges = false;
                continue;
            }
            let full = regions.len() >= most_regions;
            match regions.last_mut() {
                Some(last) if merges => last.length += superpage.len(),
                _ if full => return regions,
                _ => regions.push(MemoryRegion::new(superpage.start(), superpage.len())),
            }
            merges = true;
            left -= 1;
        }
    }
    regions
}

/// The area cut at every multiple of 2 MiB.
fn superpages_of(area: Span) -> impl Iterator<Item = Span> {
    let mut at = area.start();
    std::iter::from_fn(move || {
        let end = (at - at % SUPERPAGE).saturating_add(SUPERPAGE).min(area.end());
        let superpage = Span::between(at, end).ok()?;
        at = end;
        Some(superpage)
    })
}

/// Areas that the program registers itself.
#[derive(Clone, Debug, Default)]
pub struct Offered {
    areas: Arc<Mutex<Vec<Span>>>,
}

impl Offered {
    /// Offers `area`, which lies within one private anonymous mapping that stays where it is. `false` if some of it is
    /// offered already.
    pub fn offer(&self, area: Span) -> bool {
        let mut areas = self.areas.lock();
        let is_new = !areas.iter().any(|offered| offered.overlaps(&area));
        if is_new {
            areas.push(area);
        }
        is_new
    }

    /// Offers `area` no longer. `false` if it wasn't offered, whole, as it is named here. What was moved out stays so until it
    /// is touched: this is no leave to unmap it.
    pub fn withdraw(&self, area: Span) -> bool {
        let mut areas = self.areas.lock();
        let before = areas.len();
        areas.retain(|offered| *offered != area);
        areas.len() < before
    }
}

impl Superpages for Offered {
    fn areas(&mut self, areas: &mut Vec<Span>) -> io::Result<()> {
        areas.extend_from_slice(&self.areas.lock());
        Ok(())
    }
}

/// Everything of the program that may be moved: its private anonymous read-write mappings, without stacks and what else
/// [`Vma::movable`] excludes, from `/proc/self/smaps`.
///
/// Thread stacks are told by the stack pointers of threads that are in a system call, and by what precedes them: a small
/// inaccessible mapping is a guard. Mappings with VMA flags the kernel doesn't tell are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnMaps {
    /// Smaller mappings are left out (bytes).
    pub min_bytes: u64,
}

impl Superpages for OwnMaps {
    fn areas(&mut self, areas: &mut Vec<Span>) -> io::Result<()> {
        let maps = read_smaps(std::process::id()).map_err(io::Error::other)?;
        let stacks = stack_pointers()?;
        let limits = MoveLimits {
            min_bytes: self.min_bytes,
            max_bytes: u64::MAX,
            excluded: &[],
            thread_addresses: &stacks,
            // Ours: the daemon has registered what it moved out before.
            allow_registered: true,
        };
        for (index, vma) in maps.iter().enumerate() {
            let before = index.checked_sub(1).and_then(|index| maps.get(index));
            let guarded = before.is_some_and(|before| is_guard_of(before, vma));
            if !guarded && vma.movable(&limits).is_yes() {
                areas.push(vma.span);
            }
        }
        Ok(())
    }
}

/// Whether `before` is what thread libraries put below a stack.
fn is_guard_of(before: &Vma, vma: &Vma) -> bool {
    const LARGEST_GUARD: u64 = 1 << 20;
    let accessible = Permissions::READ | Permissions::WRITE | Permissions::EXEC;
    before.span.end() == vma.span.start()
        && before.span.len() <= LARGEST_GUARD
        && !before.permissions.intersects(accessible)
}

/// The stack pointers of this process's threads that are in a system call; that of a running one isn't told.
fn stack_pointers() -> io::Result<Vec<u64>> {
    let mut pointers = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may be gone by now, and a kernel without this file is left to the guards.
        let Ok(line) = fs::read_to_string(task?.path().join("syscall")) else { continue };
        pointers.extend(stack_pointer(&line));
    }
    Ok(pointers)
}

/// The last but one word of `/proc/…/syscall`: `nr args… 0xSP 0xPC`.
fn stack_pointer(line: &str) -> Option<u64> {
    let word = line.split_whitespace().rev().nth(1)?;
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// The mapping that holds the calling thread's stack.
pub(crate) fn own_stack() -> Option<Span> {
    let here = 0_u8;
    let address = std::ptr::from_ref(std::hint::black_box(&here)).addr() as u64;
    let maps = userswap_uffd::maps::read_maps(std::process::id()).ok()?;
    maps.iter().map(|vma| vma.span).find(|span| span.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn area(start: u64, len: u64) -> Span {
        Span::new(start, len).unwrap()
    }

    #[test]
    fn neighbours_merge_and_edges_are_clipped() {
        // 2 MiB grid: 5..6, 6..8, 8..10, 10..11.
        let used = superpages_used(&[area(5 * MIB, 6 * MIB)], None, 100, |_| true);
        assert_eq!(used, [MemoryRegion::new(5 * MIB, 6 * MIB)]);
        let used =
            superpages_used(&[area(5 * MIB, 6 * MIB)], None, 100, |superpage| superpage.start() != 6 * MIB);
        assert_eq!(used, [MemoryRegion::new(5 * MIB, MIB), MemoryRegion::new(8 * MIB, 3 * MIB)]);
    }

    #[test]
    fn the_limit_counts_superpages() {
        let areas = [area(100 * MIB, 20 * MIB), area(20 * MIB, 4 * MIB)];
        let used = superpages_used(&areas, Some(5), 100, |_| true);
        assert_eq!(used, [MemoryRegion::new(20 * MIB, 4 * MIB), MemoryRegion::new(100 * MIB, 6 * MIB)]);
        assert_eq!(superpages_used(&areas, Some(0), 100, |_| true), []);
        assert_eq!(superpages_used(&areas, None, 1, |_| true), [MemoryRegion::new(20 * MIB, 4 * MIB)]);
    }

    #[test]
    fn touching_areas_stay_apart() {
        let areas = [area(2 * MIB, 2 * MIB), area(4 * MIB, 2 * MIB)];
        assert_eq!(superpages_used(&areas, None, 100, |_| true).len(), 2);
    }

    #[test]
    fn offers_do_not_overlap() {
        let mut offered = Offered::default();
        assert!(offered.offer(area(MIB, MIB)));
        assert!(!offered.offer(area(MIB + 4096, 4096)));
        assert!(offered.offer(area(2 * MIB, MIB)));
        assert!(!offered.withdraw(area(MIB, 4096)));
        assert!(offered.withdraw(area(MIB, MIB)));
        let mut areas = Vec::new();
        offered.areas(&mut areas).unwrap();
        assert_eq!(areas, [area(2 * MIB, MIB)]);
    }

    #[test]
    fn stack_pointers_are_read_from_the_line() {
        assert_eq!(stack_pointer("0 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffd10 0x7f0000\n"), Some(0x7f_fd10));
        assert_eq!(stack_pointer("-1 0x7ffd10 0x7f0000\n"), Some(0x7f_fd10));
        assert_eq!(stack_pointer("running\n"), None);
    }

    /// That the rest is offered is tested in a process of one thread: where a kernel merges a stack with what lies above it,
    /// that isn't.
    #[test]
    fn stacks_are_not_offered() {
        let stack = own_stack().unwrap();
        let mut areas = Vec::new();
        OwnMaps { min_bytes: 0 }.areas(&mut areas).unwrap();
        assert!(!areas.is_empty());
        assert!(!areas.iter().any(|area| area.overlaps(&stack)));
    }
}
