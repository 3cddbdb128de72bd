//! The memory of a living process, written to a file.

use crate::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use userswap_uffd::maps::{Permissions, VmFlags, Vma, read_smaps};
use userswap_uffd::{Pagemap, Process, Span};

/// Writes the private anonymous memory of `pid` that can be written to, as pages one after the other, to `path`: of its
/// mappings the one with the most pages first, at most `max` bytes. Returns how many pages that is.
///
/// The process runs on meanwhile. Pages it never touched are left out.
pub(crate) fn capture_to(pid: u32, path: &Path, max: Option<u64>) -> Result<u64, Error> {
    let file = File::create(path).map_err(Error::io(format!("creating {}", path.display())))?;
    let mut file = BufWriter::new(file);
    let pages = capture(pid, max.unwrap_or(u64::MAX), &mut |bytes| {
        file.write_all(bytes).map_err(Error::io(format!("writing {}", path.display())))
    })?;
    file.flush().map_err(Error::io(format!("writing {}", path.display())))?;
    eprintln!("{}: {pages} pages", path.display());
    Ok(pages)
}

/// How much is read at once: calls cost more than bytes do.
const PIECE: u64 = 2 << 20;

fn capture(pid: u32, max: u64, write: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<u64, Error> {
    let process = Process::open(pid)?;
    let pagemap = Pagemap::open(pid)?;
    let mut mappings = Vec::new();
    for vma in read_smaps(pid)?.iter().filter(|vma| is_data(vma)) {
        let runs = populated(&pagemap, vma.span)?;
        let pages: u64 = runs.iter().map(|run| run.pages()).sum();
        mappings.push((pages, runs));
    }
    mappings.sort_by_key(|(pages, _)| std::cmp::Reverse(*pages));
    let page = userswap_uffd::page_bytes();
    let mut left = max / page;
    let mut written = 0;
    let mut buffer = Vec::new();
    for piece in mappings.into_iter().flat_map(|(_, runs)| runs).flat_map(|run| run.pieces(PIECE)) {
        let pages = piece.pages().min(left);
        if pages == 0 {
            break;
        }
        buffer.resize(usize::try_from(pages * page).unwrap_or(0), 0);
        let got = match process.read_memory(piece.start(), &mut buffer) {
            Ok(got) => got as u64 / page,
            // Unmapped since.
            Err(userswap_uffd::Error::Unreadable { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        write(&buffer[..usize::try_from(got * page).unwrap_or(0)])?;
        written += got;
        left -= got;
    }
    Ok(written)
}

/// Data of the program's own: not a file's, not a stack, not the kernel's.
fn is_data(vma: &Vma) -> bool {
    let kernels = ["[stack", "[vvar", "[vdso", "[vsyscall"];
    let wanted = Permissions::READ | Permissions::WRITE;
    let flags = vma.flags.unwrap_or_default();
    vma.file.is_none()
        && vma.permissions.contains(wanted)
        && !vma.permissions.intersects(Permissions::SHARED | Permissions::EXEC)
        && !flags.intersects(VmFlags::IO | VmFlags::PFN_MAP | VmFlags::HUGE_TLB | VmFlags::GROWS_DOWN)
        && !vma.name.as_deref().is_some_and(|name| kernels.iter().any(|prefix| name.starts_with(prefix)))
}

/// The runs of pages that are in memory or swapped out. Reading the others would only find zeros.
fn populated(pagemap: &Pagemap, span: Span) -> Result<Vec<Span>, Error> {
    let mut entries = Vec::new();
    pagemap.entries(span, &mut entries)?;
    let page = userswap_uffd::page_bytes();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (addr, entry) in (span.start()..).step_by(userswap_uffd::page_size()).zip(entries) {
        if !entry.present() && !entry.swapped() {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == addr => *end += page,
            _ => runs.push((addr, addr + page)),
        }
    }
    Ok(runs.into_iter().filter_map(|(start, end)| Span::between(start, end).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;
    use crate::touch::Arena;

    #[test]
    fn what_a_process_wrote_is_in_its_image() {
        let page = userswap_uffd::page_size();
        // Of no other use than to be found.
        let mark: Vec<u8> =
            (0u8..=254).flat_map(|byte| vec![byte; byte as usize]).cycle().take(page).collect();
        let arena = Arena::in_mapping(&mark.repeat(1000)).unwrap();
        let mut image = Vec::new();
        let pages = capture(std::process::id(), u64::MAX, &mut |bytes| {
            image.extend_from_slice(bytes);
            Ok(())
        });
        assert_eq!(pages.unwrap() * page as u64, image.len() as u64);
        assert!(image.chunks_exact(page).filter(|found| *found == mark).count() >= arena.pages());
        assert!(Image::from_bytes(&image, u64::MAX, "test").unwrap().pages() >= 1000);
        let mut few = 0;
        capture(std::process::id(), 10 * page as u64, &mut |bytes| {
            few += bytes.len();
            Ok(())
        })
        .unwrap();
        assert_eq!(few, 10 * page);
    }

    #[test]
    fn nobodys_memory_cannot_be_captured() {
        assert!(capture(u32::MAX, 1, &mut |_| Ok(())).is_err());
    }
}
