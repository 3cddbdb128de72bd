//! Text files under some directories, in a fixed order.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Walks directories and gives the text files in them.
pub(crate) struct Files {
    /// Still to be looked at; the next one last.
    pending: Vec<PathBuf>,
}

/// What a walk comes to next.
pub(crate) enum Source {
    /// A file's text.
    Text(Vec<u8>),
    /// There are no more.
    Over,
}

/// Larger files are left out: one file should not be the corpus.
const MOST_BYTES: u64 = 8 << 20;

/// Smaller ones are mostly licences and stubs.
const LEAST_BYTES: u64 = 512;

/// How much of a file is looked at to tell whether it is text.
const SAMPLE: usize = 4096;

impl Files {
    /// The files under `directories`, or under those that machines with a Rust toolchain have.
    pub(crate) fn under(directories: &[PathBuf]) -> Self {
        let mut pending = if directories.is_empty() { usual() } else { directories.to_vec() };
        pending.reverse();
        Self { pending }
    }

    /// The next text. What can't be read is passed over.
    pub(crate) fn next_text(&mut self) -> Source {
        while let Some(path) = self.pending.pop() {
            // Not followed: links lead in circles, and to what was read already.
            let Ok(about) = fs::symlink_metadata(&path) else { continue };
            if about.is_dir() {
                self.push_children(&path);
            } else if about.is_file()
                && (LEAST_BYTES..=MOST_BYTES).contains(&about.len())
                && let Some(text) = read_text(&path)
            {
                return Source::Text(text);
            }
        }
        Source::Over
    }

    fn push_children(&mut self, directory: &Path) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        let mut children: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        // The order of a directory isn't always the same; that of names is.
        children.sort_unstable_by(|a, b| b.cmp(a));
        self.pending.append(&mut children);
    }
}

/// Where there is text on a machine with a Rust toolchain: sources of crates, the toolchain's own documentation, the system's.
fn usual() -> Vec<PathBuf> {
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()));
    let mut directories = Vec::new();
    directories.extend(cargo.map(|cargo| cargo.join("registry/src")));
    directories
        .extend(sysroot.into_iter().flat_map(|root| [root.join("lib/rustlib/src"), root.join("share")]));
    directories.extend(["/usr/include", "/usr/share", "/usr/lib"].map(PathBuf::from));
    directories
}

/// The file, if it is text.
fn read_text(path: &Path) -> Option<Vec<u8>> {
    let mut file = fs::File::open(path).ok()?;
    let mut text = vec![0; SAMPLE];
    let mut read = 0;
    while read < SAMPLE {
        match file.read(&mut text[read..]) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(_) => return None,
        }
    }
    text.truncate(read);
    if !is_text(&text) {
        return None;
    }
    file.read_to_end(&mut text).ok()?;
    Some(text)
}

/// Whether a beginning looks like text: UTF-8 (perhaps cut within its last character), with lines, without control characters.
fn is_text(start: &[u8]) -> bool {
    let whole = match std::str::from_utf8(start) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let is_control = |byte: &u8| *byte < 32 && !matches!(byte, b'\n' | b'\r' | b'\t' | 12);
    whole && start.contains(&b'\n') && !start.iter().any(is_control)
}
