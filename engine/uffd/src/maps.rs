//! A process's mappings: /proc/PID/maps and the VmFlags of /proc/PID/smaps, parsed.

use std::fmt;

use bitflags::bitflags;

use crate::{Error, Span};

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Where.
    pub span: Span,
    /// What may be done with it.
    pub permissions: Permissions,
    /// What file it maps, if any: device and inode.
    pub file: Option<FileId>,
    /// The path, or the kernel's or the program's name for it (`[heap]`, `[anon:…]`).
    pub name: Option<String>,
    /// The kernel's flags; `None` when read from maps, which doesn't tell.
    pub flags: Option<VmFlags>,
}

/// The file behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device, major and minor number.
    pub device: (u32, u32),
    /// Inode number on it.
    pub inode: u64,
}

bitflags! {
    /// The four letters of a maps line.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permissions: u8 {
        /// `r`
        const READ = 1 << 0;
        /// `w`
        const WRITE = 1 << 1;
        /// `x`
        const EXEC = 1 << 2;
        /// `s` where private mappings have `p`.
        const SHARED = 1 << 3;
    }
}

bitflags! {
    /// The VmFlags that have a say in what may be moved; the others are left out.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VmFlags: u32 {
        /// `gd`: a stack of the kernel's making, it grows downwards.
        const GROWS_DOWN = 1 << 0;
        /// `pf`: page frames of a device.
        const PFN_MAP = 1 << 1;
        /// `lo`: locked in memory.
        const LOCKED = 1 << 2;
        /// `io`: a device's memory.
        const IO = 1 << 3;
        /// `dc`: not for a fork's child.
        const DONT_FORK = 1 << 4;
        /// `ht`: huge pages of hugetlbfs.
        const HUGE_TLB = 1 << 5;
        /// `wf`: zeros for a fork's child.
        const WIPE_ON_FORK = 1 << 6;
        /// `dd`: not in core dumps.
        const DONT_DUMP = 1 << 7;
        /// `mg`: merged with pages alike (KSM).
        const MERGEABLE = 1 << 8;
        /// `hg`: wants huge pages.
        const HUGE_PAGE = 1 << 9;
        /// `nh`: wants none.
        const NO_HUGE_PAGE = 1 << 10;
        /// `um`: registered with some userfaultfd for missing pages.
        const UFFD_MISSING = 1 << 11;
        /// `uw`: registered with some userfaultfd for write-protection.
        const UFFD_WP = 1 << 12;
        /// `ui`: registered with some userfaultfd for minor faults.
        const UFFD_MINOR = 1 << 13;
        /// `mm`: mixed, pages of a device among them.
        const MIXED_MAP = 1 << 14;
        /// `ss`: a shadow stack.
        const SHADOW_STACK = 1 << 15;
        /// `sl`: sealed against unmapping, moving and dropping.
        const SEALED = 1 << 16;
        /// `de`: can't be grown by mremap.
        const DONT_EXPAND = 1 << 17;
        /// `ac`: counted against the commit limit.
        const ACCOUNTED = 1 << 18;
        /// `gu`: may have guard pages (Linux 6.19 and later).
        const MAYBE_GUARD = 1 << 19;
    }
}

impl VmFlags {
    /// Registered with a userfaultfd, whosever.
    pub const UFFD: VmFlags = VmFlags::UFFD_MISSING.union(VmFlags::UFFD_WP).union(VmFlags::UFFD_MINOR);

    /// The two-letter names of a `VmFlags:` line; those of no interest here are passed over.
    pub fn from_names(names: &str) -> VmFlags {
        names
            .split_ascii_whitespace()
            .filter_map(|name| Some(NAMES.iter().find(|(n, _)| *n == name)?.1))
            .collect()
    }
}

const NAMES: &[(&str, VmFlags)] = &[
    ("gd", VmFlags::GROWS_DOWN),
    ("pf", VmFlags::PFN_MAP),
    ("lo", VmFlags::LOCKED),
    ("io", VmFlags::IO),
    ("dc", VmFlags::DONT_FORK),
    ("ht", VmFlags::HUGE_TLB),
    ("wf", VmFlags::WIPE_ON_FORK),
    ("dd", VmFlags::DONT_DUMP),
    ("mg", VmFlags::MERGEABLE),
    ("hg", VmFlags::HUGE_PAGE),
    ("nh", VmFlags::NO_HUGE_PAGE),
    ("um", VmFlags::UFFD_MISSING),
    ("uw", VmFlags::UFFD_WP),
    ("ui", VmFlags::UFFD_MINOR),
    ("mm", VmFlags::MIXED_MAP),
    ("ss", VmFlags::SHADOW_STACK),
    ("sl", VmFlags::SEALED),
    ("de", VmFlags::DONT_EXPAND),
    ("ac", VmFlags::ACCOUNTED),
    ("gu", VmFlags::MAYBE_GUARD),
];

/// The mappings of a process by /proc/PID/smaps, flags included. The kernel counts pages for it: about a hundred times dearer than [`read_maps`].
pub fn read_smaps(pid: u32) -> Result<Vec<Vma>, Error> {
    parse(&read(pid, "smaps")?)
}

/// The mappings of a process by /proc/PID/maps, without flags.
pub fn read_maps(pid: u32) -> Result<Vec<Vma>, Error> {
    parse(&read(pid, "maps")?)
}

/// Parses the text of a maps or smaps file. Ranges beyond user space (`[vsyscall]`) are left out.
pub fn parse(text: &str) -> Result<Vec<Vma>, Error> {
    let mut vmas: Vec<Vma> = Vec::new();
    let mut beyond = false;
    for line in text.lines() {
        if let Some((key, value)) = detail(line) {
            if key == "VmFlags" && !beyond {
                let vma = vmas.last_mut().ok_or_else(|| malformed(line))?;
                vma.flags = Some(VmFlags::from_names(value));
            }
            continue;
        }
        let vma = parse_line(line)?;
        beyond = vma.is_none();
        vmas.extend(vma);
    }
    Ok(vmas)
}

