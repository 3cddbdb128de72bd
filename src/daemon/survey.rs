//! Which memory of a program that knows nothing of us may be moved: what its mappings and threads say.

use std::sync::Arc;
use userswap_engine::{MemoryError, Space};
use userswap_uffd::maps::{Permissions, read_maps, read_smaps};
use userswap_uffd::{Error, MoveLimits, Process, Span, Vma};

/// What is known of one program's mappings.
pub(super) struct Survey {
    /// The library's and the agent's own memory.
    ours: Vec<Span>,
    /// What is to be left alone as long as it is mapped.
    excluded: Vec<Span>,
    /// The mappings as they were last read with their flags.
    known: Vec<Vma>,
}

/// Mappings smaller than this aren't worth a registration, which may split them.
const SMALLEST: u64 = 128 << 10;

/// A mapping without access right below another one, up to this size, is taken for a stack's guard.
const GUARD: u64 = 1 << 20;

impl Survey {
    /// Nothing known but what is ours.
    pub(super) fn new(ours: Vec<Span>) -> Self {
        Self { ours, excluded: Vec::new(), known: Vec::new() }
    }

    /// Known what was excluded, too.
    pub(super) fn again(ours: Vec<Span>, excluded: Vec<Span>) -> Self {
        Self { ours, excluded, known: Vec::new() }
    }

    /// Leaves a range alone from now on.
    pub(super) fn exclude(&mut self, area: Span) {
        if !self.excluded.contains(&area) {
            self.excluded.push(area);
        }
    }

    /// Looks at the program's mappings, takes new ones into care and lets those go that may not be moved (any more).
    ///
    /// # Errors
    /// When the program is gone or can't be looked at.
    pub(super) fn look(&mut self, process: &Process, space: &Arc<Space>) -> Result<(), super::ServerError> {
        self.read(process)?;
        let known = &self.known;
        self.excluded.retain(|area| known.iter().any(|vma| vma.span.overlaps(area)));
        let threads = thread_addresses(process)?;
        let excluded: Vec<Span> = self.ours.iter().chain(&self.excluded).copied().collect();
        let movable = movable(&self.known, &excluded, &threads);
        let stale: Vec<Span> = space
            .spans()
            .into_iter()
            .filter(|span| {
                let before = movable.partition_point(|vma| vma.start() <= span.start());
                !movable[..before].last().is_some_and(|vma| vma.contains_span(span))
            })
            .collect();
        for span in stale {
            // A mapping that went unnoticed had nothing out. One that may not be moved any more comes back first.
            match space.let_go(span) {
                Ok(()) | Err(MemoryError::Refused { .. } | MemoryError::Mappings { .. }) => {}
                Err(gone @ MemoryError::Gone) => return Err(gone.into()),
            }
        }
        space.manage_new(&movable)?;
        Ok(())
    }

    /// Reads the mappings; their flags, which cost a walk over all pages, only if a mapping came, went or changed.
    fn read(&mut self, process: &Process) -> Result<(), Error> {
        let maps = read_maps(process.pid())?;
        let same = maps.len() == self.known.len()
            && maps
                .iter()
                .zip(&self.known)
                .all(|(now, then)| now.span == then.span && now.permissions == then.permissions);
        if !same {
            self.known = read_smaps(process.pid())?;
        }
        Ok(())
    }
}

/// The mappings that may be moved, in order, as far as their flags, their neighbours and the program's threads say.
fn movable(vmas: &[Vma], excluded: &[Span], threads: &[u64]) -> Vec<Span> {
    let limits = MoveLimits {
        min_bytes: SMALLEST,
        excluded,
        thread_addresses: threads,
        allow_registered: true,
        ..MoveLimits::default()
    };
    let below = std::iter::once(None).chain(vmas.iter().map(Some));
    vmas.iter()
        .zip(below)
        .filter(|(vma, below)| {
            vma.movable(&limits).is_yes() && !below.is_some_and(|below| guards(below, vma))
        })
        .map(|(vma, _)| vma.span)
        .collect()
}

/// A thread's stack, in use or kept for the next thread, has a mapping without access right below it. The C library puts the
/// thread's own structures at its other end, where the kernel writes when the thread exits.
fn guards(below: &Vma, vma: &Vma) -> bool {
    below.span.end() == vma.span.start()
        && below.file.is_none()
        && below.span.len() <= GUARD
        && !below.permissions.intersects(Permissions::READ | Permissions::WRITE | Permissions::EXEC)
}

/// Where the kernel writes when a thread exits.
fn thread_addresses(process: &Process) -> Result<Vec<u64>, Error> {
    let mut addresses = Vec::new();
    for thread in process.threads()? {
        // An error says that it exits as we look.
        if let Ok(Some(head)) = process.robust_list(thread) {
            addresses.push(head);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use userswap_uffd::maps::parse;

    /// Lines of a smaps file with the flags that matter.
    fn smaps(lines: &[(&str, &str)]) -> Vec<Vma> {
        let text: String =
            lines.iter().map(|(line, flags)| format!("{line}\nSize: 4 kB\nVmFlags: {flags}\n")).collect();
        parse(&text).unwrap()
    }

    #[test]
    fn a_stack_is_known_by_its_guard_and_its_thread() {
        let vmas = smaps(&[
            ("10000000-10001000 ---p 00000000 00:00 0 ", "mr mw me"),
            ("10001000-10801000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
            ("20000000-20800000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
            ("30000000-30800000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
        ]);
        let spans = movable(&vmas, &[], &[0x2000_1000]);
        assert_eq!(spans, [Span::between(0x3000_0000, 0x3080_0000).unwrap()]);
    }

    #[test]
    fn an_arena_behind_another_ones_reserve_is_no_stack() {
        let vmas = smaps(&[
            ("10000000-10021000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
            ("10021000-14000000 ---p 00000000 00:00 0 ", "mr mw me"),
            ("14000000-14100000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
        ]);
        assert_eq!(movable(&vmas, &[], &[]).len(), 2);
    }

    #[test]
    fn excluded_small_and_special_mappings_stay() {
        let vmas = smaps(&[
            ("10000000-10001000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
            ("20000000-20800000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac lo"),
            ("30000000-30800000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac dc"),
            ("40000000-40800000 rw-p 00000000 00:00 0 ", "rd wr mr mw me ac"),
            ("50000000-50800000 rw-p 00000000 08:01 99 /lib/x.so", "rd wr mr mw me ac"),
        ]);
        assert_eq!(movable(&vmas, &[Span::between(0x4010_0000, 0x4010_1000).unwrap()], &[]), []);
    }
}
