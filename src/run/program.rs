//! Which file a command's name means, and whether what it is can be followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A command's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
}

/// Whether a shared object can be loaded beside a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is loaded by a dynamic loader of this architecture.
    Dynamic,
    /// Nobody loads anything beside it.
    Static,
    /// It runs with rights its caller hasn't, so the loader ignores what the caller wants loaded.
    Privileged,
    /// Of another architecture or word size.
    Foreign,
    /// It can't be read, so it isn't known.
    Unknown,
}

impl Kind {
    /// Why such a program isn't managed; `None` if nothing stands against it.
    pub fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::Dynamic | Self::Unknown => None,
            Self::Static => Some("it is statically linked"),
            Self::Privileged => Some("it runs with more rights than its caller"),
            Self::Foreign => Some("it is built for another architecture"),
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum NotRunnable {
    /// There is no such file.
    #[error("{}: command not found", .0.display())]
    NotFound(PathBuf),
    /// There is, but it may not be run.
    #[error("{}: permission denied", .0.display())]
    NotExecutable(PathBuf),
}

impl Program {
    /// Looks a command's name up as a shell does: in `search`, unless it has a slash.
    ///
    /// # Errors
    /// [`NotRunnable`].
    pub fn find(name: &OsStr, search: Option<&OsStr>) -> Result<Self, NotRunnable> {
        let asked = Path::new(name);
        if name.as_bytes().contains(&b'/') {
            return match std::fs::metadata(asked) {
                Ok(file) if file.is_file() && is_executable(asked) => Ok(Self::at(asked)),
                Ok(_) => Err(NotRunnable::NotExecutable(asked.into())),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Err(NotRunnable::NotExecutable(asked.into()))
                }
                Err(_) => Err(NotRunnable::NotFound(asked.into())),
            };
        }
        let search = search.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
        let mut denied = false;
        for directory in std::env::split_paths(search).filter(|_| !name.is_empty()) {
            let path = directory.join(asked);
            if path.is_file() {
                if is_executable(&path) {
                    return Ok(Self::at(&path));
                }
                denied = true;
            }
        }
        Err(if denied {
            NotRunnable::NotExecutable(asked.into())
        } else {
            NotRunnable::NotFound(asked.into())
        })
    }

    fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), kind: kind_of(path) }
    }
}

/// Whether this process may run a file.
fn is_executable(path: &Path) -> bool {
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)
        .is_ok()
}

/// How many interpreters stand in for one another at most; the kernel's own limit.
const MOST_INTERPRETERS: u32 = 5;

/// What a file is; of a script, what its interpreter is.
pub fn kind_of(path: &Path) -> Kind {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_INTERPRETERS {
        let Ok(mut file) = File::open(&path) else { return Kind::Unknown };
        let Ok(about) = file.metadata() else { return Kind::Unknown };
        let mut start = [0u8; 256];
        let Ok(read) = file.read(&mut start) else { return Kind::Unknown };
        let start = &start[..read];
        if let Some(interpreter) = interpreter(start) {
            path = PathBuf::from(interpreter);
            continue;
        }
        let mode = about.permissions().mode();
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if mode & 0o4000 != 0 && about.uid() != own.0 || mode & 0o2010 == 0o2010 && about.gid() != own.1 {
            return Kind::Privileged;
        }
        return elf(&mut file, start).unwrap_or(Kind::Unknown);
    }
    Kind::Unknown
}

/// The interpreter a script asks for.
fn interpreter(start: &[u8]) -> Option<OsString> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
    let end = line.iter().position(|byte| b" \t".contains(byte)).unwrap_or(line.len());
    (end > 0).then(|| OsString::from_vec(line[..end].to_vec()))
}

/// What an ELF file is: dynamic if it names a loader.
fn elf(file: &mut (impl Read + Seek), start: &[u8]) -> Option<Kind> {
    const LOADER: u32 = 3;
    const SEGMENT: usize = 56;
    if start.get(..4)? != b"\x7fELF" {
        return None;
    }
    let (class, machine) = (*start.get(4)?, u16::from_le_bytes(start.get(18..20)?.try_into().ok()?));
    if class != 2 || machine != OWN_MACHINE {
        return Some(Kind::Foreign);
    }
    let offset = u64::from_le_bytes(start.get(32..40)?.try_into().ok()?);
    let count = u16::from_le_bytes(start.get(56..58)?.try_into().ok()?);
    let mut segments = vec![0; usize::from(count) * SEGMENT];
    file.seek(SeekFrom::Start(offset)).ok()?;
    file.read_exact(&mut segments).ok()?;
    let names_loader = segments.chunks_exact(SEGMENT).any(|segment| segment[..4] == LOADER.to_le_bytes());
    Some(if names_loader { Kind::Dynamic } else { Kind::Static })
}

/// This architecture in ELF's numbers.
#[cfg(target_arch = "x86_64")]
const OWN_MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const OWN_MACHINE: u16 = 183;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OWN_MACHINE: u16 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A little ELF file with one segment of this type.
    fn elf_with(segment: u32, class: u8) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[4] = class;
        bytes[18..20].copy_from_slice(&OWN_MACHINE.to_le_bytes());
        bytes[32] = 64;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    #[test]
    fn a_named_loader_makes_a_program_dynamic() {
        let kind = |bytes: &[u8]| elf(&mut Cursor::new(bytes), bytes);
        assert_eq!(kind(&elf_with(3, 2)), Some(Kind::Dynamic));
        assert_eq!(kind(&elf_with(1, 2)), Some(Kind::Static));
        assert_eq!(kind(&elf_with(3, 1)), Some(Kind::Foreign));
        assert_eq!(kind(b"MZ"), None);
        assert_eq!(kind(&elf_with(3, 2)[..100]), None);
    }

    #[test]
    fn interpreters_are_read_off_the_first_line() {
        let of = |line: &[u8]| interpreter(line).map(|name| name.into_string().unwrap());
        assert_eq!(of(b"#!/bin/sh -e\nexit").as_deref(), Some("/bin/sh"));
        assert_eq!(of(b"#! /usr/bin/env\tpython3\n").as_deref(), Some("/usr/bin/env"));
        assert_eq!(of(b"#!\n"), None);
        assert_eq!(of(b"\x7fELF"), None);
    }

    #[test]
    fn names_are_found_as_a_shell_finds_them() {
        let found = Program::find(OsStr::new("sh"), Some(OsStr::new("/nowhere:/bin"))).unwrap();
        assert_eq!((found.path, found.kind), (PathBuf::from("/bin/sh"), Kind::Dynamic));
        assert!(matches!(
            Program::find(OsStr::new("sh"), Some(OsStr::new("/nowhere"))),
            Err(NotRunnable::NotFound(_))
        ));
        assert!(matches!(Program::find(OsStr::new("./no-such"), None), Err(NotRunnable::NotFound(_))));
        assert!(matches!(Program::find(OsStr::new("/etc/passwd"), None), Err(NotRunnable::NotExecutable(_))));
        assert!(matches!(Program::find(OsStr::new("/etc"), None), Err(NotRunnable::NotExecutable(_))));
        assert!(matches!(Program::find(OsStr::new(""), None), Err(NotRunnable::NotFound(_))));
    }
}