/// Smaps lines under a mapping's own: `Rss:   4 kB`, `VmFlags: rd wr`. Keys start with a capital, ranges with a lower-case hex digit.
fn detail(line: &str) -> Option<(&str, &str)> {
    line.starts_with(|c: char| c.is_ascii_uppercase()).then(|| line.split_once(':')).flatten()
}

/// `start-end perms offset major:minor inode name`; `None` for a range beyond user space.
fn parse_line(line: &str) -> Result<Option<Vma>, Error> {
    let bad = || malformed(line);
    let mut rest = line;
    let mut field = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, after) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = after;
        (!word.is_empty()).then_some(word)
    };
    let (start, end) = field().and_then(|range| range.split_once('-')).ok_or_else(bad)?;
    let permissions = field().and_then(parse_permissions).ok_or_else(bad)?;
    let _offset = field().and_then(hex).ok_or_else(bad)?;
    let (major, minor) = field().and_then(|device| device.split_once(':')).ok_or_else(bad)?;
    let inode: u64 = field().and_then(|inode| inode.parse().ok()).ok_or_else(bad)?;
    // The name is the rest of the line, spaces and all.
    let name = rest.trim_start_matches(' ');
    let device = (hex32(major).ok_or_else(bad)?, hex32(minor).ok_or_else(bad)?);
    let (start, end) = (hex(start).ok_or_else(bad)?, hex(end).ok_or_else(bad)?);
    if start >= 1 << 63 {
        return Ok(None);
    }
    Ok(Some(Vma {
        span: Span::between(start, end).map_err(|_| bad())?,
        permissions,
        file: (inode != 0).then_some(FileId { device, inode }),
        name: (!name.is_empty()).then(|| name.to_owned()),
        flags: None,
    }))
}

fn parse_permissions(letters: &str) -> Option<Permissions> {
    let [r, w, x, s] = letters.as_bytes() else { return None };
    let mut permissions = Permissions::empty();
    for (letter, on, off, bit) in [
        (r, b'r', b'-', Permissions::READ),
        (w, b'w', b'-', Permissions::WRITE),
        (x, b'x', b'-', Permissions::EXEC),
        (s, b's', b'p', Permissions::SHARED),
    ] {
        match *letter {
            l if l == on => permissions |= bit,
            l if l == off => {}
            _ => return None,
        }
    }
    Some(permissions)
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

fn hex32(digits: &str) -> Option<u32> {
    u32::from_str_radix(digits, 16).ok()
}

fn malformed(line: &str) -> Error {
    Error::Malformed { what: "a line of a process's mappings", found: line.to_owned() }
}

/// Names need not be UTF-8: what isn't becomes replacement characters, no mapping is lost for it.
fn read(pid: u32, file: &str) -> Result<String, Error> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}"))
        .map_err(|e| Error::gone_or(pid, "reading a process's mappings", e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl fmt::Display for Vma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit, on, off| if self.permissions.contains(bit) { on } else { off };
        write!(
            f,
            "{} {}{}{}{} {}",
            self.span,
            letter(Permissions::READ, 'r', '-'),
            letter(Permissions::WRITE, 'w', '-'),
            letter(Permissions::EXEC, 'x', '-'),
            letter(Permissions::SHARED, 's', 'p'),
            self.name.as_deref().unwrap_or("")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a2b3c000-55d0a2b5d000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000021000 r-xp 00002000 fe:01 1234  /usr/lib/a library (deleted)
VmFlags: rd ex mr mw me
7f1000000000-7f1000001000 ---s 00000000 00:05 9
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
";

    #[test]
    fn smaps_parses_with_names_files_and_flags() {
        let vmas = parse(SMAPS).unwrap();
        assert_eq!(vmas.len(), 4);
        assert_eq!(vmas[0].span, Span::new(0x55d0_a2b3_c000, 0x21000).unwrap());
        assert_eq!(vmas[0].permissions, Permissions::READ | Permissions::WRITE);
        assert_eq!(vmas[0].name.as_deref(), Some("[heap]"));
        assert_eq!((vmas[0].file, vmas[0].flags), (None, Some(VmFlags::ACCOUNTED)));
        assert_eq!(vmas[1].name.as_deref(), Some("/usr/lib/a library (deleted)"));
        assert_eq!(vmas[1].file, Some(FileId { device: (0xfe, 1), inode: 1234 }));
        assert_eq!(vmas[2].permissions, Permissions::SHARED);
        assert_eq!((vmas[2].name.as_deref(), vmas[2].flags), (None, None));
        // The flags of a range that was left out go to nobody.
        assert_eq!(vmas[3].flags, Some(VmFlags::GROWS_DOWN | VmFlags::ACCOUNTED));
    }

    #[test]
    fn every_flag_has_its_own_two_letters() {
        let all = NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        assert_eq!(VmFlags::from_names(&all), VmFlags::all());
        assert_eq!(NAMES.len(), VmFlags::all().iter().count());
        assert_eq!(VmFlags::from_names("rd wr ?? zz"), VmFlags::empty());
    }

    #[test]
    fn nonsense_is_named() {
        for line in
            ["x", "1000-2000", "1000-2000 rwxq 0 0:0 0", "2000-1000 rw-p 0 0:0 0", "1000-2000 rw-p 0 00 0"]
        {
            assert!(matches!(parse(line), Err(Error::Malformed { .. })), "{line}");
        }
        assert!(parse("VmFlags: rd\n").is_err());
        assert!(parse("").unwrap().is_empty());
    }
}
