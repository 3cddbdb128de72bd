//! The memory image: pages of a real process, without those that are one word repeated.

use crate::error::Error;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use userswap_uffd::page_size;

/// An image, in a file that child processes can open too.
pub(crate) struct Image {
    file: File,
    pages: usize,
    same_filled: usize,
    origin: String,
}

impl Image {
    /// The first `most` bytes' worth of pages in `path` that aren't one word repeated.
    pub(crate) fn load(path: &Path, most: u64) -> Result<Self, Error> {
        let bytes =
            std::fs::read(path).map_err(Error::io(format!("reading the image {}", path.display())))?;
        let image = Self::from_bytes(&bytes, most, &path.display().to_string())?;
        if image.pages == 0 {
            return Err(Error::NoPages { path: path.to_path_buf() });
        }
        Ok(image)
    }

    /// The same from bytes; what isn't a whole page at the end is left out.
    pub(crate) fn from_bytes(bytes: &[u8], most: u64, origin: &str) -> Result<Self, Error> {
        let memfd = memfd_create("userswap-bench-image", MemfdFlags::empty());
        let mut file: File =
            memfd.map_err(|errno| Error::io("making a file in memory")(errno.into()))?.into();
        let most = usize::try_from(most).unwrap_or(usize::MAX) / page_size();
        let (mut pages, mut same_filled) = (0, 0);
        for page in bytes.chunks_exact(page_size()) {
            if pages == most {
                break;
            }
            if is_same_filled(page) {
                same_filled += 1;
                continue;
            }
            file.write_all(page).map_err(Error::io("writing a file in memory"))?;
            pages += 1;
        }
        Ok(Self { file, pages, same_filled, origin: origin.to_owned() })
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// How many were left out because a word is repeated all through them.
    pub(crate) fn same_filled(&self) -> usize {
        self.same_filled
    }

    /// Where it came from.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Where a child process can read it for as long as this lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

/// The bytes of an image, in a measured process.
pub(crate) fn read_pages(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(Error::io(format!("reading the image {}", path.display())))?;
    Ok(bytes)
}

/// Whether a page is one word of eight bytes repeated.
pub(crate) fn is_same_filled(page: &[u8]) -> bool {
    let (first, rest) = page.split_at(8.min(page.len()));
    rest.chunks_exact(8).all(|word| word == first)
}

/// A page's checksum. Not a defence against anybody: it tells pages apart that were mixed up, lost or torn.
pub(crate) fn checksum(page: &[u8]) -> u64 {
    page.chunks_exact(8).fold(page.len() as u64, |sum, word| {
        let word = word.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(stride: usize) -> impl Iterator<Item = u8> {
        (0u8..=250).flat_map(move |byte| std::iter::repeat_n(byte, stride)).cycle().take(page_size())
    }

    #[test]
    fn same_filled_pages_are_counted_and_left_out() {
        let len = page_size();
        let mut bytes = vec![7u8; len];
        bytes.extend(page(9));
        bytes.extend(vec![0u8; len]);
        bytes.extend(page(7));
        bytes.extend([1, 2, 3]);
        let image = Image::from_bytes(&bytes, u64::MAX, "test").unwrap();
        assert_eq!((image.pages(), image.same_filled()), (2, 2));
        let read = read_pages(&image.path()).unwrap();
        assert_eq!(read.len(), 2 * len);
        assert_eq!(&read[len..], &bytes[3 * len..4 * len]);
        assert_eq!(Image::from_bytes(&bytes, len as u64, "test").unwrap().pages(), 1);
    }

    #[test]
    fn checksums_tell_pages_apart() {
        let mut page = vec![0u8; 4096];
        let zeros = checksum(&page);
        page[4095] = 1;
        let one = checksum(&page);
        page.swap(4095, 4087);
        assert!(zeros != one && one != checksum(&page) && zeros != checksum(&page));
    }
}
