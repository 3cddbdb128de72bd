//! Pages that say what they are full of, reached by address: memory that comes and goes behind its program's back.

use std::fmt;
use userswap_uffd::{Span, page_bytes, page_size};

/// Mapped memory, written and read a page at a time. A page holds a *value*: its first word is the value, the others follow
/// from it, and a page of zeros holds 0. Half a page of one and half of another is noticed.
#[derive(Clone, Copy, Debug)]
pub struct Pages(Span);

/// A page whose words don't belong together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Its address.
    pub addr: u64,
    /// The value its first word says.
    pub value: u64,
    /// The first word that isn't of that value.
    pub word: usize,
    /// What it is.
    pub found: u64,
}

impl Pages {
    /// The pages of `span`.
    ///
    /// # Safety
    /// Whenever one of the methods is called the page it names is mapped, readable and writable, and no reference of
    /// Rust's is to any of it.
    pub unsafe fn new(span: Span) -> Self {
        Self(span)
    }

    /// Where they are.
    pub fn span(&self) -> Span {
        self.0
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.pages()
    }

    /// Whether there is none; never true.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The `count` pages from `first` on.
    pub fn part(&self, first: u64, count: u64) -> Self {
        assert!(first + count <= self.len());
        Self(Span::from_pages(self.address(first), count).unwrap_or(self.0))
    }

    /// Where a page is.
    pub fn address(&self, page: u64) -> u64 {
        assert!(page < self.len(), "page {page} of {}", self.len());
        self.0.start() + page * page_bytes()
    }

    /// Fills a page.
    pub fn fill(&self, page: u64, value: u64) {
        let words = self.words(page);
        for word in 0..WORDS {
            // SAFETY: needed because the memory isn't Rust's. It is mapped and writable, as whoever made this vouched.
            unsafe { words.add(word).write_volatile(expected(value, word)) };
        }
    }

    /// Fills all of them, page *n* with `of(n)`.
    pub fn fill_all(&self, of: impl Fn(u64) -> u64) {
        for page in 0..self.len() {
            self.fill(page, of(page));
        }
    }

    /// What a page holds.
    ///
    /// # Errors
    /// [`Torn`] if it isn't one value.
    pub fn read(&self, page: u64) -> Result<u64, Torn> {
        let words = self.words(page);
        // SAFETY: needed because the memory isn't Rust's. It is mapped and readable, as whoever made this vouched.
        let value = unsafe { words.read_volatile() };
        for word in 1..WORDS {
            // SAFETY: as above.
            let found = unsafe { words.add(word).read_volatile() };
            if found != expected(value, word) {
                return Err(Torn { addr: self.address(page), value, word, found });
            }
        }
        Ok(value)
    }

    /// The first word of a page alone, which is its value.
    pub fn peek(&self, page: u64) -> u64 {
        // SAFETY: as in `read`.
        unsafe { self.words(page).read_volatile() }
    }

    /// Asserts that page *n* holds `of(n)`, for all of them.
    pub fn assert_all(&self, of: impl Fn(u64) -> u64) {
        for page in 0..self.len() {
            assert_eq!(self.read(page), Ok(of(page)), "page {page} at {:#x}", self.address(page));
        }
    }

    fn words(&self, page: u64) -> *mut u64 {
        std::ptr::with_exposed_provenance_mut(self.address(page) as usize)
    }
}

const WORDS: usize = 512;
const _: () = assert!(size_of::<u64>() * WORDS == 4096);

/// Whether pages here are as long as the machine's.
pub fn fits() -> bool {
    page_size() == WORDS * size_of::<u64>()
}

/// Odd multiples: 0 for 0, and no two values have a word in common at the same place.
fn expected(value: u64, word: usize) -> u64 {
    value.wrapping_mul(2 * word as u64 + 1)
}

impl fmt::Debug for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, value, word, found } = self;
        write!(f, "page at {addr:#x} of value {value:#x} has {found:#x} as word {word}")
    }
}

/// What a write of one byte at `addr` to a pipe answers: 0, or the error number.
pub fn system_call_on(addr: u64) -> i32 {
    let mut pipe = [0; 2];
    // SAFETY: needed because the kernel is to look at memory that may not be there or readable: it says so and doesn't fault.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let answer = libc::write(pipe[1], std::ptr::with_exposed_provenance(addr as usize), 1);
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        if answer == 1 { 0 } else { error }
    }
}
