//! Whether a mapping's memory may be moved out, and if not, why.

use crate::Span;
use crate::maps::{Permissions, VmFlags, Vma};

/// The answer to whether a mapping may be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Movable {
    /// It may.
    Yes,
    /// Shared with others, who would see it vanish.
    Shared,
    /// Of a file: the file is where it can come back from.
    FileBacked,
    /// The kernel's own (vdso, vvar) or a device's.
    Special,
    /// May be executed.
    Executable,
    /// Neither read nor write: nothing in it can have been used.
    NoAccess,
    /// Write without read.
    WriteOnly,
    /// Read without write: MOVE and COPY need to write.
    ReadOnly,
    /// The program asked that it stay in memory.
    Locked,
    /// hugetlbfs pages.
    HugeTlb,
    /// A fork's child doesn't get it, so it can't have what was moved out of it.
    DontFork,
    /// A fork's child must find zeros.
    WipeOnFork,
    /// The program keeps it out of core dumps: secrets.
    DontDump,
    /// The kernel merges its pages with others'.
    Mergeable,
    /// A stack, by its flags or its name.
    Stack,
    /// May have guard pages in it.
    Guarded,
    /// The program has sealed it.
    Sealed,
    /// Registered with a userfaultfd that isn't ours.
    Registered,
    /// A thread's stack, its thread-local storage or its robust-list head lies in it: the kernel writes there when the thread exits.
    ThreadOwned,
    /// One of ours, or excluded by the caller.
    Excluded,
    /// Smaller than is worth it.
    TooSmall,
    /// Larger than the caller's limit.
    TooLarge,
    /// The flags are unknown (read from maps and not smaps), so it can't be told.
    FlagsUnknown,
}

/// What the caller knows and the mapping's line doesn't say.
#[derive(Clone, Copy, Debug)]
pub struct MoveLimits<'a> {
    /// Smallest mapping worth it, in bytes.
    pub min_bytes: u64,
    /// Largest mapping allowed, in bytes; 0 is no limit.
    pub max_bytes: u64,
    /// Ranges that must stay: slots, staging areas, arenas, shared gates.
    pub excluded: &'a [Span],
    /// Addresses the kernel or a thread's run-time relies on: stack pointers, thread pointers, robust-list heads.
    pub thread_addresses: &'a [u64],
    /// Whether a mapping that is registered with a userfaultfd already may be moved: true when they're all ours.
    pub allow_registered: bool,
}

impl Default for MoveLimits<'_> {
    /// From one page up, nothing excluded, nothing registered.
    fn default() -> Self {
        MoveLimits {
            min_bytes: 1,
            max_bytes: 0,
            excluded: &[],
            thread_addresses: &[],
            allow_registered: false,
        }
    }
}

impl Movable {
    /// Whether it may.
    pub const fn is_yes(self) -> bool {
        matches!(self, Movable::Yes)
    }
}

impl Vma {
    /// Whether its memory may be moved out; the first reason against it, if there is one.
    ///
    /// Of a mapping that is [`Movable::ThreadOwned`] or [`Movable::Guarded`] only because of some of its pages (an arena of the allocator
    /// that holds a thread's structures) the caller may still move parts: it has the addresses and can ask PAGEMAP_SCAN for the guards.
    pub fn movable(&self, limits: &MoveLimits<'_>) -> Movable {
        let Some(flags) = self.flags else { return Movable::FlagsUnknown };
        let refused = self.refused_for_kind(flags).or_else(|| refused_for_flags(flags, limits));
        refused.or_else(|| self.refused_for_place(limits)).unwrap_or(Movable::Yes)
    }

    fn refused_for_kind(&self, flags: VmFlags) -> Option<Movable> {
        let permissions = self.permissions;
        let name = self.name.as_deref().unwrap_or("");
        if permissions.contains(Permissions::SHARED) {
            return Some(Movable::Shared);
        }
        if flags.intersects(VmFlags::HUGE_TLB) {
            return Some(Movable::HugeTlb);
        }
        if self.file.is_some() || name.starts_with('/') {
            return Some(Movable::FileBacked);
        }
        if flags.intersects(VmFlags::IO | VmFlags::PFN_MAP | VmFlags::MIXED_MAP) || is_special(name) {
            return Some(Movable::Special);
        }
        if permissions.contains(Permissions::EXEC) {
            return Some(Movable::Executable);
        }
        match (permissions.contains(Permissions::READ), permissions.contains(Permissions::WRITE)) {
            (true, true) => None,
            (true, false) => Some(Movable::ReadOnly),
            (false, true) => Some(Movable::WriteOnly),
            (false, false) => Some(Movable::NoAccess),
        }
        .or_else(|| is_stack(name).then_some(Movable::Stack))
    }

    fn refused_for_place(&self, limits: &MoveLimits<'_>) -> Option<Movable> {
        if limits.excluded.iter().any(|span| self.span.overlaps(span)) {
            return Some(Movable::Excluded);
        }
        if limits.thread_addresses.iter().any(|addr| self.span.contains(*addr)) {
            return Some(Movable::ThreadOwned);
        }
        if self.span.len() < limits.min_bytes {
            return Some(Movable::TooSmall);
        }
        (limits.max_bytes != 0 && self.span.len() > limits.max_bytes).then_some(Movable::TooLarge)
    }
}

fn refused_for_flags(flags: VmFlags, limits: &MoveLimits<'_>) -> Option<Movable> {
    let table = [
        (VmFlags::LOCKED, Movable::Locked),
        (VmFlags::DONT_FORK, Movable::DontFork),
        (VmFlags::WIPE_ON_FORK, Movable::WipeOnFork),
        (VmFlags::DONT_DUMP, Movable::DontDump),
        (VmFlags::MERGEABLE, Movable::Mergeable),
        (VmFlags::GROWS_DOWN, Movable::Stack),
        (VmFlags::SHADOW_STACK, Movable::Stack),
        (VmFlags::MAYBE_GUARD, Movable::Guarded),
        (VmFlags::SEALED, Movable::Sealed),
    ];
    let refused = table.into_iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, why)| why);
    let registered = flags.intersects(VmFlags::UFFD) && !limits.allow_registered;
    refused.or_else(|| registered.then_some(Movable::Registered))
}

/// Mappings the kernel names that aren't memory of the program's.
fn is_special(name: &str) -> bool {
    matches!(name, "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" | "[uprobes]" | "[sigpage]")
}

/// Stacks by name: the kernel's for the first thread, and what run-times name theirs.
fn is_stack(name: &str) -> bool {
    name == "[stack]"
        || name.starts_with("[stack:")
        || name.starts_with("[anon:stack")
        || name.contains("shadow stack")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::parse;

    const MIB: u64 = 1 << 20;

    fn answer(permissions: &str, file: &str, flags: &str) -> Movable {
        answer_with(permissions, file, flags, &MoveLimits::default())
    }

    fn answer_with(permissions: &str, file: &str, flags: &str, limits: &MoveLimits<'_>) -> Movable {
        let text = format!("7f0000000000-7f0000200000 {permissions} 00000000 {file}\nVmFlags: {flags}\n");
        parse(&text).unwrap()[0].movable(limits)
    }

    const ANON: &str = "00:00 0";

    #[test]
    fn private_anonymous_read_write_is_movable_by_default() {
        assert_eq!(answer("rw-p", ANON, "rd wr mr mw me ac sd hg"), Movable::Yes);
        assert_eq!(answer("rw-p", "00:00 0  [heap]", "rd wr mr mw me ac"), Movable::Yes);
        assert_eq!(answer("rw-p", "00:00 0  [anon:partition_alloc]", "rd wr"), Movable::Yes);
    }

    #[test]
    fn each_kind_that_is_not() {
        assert_eq!(answer("rw-s", ANON, "rd wr sh"), Movable::Shared);
        assert_eq!(answer("---p", ANON, ""), Movable::NoAccess);
        assert_eq!(answer("-w-p", ANON, "wr"), Movable::WriteOnly);
        assert_eq!(answer("r--p", ANON, "rd"), Movable::ReadOnly);
        assert_eq!(answer("rwxp", ANON, "rd wr ex"), Movable::Executable);
        assert_eq!(answer("r-xp", "00:00 0  [vdso]", "rd ex"), Movable::Special);
        assert_eq!(answer("r--p", "00:00 0  [vvar]", "rd io pf dd"), Movable::Special);
        assert_eq!(answer("rw-p", "fe:01 12  /usr/lib/libc.so.6", "rd wr"), Movable::FileBacked);
        assert_eq!(answer("rw-p", "00:00 0  [stack]", "rd wr"), Movable::Stack);
    }

    #[test]
    fn each_flag_that_forbids() {
        for (flag, why) in [
            ("lo", Movable::Locked),
            ("ht", Movable::HugeTlb),
            ("dc", Movable::DontFork),
            ("wf", Movable::WipeOnFork),
            ("dd", Movable::DontDump),
            ("mg", Movable::Mergeable),
            ("gd", Movable::Stack),
            ("ss", Movable::Stack),
            ("gu", Movable::Guarded),
            ("sl", Movable::Sealed),
            ("um", Movable::Registered),
            ("uw", Movable::Registered),
            ("io", Movable::Special),
            ("pf", Movable::Special),
        ] {
            assert_eq!(answer("rw-p", ANON, &format!("rd wr {flag} ac")), why, "{flag}");
        }
        let ours = MoveLimits { allow_registered: true, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr um", &ours), Movable::Yes);
    }

    #[test]
    fn size_place_and_threads() {
        let small = MoveLimits { min_bytes: 3 * MIB, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &small), Movable::TooSmall);
        let large = MoveLimits { max_bytes: MIB, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &large), Movable::TooLarge);
        let exact = MoveLimits { min_bytes: 2 * MIB, max_bytes: 2 * MIB, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &exact), Movable::Yes);
        let ours = [Span::new(0x7f00_0010_0000, MIB).unwrap()];
        let excluded = MoveLimits { excluded: &ours, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &excluded), Movable::Excluded);
        let beside = [Span::new(0x7f00_0020_0000, MIB).unwrap()];
        let touching = MoveLimits { excluded: &beside, ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &touching), Movable::Yes);
        let thread = MoveLimits { thread_addresses: &[0x7f00_0000_1238], ..MoveLimits::default() };
        assert_eq!(answer_with("rw-p", ANON, "rd wr", &thread), Movable::ThreadOwned);
    }

    #[test]
    fn without_flags_it_cannot_be_told() {
        let vmas = parse("7f0000000000-7f0000200000 rw-p 00000000 00:00 0\n").unwrap();
        assert_eq!(vmas[0].movable(&MoveLimits::default()), Movable::FlagsUnknown);
    }
}
